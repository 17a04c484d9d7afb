"""From a folder to a model: checks the bundles and chooses the backend."""

from __future__ import annotations

import os
from pathlib import Path

from qwen3asr.aligner import Aligner, AlignerLimits
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import BundleInvalid, DeviceUnavailable, ExtraMissing, RequestInvalid
from qwen3asr.precisions import PRECISIONS, for_device
from qwen3asr.prompt import PromptBuilder
from qwen3asr.recognizer import Recognizer
from qwen3asr.tokenizer import open_tokenizer

ASR_CAPACITY = 8_192
"""Default KV-cache tokens of the recogniser: seven minutes of audio and their text."""
ALIGNER_CAPACITY = 12_288
"""KV-cache tokens of the aligner: the 400 s that its classes can address, and 7,000 tokens of words."""


def load(
    bundle: str | os.PathLike[str],
    *,
    aligner: str | os.PathLike[str] | None = None,
    device: str = "auto",
    threads: int = 0,
    capacity: int | None = None,
    share_weights: bool = False,
    check_hashes: bool = False,
) -> Recognizer:
    """Load a recogniser.

    Args:
        bundle: folder that ``qwen3asr export`` wrote.
        aligner: folder of a forced aligner's bundle, for word times.
        device: ``"cpu"``, or ``"auto"`` for the best there is.
        threads: threads of one operator; 0: one a physical core.
        capacity: tokens of the recogniser's KV cache, which bound the longest clip (13 a second of audio, and
            the text). Memory is taken as it is used.
        share_weights: leave the decoder's weights in the mapped file, so that processes share them and loading is
            quick; decoding takes up to two thirds more time. For fp32 bundles only.
        check_hashes: compare every file's SHA-256 first (seconds a gigabyte).

    Raises:
        BundleNotFound, BundleInvalid, BundleTooNew, BundleKindWrong, BundleFileMissing, BundleFileDamaged,
        ConfigInvalid: the bundle cannot be used; the message says why.
        DeviceUnavailable: the device cannot be used, or does not run the bundle's precision.
        ExtraMissing: ONNX Runtime is not installed.
        RequestInvalid: capacity or threads make no sense, or the bundle's weights cannot be shared.
    """
    _check_settings(device, threads)
    opened = open_bundle(Path(bundle), kind="asr", check_hashes=check_hashes)
    _check_precision(opened, share_weights)
    room, tokenizer = _capacity(opened, capacity, ASR_CAPACITY), open_tokenizer(opened.folder, opened.spec)
    words = None
    if aligner is not None:
        words = load_aligner(
            aligner, device=device, threads=threads, share_weights=share_weights, check_hashes=check_hashes
        )
    return Recognizer(opened, tokenizer, *_graphs(opened, room, threads, share_weights), words)


def load_aligner(
    bundle: str | os.PathLike[str],
    *,
    device: str = "auto",
    threads: int = 0,
    share_weights: bool = False,
    check_hashes: bool = False,
) -> Aligner:
    """Load a forced aligner by itself, to align text that is known already.

    Arguments and errors are those of :func:`load`.
    """
    _check_settings(device, threads)
    opened = open_bundle(Path(bundle), kind="aligner", check_hashes=check_hashes)
    _check_precision(opened, share_weights)
    prompts = PromptBuilder(open_tokenizer(opened.folder, opened.spec))
    class_ms = float(opened.config("processor_config.json").get("timestamp_segment_time", 80.0))
    graphs = _graphs(opened, _capacity(opened, None, ALIGNER_CAPACITY), threads, share_weights)
    return Aligner(*graphs, prompts, AlignerLimits(opened.spec.classes, class_ms))


def _check_settings(device: str, threads: int) -> None:
    if device not in ("auto", "cpu"):
        raise DeviceUnavailable(f"device={device!r} is not available; this version runs on 'cpu'")
    if threads < 0:
        raise RequestInvalid(f"threads={threads} makes no sense; give 0 for one a core, or a positive number")


def _check_precision(bundle: Bundle, share_weights: bool) -> None:
    name, here = bundle.manifest.precision, "cpu"
    if name not in PRECISIONS:
        raise BundleInvalid(
            f"{bundle.folder} has the precision {name!r}, which this version does not know; "
            "upgrade with: pip install -U qwen3asr"
        )
    if here not in PRECISIONS[name].devices:
        raise DeviceUnavailable(
            f"{bundle.folder} has the precision {name}, which runs on {' and '.join(PRECISIONS[name].devices)}, not on "
            f"the CPU; export the checkpoint again with --precision {', '.join(for_device(here))} or auto"
        )
    if share_weights and name != "fp32":
        raise RequestInvalid(
            f"share_weights needs an fp32 bundle, and {bundle.folder} is {name}, whose weights "
            "the kernels copy into their own order; leave share_weights out"
        )


def _capacity(bundle: Bundle, wanted: int | None, default: int) -> int:
    limit = bundle.manifest.limits["positions"]
    if wanted is None:
        return min(default, limit)
    if not 1 <= wanted <= limit:
        raise RequestInvalid(f"capacity={wanted} is outside of this model's 1 to {limit} tokens")
    return wanted


def _graphs(bundle: Bundle, capacity: int, threads: int, share_weights: bool) -> tuple[Encoder, Decoder]:
    try:
        from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ExtraMissing("running on the CPU", "onnxruntime", "cpu") from error
    spec = bundle.spec
    decoder = OrtDecoder(
        bundle.component("decoder"), spec, slots=1, capacity=capacity, threads=threads, mapped=share_weights
    )
    encoder = OrtEncoder(bundle.component("encoder"), threads=threads)
    return Encoder(encoder, spec.windows), Decoder(decoder, spec.audio_pad, spec.hidden)
