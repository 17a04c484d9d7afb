"""``python -m qwen3asr.cli``."""

from qwen3asr.cli import main

main()
