"""The gate that counts work, not seconds: what the graphs hold, what a token reads, what a second of audio costs.

What is counted here is the same on every machine, so a change that makes every token dearer is seen where no clock
would show it. ``tests/work.json`` holds the numbers; to accept others on purpose: ``ACCEPT_WORK=1 pytest
tests/test_work.py``, and commit the file with the reason.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.conftest import ROOT, Recording

import qwen3asr
from qwen3asr.features import Mel
from qwen3asr.sessions.base import DecoderSession, Embeddings, EncoderSession, Ids, Picked
from qwen3asr.spec import ModelSpec
from qwen3asr_export import dynamic, numerics
from qwen3asr_export.blocks import Quantised
from qwen3asr_export.channels import Channels
from qwen3asr_export.checkpoint import expected_tensors
from qwen3asr_export.decoder import build_decoder
from qwen3asr_export.dialects import DIALECTS
from qwen3asr_export.encoder import build_encoder
from qwen3asr_export.graph import Array, WeightFile
from qwen3asr_export.precision import PRECISIONS
from qwen3asr_export.standin import STANDINS

NUMBERS = Path(__file__).with_name("work.json")
SLACK = 0.02  # of counts that hang on what a model hears: another processor may round a close call the other way
LOOKUPS = {"Gather", "GroupQueryAttention", "RotaryEmbedding"}
"""Operators that read a few rows of a weight, and not all of it: embeddings and rotary tables."""

Numbers = dict[str, int | float]


def check(section: str, found: Numbers, slack: float = 0.0) -> None:
    """Hold counts against the file; with ``slack``, a lower count is welcome and a slightly higher one forgiven."""
    stored = json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}
    if os.environ.get("ACCEPT_WORK"):
        NUMBERS.write_text(json.dumps(stored | {section: found}, indent=1, sort_keys=True) + "\n", "utf-8")
        return
    message = difference(section, stored.get(section, {}), found, slack)
    if message:
        pytest.fail(message, pytrace=False)


def difference(section: str, known: Mapping[str, float], found: Mapping[str, float], slack: float) -> str:
    lines = []
    for name in sorted(known.keys() | found.keys()):
        before, now = known.get(name, 0), found.get(name, 0)
        if now > before * (1 + slack) or (now < before and not slack):
            share = f" ({(now - before) / before:+.1%})" if before else ""
            lines.append(f"  {name} {'rose' if now > before else 'fell'} from {before:g} to {now:g}{share}")
    if not lines:
        return ""
    cure = (
        "If that is meant, run ACCEPT_WORK=1 pytest tests/test_work.py, and say why where you commit tests/work.json."
    )
    return "\n".join([f"The work of {section} is not what tests/work.json says:", *lines, cure])


def test_a_failing_message_says_what_changed_and_how_to_accept_it() -> None:
    known = {"Add": 56.0, "Mul": 10.0, "Cast": 4.0}
    message = difference("the graphs", known, {"Add": 84.0, "Mul": 10.0, "Gather": 1.0}, 0.0)
    assert message.splitlines() == [
        "The work of the graphs is not what tests/work.json says:",
        "  Add rose from 56 to 84 (+50.0%)",
        "  Cast fell from 4 to 0 (-100.0%)",
        "  Gather rose from 0 to 1",
        "If that is meant, run ACCEPT_WORK=1 pytest tests/test_work.py, and say why where you commit tests/work.json.",
    ]
    assert not difference("the graphs", known, known, 0.0)
    assert not difference("a stream", {"runs": 100.0}, {"runs": 101.0}, SLACK)
    assert not difference("a stream", {"runs": 100.0}, {"runs": 50.0}, SLACK)
    assert "runs rose from 100 to 103 (+3.0%)" in difference("a stream", {"runs": 100.0}, {"runs": 103.0}, SLACK)


# --- graphs ----------------------------------------------------------------------------------------------------


class Zeros:
    """A checkpoint of any shape without weights; see :class:`qwen3asr_export.files.Tensors`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._shapes = expected_tensors(spec)

    def __getitem__(self, name: str) -> Array:
        return np.broadcast_to(np.float32(0), self._shapes[name])


class NoFile(WeightFile):
    """Keeps the place of every weight, and nothing of it."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))
        self._end = 0

    def add(self, name: str, array: Array) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", "data"), ("offset", self._end), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._end += array.nbytes
        return tensor


@cache
def spec_of(shape: str) -> ModelSpec:
    if shape == "tiny":
        return ModelSpec.from_config(json.loads((ROOT / "examples/tiny/asr/config.json").read_text("utf-8")))
    return ModelSpec.from_config(STANDINS[shape].config().to_dict())


@pytest.fixture
def _zeros_once() -> Iterator[None]:
    """All weights are zero: those of one shape are quantised, and cast, once. Not where real ones are exported."""
    known: dict[tuple[object, ...], Quantised | Channels | Array] = {}

    def once(convert: Callable[..., Any]) -> Callable[..., Any]:
        def converted(weight: Array, *how: int) -> Any:
            key = (convert, weight.shape, *how)
            if key not in known:
                known[key] = convert(weight, *how)
            return known[key]

        return converted

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((numerics, "quantise"), (numerics, "_cast"), (dynamic, "quantise_channels")):
            patch.setattr(module, name, once(getattr(module, name)))
        patch.setattr(numerics, "Mixed", lambda tensors: tensors)  # zeros in any basis
        yield


def graphs(shape: str) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every graph that export writes for a shape, by what it is called in the numbers."""
    spec, tensors = spec_of(shape), Zeros(spec_of(shape))
    for name, precision in PRECISIONS.items():
        with NoFile() as weights:
            yield f"{name} encoder", build_encoder(spec, tensors, weights, precision.encoder)
        for dialect in precision.dialects:
            with NoFile() as weights:
                built = build_decoder(spec, tensors, weights, DIALECTS[dialect](), precision.decoder)
            yield f"{name} decoder, {dialect}", built


def weight_bytes(model: onnx.ModelProto) -> tuple[int, int]:
    """Bytes of weights that are stored, and that a run must read: all but those that rows are looked up in."""
    whole = {name for node in model.graph.node if node.op_type not in LOOKUPS for name in node.input}
    stored, read = 0, 0
    for tensor in model.graph.initializer:
        size = sum(int(entry.value) for entry in tensor.external_data if entry.key == "length")
        stored += size
        read += size if tensor.name in whole else 0
    return stored, read


@pytest.mark.usefixtures("_zeros_once")
@pytest.mark.parametrize("shape", ["tiny", "0.6b"])
def test_nodes_and_bytes_of_the_graphs(shape: str) -> None:
    nodes: Numbers = {}
    stored: Numbers = {}
    read: Numbers = {}
    for name, model in graphs(shape):
        counts = Counter(node.op_type for node in model.graph.node)
        nodes |= {f"{name}: {kind}": count for kind, count in counts.items()}
        stored[name], read[name] = weight_bytes(model)
    check(f"nodes of the {shape} graphs", nodes)
    check(f"bytes of weights that the {shape} graphs store", stored)
    check(f"bytes of weights that a run of the {shape} graphs reads", read)


# --- runs ------------------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """What the sessions of a model were asked for."""

    encoder_runs: int = 0
    windows: int = 0
    decoder_runs: int = 0
    tokens_fed: int = 0
    heads: int = 0  # positions whose logits were computed
    texts: list[str] = field(default_factory=list)


class CountingEncoder:
    """See :class:`qwen3asr.sessions.base.EncoderSession`."""

    def __init__(self, session: EncoderSession, counted: Counted) -> None:
        self._session, self._counted, self.batch_windows = session, counted, session.batch_windows

    def run(self, mel: Mel, frames: Ids) -> Embeddings:
        self._counted.encoder_runs += 1
        self._counted.windows += len(mel)
        return self._session.run(mel, frames)

    def close(self) -> None:
        self._session.close()


class CountingDecoder:
    """See :class:`qwen3asr.sessions.base.DecoderSession`."""

    def __init__(self, session: DecoderSession, counted: Counted) -> None:
        self._session, self._counted = session, counted
        self.slots, self.capacity, self.slot_bytes = session.slots, session.capacity, session.slot_bytes

    def run(self, ids: Ids, audio: Embeddings, take: Ids, slots: range, past: Ids) -> Picked:
        self._counted.decoder_runs += 1
        self._counted.tokens_fed += ids.size
        self._counted.heads += take.size
        return self._session.run(ids, audio, take, slots, past)

    def swap(self, first: int, second: int, tokens: int) -> None:
        self._session.swap(first, second, tokens)

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def counted(asr_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[qwen3asr.Recognizer, Counted]]:
    counted = Counted()
    with qwen3asr.load(asr_bundle, slots=1, threads=1) as model:
        encoder, decoder = model.engine.encoder, model.engine.decoder
        monkeypatch.setattr(encoder, "_session", CountingEncoder(encoder._session, counted))
        monkeypatch.setattr(decoder, "_session", CountingDecoder(decoder._session, counted))
        yield model, counted


def a_second(model: qwen3asr.Recognizer, counted: Counted, seconds: float) -> Numbers:
    """Counts over seconds of audio, and heads over tokens written."""
    done = model.metrics.snapshot()
    assert done.windows == counted.windows  # the engine's own counters say the same
    assert done.prompt_tokens + done.step_rows == counted.tokens_fed
    counts = {name: count for name, count in asdict(counted).items() if name != "texts"}
    numbers: Numbers = {f"{name} a second of audio": round(count / seconds, 4) for name, count in counts.items()}
    return numbers | {"heads a token written": round(counted.heads / done.tokens, 4)}


def test_work_of_a_file(counted: tuple[qwen3asr.Recognizer, Counted], recordings: dict[str, Recording]) -> None:
    model, counts = counted
    long = recordings["english-long"]
    result = model.transcribe(long.path)
    assert result.finish_reason == "stop"
    numbers = a_second(model, counts, result.duration)
    check("a file of 12.6 s", numbers | {"session runs": counts.encoder_runs + counts.decoder_runs}, SLACK)


def test_work_of_a_stream(counted: tuple[qwen3asr.Recognizer, Counted], recordings: dict[str, Recording]) -> None:
    model, counts = counted
    samples = qwen3asr.read_audio(recordings["english-long"].path).samples
    settings = qwen3asr.StreamSettings(step_seconds=1.0)
    with model.stream(settings=settings) as stream:
        list(stream.run(np.split(samples, range(8_000, len(samples), 8_000))))
        work = stream.work
    numbers = a_second(model, counts, len(samples) / 16_000)
    numbers |= {
        f"stream: {name}": value for name, value in asdict(work).items() if name in ("steps", "windows", "frames")
    }
    check("a stream of 12.6 s", numbers, SLACK)
