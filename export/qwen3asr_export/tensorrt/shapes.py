"""The shape of a model, wherever it is known from: a bundle, a checkpoint, a hub id, or a released model's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3asr.bundle import MANIFEST, open_bundle
from qwen3asr.spec import ModelSpec
from qwen3asr_export.hub import find_config
from qwen3asr_export.layout import flatten_config, is_original
from qwen3asr_export.standin import STANDINS

_NO_ID = {"eos_token_id": 0, "timestamp_token_id": 0}
"""Ids that the original layout keeps in its tokenizer; they do not bear on shapes."""


def find_spec(source: str | Path, *, revision: str | None = None, offline: bool = False, **where: Any) -> ModelSpec:
    """Read the shape of a bundle, a checkpoint folder or a hub id; of the last only config.json is fetched.

    Args:
        source: of the three.
        revision: branch, tag or commit of a hub id.
        offline: take a hub id from the local cache only.
        where: ``cache_dir`` and ``endpoint`` of the hub; see :func:`qwen3asr_export.hub.find_config`.

    Raises:
        ConfigInvalid: it is no Qwen3-ASR model's.
        CheckpointInvalid, CheckpointNotFound, CheckpointForbidden, HubUnreachable: there is no config.json to be had.
    """
    if (Path(source) / MANIFEST).is_file():
        return open_bundle(source).spec
    config = find_config(source, revision=revision, offline=offline, **where)
    return ModelSpec.from_config(_NO_ID | flatten_config(config) if is_original(config) else config)


def standin_spec(name: str) -> ModelSpec:
    """The shape of a released model: a key of :data:`qwen3asr_export.standin.STANDINS`."""
    return ModelSpec.from_config(STANDINS[name].config().to_dict())
