"""Adapters that offer qwen3asr inside other toolkits: one file a toolkit, over the public face only."""
