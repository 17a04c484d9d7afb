"""Checkpoints to ONNX bundles: needs torch and transformers (``pip install 'qwen3asr[export]'``)."""

from qwen3asr_export.convert import export
from qwen3asr_export.verification import verify

__all__ = ["export", "verify"]
