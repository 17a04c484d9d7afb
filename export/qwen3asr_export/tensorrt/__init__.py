"""Bundles of the standard dialect to TensorRT engines: ``pip install 'qwen3asr[export,tensorrt]'``."""

from qwen3asr_export.tensorrt.folder import build_engines, check_order
from qwen3asr_export.tensorrt.plan import Plan, make_plan
from qwen3asr_export.tensorrt.settings import Settings
from qwen3asr_export.tensorrt.shapes import find_spec, standin_spec

__all__ = ["Plan", "Settings", "build_engines", "check_order", "find_spec", "make_plan", "standin_spec"]
