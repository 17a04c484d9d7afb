"""ONNX Runtime's providers as contenders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from gpu_contender import Graphs, Logits, Notes
from gpu_machine import Widths
from gpu_models import bundle_of
from onnx import TensorProto, helper

import qwen3asr
from qwen3asr.bundle import Bundle
from qwen3asr.decoder import PREFILL_CHUNK, Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.precisions import PRECISIONS
from qwen3asr.prompt import Prompt
from qwen3asr.sessions.base import Ids
from qwen3asr.sessions.device import ENCODER_WINDOWS, DeviceDecoder, encoder_shapes
from qwen3asr.sessions.onnxruntime import OrtEncoder
from qwen3asr.sessions.pieces import Limits, cut_row
from qwen3asr.sessions.providers import CPU, PROVIDERS, Provider, check_available


@dataclass(frozen=True, slots=True)
class OrtContender:
    """See :class:`gpu_contender.Contender`.

    Attributes:
        provider: as ``provider=`` of :func:`qwen3asr.load`, or ``cpu``.
        precision: of the bundle.
        dialect: of its decoder.
        graphs: steps are captured as CUDA graphs.
    """

    provider: str
    precision: str
    dialect: str
    graphs: bool = False

    @property
    def name(self) -> str:
        """See :class:`gpu_contender.Contender`."""
        return f"{self.provider} {self.precision} {self.dialect}{' captured' if self.graphs else ''}"

    @property
    def widths(self) -> Widths:
        """See :class:`gpu_contender.Contender`."""
        width = PRECISIONS[self.precision].cache_bytes
        return Widths(width, width)

    def bundle(self, model: str, work: Path) -> Bundle:
        """See :class:`gpu_contender.Contender`."""
        return bundle_of(model, self.precision, self.dialect, work)

    def open(self, model: str, work: Path, *, slots: int, capacity: int) -> Graphs:
        """See :class:`gpu_contender.Contender`."""
        bundle, cache = self.bundle(model, work), work / "engines" / model
        spec, path = bundle.spec, bundle.component("decoder")
        provider = self._provider(cache, graphs=False).shaped(encoder_shapes(spec.windows, ENCODER_WINDOWS))
        encoder = OrtEncoder(bundle.component("encoder"), provider=provider, batch_windows=ENCODER_WINDOWS)
        stepping = self._provider(cache, graphs=self.graphs)
        decoder = DeviceDecoder(path, spec, stepping, slots=slots, capacity=capacity)
        return Graphs(Encoder(encoder, spec.windows), Decoder(decoder, spec.audio_pad, spec.hidden))

    def logits(self, model: str, work: Path, capacity: int) -> Logits | None:
        """See :class:`gpu_contender.Contender`: the decoder's inner logits are made an output."""
        bundle, cache = self.bundle(model, work), work / "engines" / model
        spec, path = bundle.spec, bundle.component("decoder")
        provider = self._provider(cache, graphs=False)
        session = DeviceDecoder(with_logits(path), spec, provider, slots=1, capacity=capacity, weights=path.parent)
        return lambda prompt, keep: _logits(session, prompt, keep, spec.audio_pad)

    def load(self, model: str, work: Path, slots: int) -> tuple[qwen3asr.Recognizer, Notes]:
        """See :class:`gpu_contender.Contender`."""
        on_cpu = self.provider == "cpu"
        loaded = qwen3asr.load(
            self.bundle(model, work).folder, device="cpu" if on_cpu else "cuda", engine="onnxruntime", slots=slots,
            provider=None if on_cpu else self.provider, provider_cache=work / "engines" / "words",
            cuda_graphs=self.graphs,
        )  # fmt: skip
        return loaded, {}

    def _provider(self, cache: Path, *, graphs: bool) -> Provider:
        """Checked to be here."""
        if self.provider == "cpu":
            return CPU
        cache.mkdir(parents=True, exist_ok=True)
        provider = PROVIDERS[self.provider](0, self.precision, cache, graphs=graphs)
        check_available(provider)
        return provider


def with_logits(graph: Path) -> bytes:
    """A decoder whose inner logits are an output, its weights left where they are."""
    model = onnx.load(graph, load_external_data=False)
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "taken", "classes"]))
    content: bytes = model.SerializeToString()
    return content


def _logits(session: DeviceDecoder, prompt: Prompt, keep: Ids, pad: int) -> npt.NDArray[np.float32]:
    """In chunks, as the loop feeds them and the session takes them."""
    before = np.concatenate([[0], np.cumsum(prompt.ids == pad)])
    parts = []
    for piece in cut_row(len(prompt.ids), keep, session.limits or Limits(PREFILL_CHUNK, PREFILL_CHUNK)):
        ids, audio = prompt.ids[piece.start : piece.stop], prompt.audio[before[piece.start] : before[piece.stop]]
        out = session.logits(ids[None], audio, piece.take[None], range(1), np.array([piece.start]))[0]
        parts.append(out[: len(piece.taken)])
    return np.concatenate(parts)
