"""What engines will take before they are built: shapes, and memory to run and to build them.

Weights and KV cache are exact to a percent. Activations are estimated from the largest tensors that live together, and
the build's peak from builds of the 0.6B and 1.7B shapes; both within a quarter of what was measured there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen3asr.engines import Profile
from qwen3asr.errors import GpuMemoryShort
from qwen3asr.spec import ModelSpec
from qwen3asr_export.checkpoint import expected_tensors
from qwen3asr_export.dialects import POSITIONS
from qwen3asr_export.tensorrt.profiles import decoder_profiles, encoder_profiles
from qwen3asr_export.tensorrt.settings import QUANTISED, Settings, Storage

_TABLES = ("embed_tokens.weight", "lm_head.weight", "score.weight")
_MERGED = tuple(f"{part}_proj.weight" for part in ("q", "k", "v", "gate", "up"))
"""In int4 the builder multiplies by these one by one in steps, and merged in prefills: it stores them twice."""
_SCRATCH = 8 << 20  # of every context, whatever the shapes
_LIBRARY = 400_000_000  # what the builder takes with no graph
_COPIES = 3.7  # of the largest graph's weights that a build holds at its peak


@dataclass(frozen=True, slots=True)
class Plan:
    """What a bundle's engines will take, in bytes.

    Attributes:
        precision: of the engines.
        settings: fitted to the model.
        profiles: of each component.
        weights: of each component, on disk and on the device.
        cache: KV cache of all slots.
        activations: of each component, while it runs in its largest shape.
        build_peak: host memory of the largest build.
    """

    precision: str
    settings: Settings
    profiles: Mapping[str, tuple[Profile, ...]]
    weights: Mapping[str, int]
    cache: int
    activations: Mapping[str, int]
    build_peak: int

    @property
    def stored(self) -> int:
        """Bytes of all engines."""
        return sum(self.weights.values())

    @property
    def scratch(self) -> int:
        """Bytes of the activations that the components share."""
        return max(self.activations.values())

    @property
    def device_bytes(self) -> int:
        """Device memory to run: the components take turns, and share the memory of their activations."""
        return self.stored + self.cache + self.scratch

    def check_memory(self, memory: int | None) -> None:
        """Refuse what will not run on a GPU of so many bytes; ``None``: it is not known.

        Raises:
            GpuMemoryShort: with what would fit.
        """
        if memory is None or self.device_bytes <= memory:
            return
        row, left = self.cache // self.settings.slots, memory - self.device_bytes + self.cache
        fit = (
            f"slots={left // row} would fit" if left >= row else "not even one slot fits: choose int4, or fewer windows"
        )
        raise GpuMemoryShort(
            f"the engines need {_gb(self.device_bytes)}, and the GPU has {_gb(memory)}: {_gb(self.stored)} weights, "
            f"{_gb(self.cache)} KV cache of {self.settings.slots} slots of {self.settings.capacity} tokens, "
            f"{_gb(self.scratch)} activations; {fit}, or give a smaller capacity"
        )

    def table(self) -> str:
        """For the screen: every input's shapes in every profile, then memory."""
        lines = []
        for component, profiles in self.profiles.items():
            for profile in profiles:
                lines.append(f"{component}, profile {profile.name}:")
                lines += [f"  {name:<16} {text}" for name, text in _shapes(profile).items()]
        memory = {
            "precision": self.precision,
            "KV cache": f"{_gb(self.cache)} for {self.settings.slots} slots of {self.settings.capacity} tokens",
            "weights": ", ".join(f"{name} {_gb(size)}" for name, size in self.weights.items()),
            "activations": "about " + ", ".join(f"{name} {_gb(size)}" for name, size in self.activations.items()),
            "GPU memory": f"about {_gb(self.device_bytes)}",
            "disk": _gb(self.stored),
            "to build": f"about {_gb(self.build_peak)} of host memory",
        }
        return "\n".join([*lines, *(f"{label:<17} {value}" for label, value in memory.items())])


def make_plan(spec: ModelSpec, settings: Settings, precision: str) -> Plan:
    """Plan engines of a model's shape; nothing but the shape is needed.

    Raises:
        RequestInvalid: a size makes no sense for the model.
    """
    settings = settings.fitted(spec)
    value = 4 if precision == "fp32" else 2
    profiles = {"encoder": encoder_profiles(spec, settings), "decoder": decoder_profiles(spec, settings)}
    row = 2 * spec.layers * spec.kv_heads * spec.head_dim * settings.capacity * value
    source = weight_bytes(spec, "bf16" if precision in QUANTISED else precision)
    return Plan(
        precision=precision,
        settings=settings,
        profiles=profiles,
        weights=weight_bytes(spec, precision),
        cache=settings.slots * row,
        activations={
            "encoder": max(_encoder_activations(spec, profile, value) for profile in profiles["encoder"]),
            "decoder": max(_decoder_activations(spec, profile, value) for profile in profiles["decoder"]),
        },
        build_peak=_LIBRARY + int(_COPIES * max(source.values())),
    )


def weight_bytes(spec: ModelSpec, precision: str) -> dict[str, int]:
    """Bytes of each component's weights, rotary tables included."""
    value = 4 if precision == "fp32" else 2
    rotary = min(spec.max_positions, POSITIONS) * spec.head_dim * 4
    sizes = {"encoder": 0, "decoder": rotary}
    for name, shape in expected_tensors(spec).items():
        if "audio_tower" in name or "multi_modal" in name:
            sizes["encoder"] += math.prod(shape) * value
        elif len(shape) == 1:  # norms stay in 32 bits
            sizes["decoder"] += 4 * shape[0]
        elif precision in QUANTISED and not name.endswith(_TABLES):
            twice = precision == "int4" and spec.kind == "asr" and name.endswith(_MERGED)
            sizes["decoder"] += (1 + twice) * _quantised_bytes(shape, QUANTISED[precision])
        else:
            sizes["decoder"] += math.prod(shape) * value
    return sizes


def _quantised_bytes(shape: Sequence[int], storage: Storage) -> int:
    rows, columns = shape  # [out, in]; scales are bf16
    return rows * columns * storage.bits // 8 + 2 * rows * (columns // (storage.block or columns))


def _encoder_activations(spec: ModelSpec, profile: Profile, value: int) -> int:
    """The outputs of the first two convolutions live together, and dwarf the rest."""
    windows, bands, frames = profile.inputs["mel"].most
    first = (bands // 2) * (frames // 2) * spec.encoder.conv_channels
    second = first // 4
    return _SCRATCH + windows * (value * (first + second) + 4 * bands * frames)


def _decoder_activations(spec: ModelSpec, profile: Profile, value: int) -> int:
    """The attention's or the head's, beside the residual stream.

    With more than one query, the builder repeats each cache for the query heads that share it.
    """
    (rows, tokens), taken = profile.inputs["ids"].most, profile.inputs["take"].most[1]
    capacity = profile.inputs["past.0.key"].most[2]
    stream = 2 * 4 * rows * tokens * spec.hidden
    attention = value * rows * tokens * (capacity + 2 * spec.heads * spec.head_dim)
    if tokens > 1:
        attention += value * 2 * rows * spec.heads * capacity * spec.head_dim
        if value == 4:  # not fused: the scores are written out
            attention += 2 * value * rows * spec.heads * tokens * capacity
    head = 6 * rows * taken * spec.classes
    return _SCRATCH + stream + max(attention, head)


def _shapes(profile: Profile) -> dict[str, str]:
    """An input a line, those of all layers' caches in one."""
    shown = {name: sizes for name, sizes in profile.inputs.items() if not name.startswith("past.")}
    if "past.0.key" in profile.inputs:
        shown["past.*.key/value"] = profile.inputs["past.0.key"]
    return {
        name: f"{_shape(sizes.least)} to {_shape(sizes.most)}, tuned for {_shape(sizes.best)}"
        for name, sizes in shown.items()
    }


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10_000_000 else f"{size / 1e6:.2f} MB"
