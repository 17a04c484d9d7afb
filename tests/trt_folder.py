"""Folders of stand-in engines in a bundle, planned as the real ones are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.trt_standin import write_engine

from qwen3asr.bundle import Bundle, sha256
from qwen3asr.engines import EngineFile, Engines, write_engines
from qwen3asr.spec import ModelSpec
from qwen3asr_export.tensorrt import Settings, make_plan

SCRATCH = 1 << 16


def write_folder(
    bundle: Bundle, settings: Settings, *, name: str = "h100-trt11.4.0", flavour: str = "tensorrt",
    version: str = "11.4.0", capability: str | None = "9.0", precision: str = "fp32",
) -> Path:  # fmt: skip
    """Write engines that stand for a bundle's graphs."""
    folder = bundle.folder / "tensorrt" / name
    folder.mkdir(parents=True)
    plan = make_plan(bundle.spec, settings, "fp32")
    components = {}
    for component, types in tensors(bundle.spec).items():
        path, profiles = folder / f"{component}.engine", plan.profiles[component]
        size = write_engine(path, bundle.component(component), types, profiles, SCRATCH)
        components[component] = EngineFile(path.name, size, sha256(path), profiles, 10, SCRATCH, {}, (), 1.0)
    graphs = {name: digest for name, digest in bundle.hashes.items() if name.startswith("onnx/")}
    sizes = plan.settings.capacity, plan.settings.slots
    engines = Engines(
        bundle.spec.kind, precision, flavour, version, "h100", capability, *sizes, graphs, components
    )  # fmt: skip
    write_engines(folder, engines)
    return folder


def tensors(spec: ModelSpec) -> Mapping[str, dict[str, str]]:
    """Names and types of each engine's inputs and outputs, in fp32."""
    caches = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]
    return {
        "encoder": {"mel": "FLOAT", "frames": "INT64", "embeddings": "FLOAT"},
        "decoder": {
            "ids": "INT64", "audio": "FLOAT", "past": "INT64", "take": "INT64",
            **{f"past.{cache}": "FLOAT" for cache in caches},
            "token": "INT64", "logprob": "FLOAT",
            **{f"present.{cache}": "FLOAT" for cache in caches},
        },
    }  # fmt: skip
