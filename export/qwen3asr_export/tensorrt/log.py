"""What the builder says: its errors, the memory it plans, and the kernels that it made."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_FUSED = re.compile(r"^Name: ([^,]*mha[^,]*), LayerType: .*?Metadata: (.*)$", re.MULTILINE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")
_LAYERS = "Layers:\n"


@dataclass(slots=True)
class Record:
    """What of a build's log matters. TensorRT's inspector tells the same, but of a deserialised engine on a GPU only.

    Attributes:
        errors: messages, as they came.
        memory: bytes of ``Weights``, and of ``Activation`` in each profile.
        fused: ONNX node to the profiles in which one fused attention kernel does it.
        described: the kernels were listed.
    """

    errors: list[str] = field(default_factory=list)
    memory: dict[str, list[int]] = field(default_factory=lambda: {"Weights": [], "Activation": []})
    fused: Counter[str] = field(default_factory=Counter)
    described: bool = False

    def take(self, message: str, *, error: bool) -> None:
        """Read one message."""
        if error:
            self.errors.append(message)
        for kind, size in _MEMORY.findall(message):
            self.memory[kind].append(int(size))
        if message.startswith(_LAYERS):
            self.described = True
            for _, nodes in _FUSED.findall(message):
                self.fused.update(set(_NODE.findall(nodes)))

    def largest(self, kind: str) -> int:
        """The most memory of a kind; 0 where the builder did not tell."""
        return max(self.memory[kind], default=0)


def make_logger(module: Any, record: Record) -> Any:
    """An ``ILogger`` that writes to the record."""
    errors = (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR)

    class Logger(module.ILogger):  # type: ignore[misc]  # the module has no types
        def log(self, severity: Any, msg: str) -> None:
            record.take(msg, error=severity in errors)

    return Logger()
