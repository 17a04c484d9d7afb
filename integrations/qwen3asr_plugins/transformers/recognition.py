"""Speech to text as transformers' ``automatic-speech-recognition``, over a bundle or transformers' own model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, TypedDict

import numpy as np

from qwen3asr import LANGUAGES, Audio, AudioInput, Recognizer, Transcript, read_audio
from qwen3asr.errors import RequestInvalid

from .clips import ClipPipeline, audio_input, timed
from .models import Qwen3ASRModel

_log = logging.getLogger("qwen3asr")

_GENERATE = {"language": "language", "prompt": "context", "max_new_tokens": "max_new_tokens"}
"""What ``generate_kwargs`` takes, under the names of transformers' processor, and what the recogniser calls it."""
_TOKENS_A_SECOND, _LEAST_TOKENS = 12, 64
"""Budget of the torch model where none is given: more than anyone speaks."""


class Parameters(TypedDict, total=False):
    """What a speech recognition pipeline takes when it is made, and again at each call.

    Attributes:
        return_timestamps: ``True`` for the times of segments, ``"word"`` for those of words, which need the aligner.
        return_language: name the language, of the clip and of each chunk.
        return_finish_reason: tell how decoding ended: ``"length"`` of a text that was cut, which is logged as well.
        chunk_length_s: the longest pass in seconds; 0 for the default.
        stride_length_s: accepted, and has no effect: pieces are cut at pauses and need no overlap.
        generate_kwargs: ``language``, ``prompt`` (background text and hot words), ``max_new_tokens``.
        batch_size: clips in one batch of the torch model. Of a bundle, its slots are decoded together, whatever the
            batch size: ``model_kwargs={"slots": 8}``.
    """

    return_timestamps: Literal["word"] | bool
    return_language: bool
    return_finish_reason: bool
    chunk_length_s: float
    stride_length_s: float | tuple[float, float] | list[float]
    generate_kwargs: Mapping[str, Any]
    batch_size: int


class Qwen3ASRPipeline(ClipPipeline):
    """Speech to text, with the inputs and outputs of transformers' ``automatic-speech-recognition``.

    Args:
        model: a :class:`Qwen3ASRModel`, a :class:`qwen3asr.Recognizer`, or transformers'
            ``Qwen3ASRForConditionalGeneration`` (with ``processor``), which is run one pass a clip, without times.
        processor: of the torch model.
        device: of the torch model; by default the first GPU there is.
        parameters: :class:`Parameters`, and what every ``Pipeline`` takes.

    Raises:
        RequestInvalid: the model is none of these, or does not do what the parameters ask for.
    """

    _load_processor = None  # the torch model needs one; transformers loads it where model is a path

    def __init__(self, model: Any, processor: Any = None, device: Any = None, **parameters: Any) -> None:
        if isinstance(model, Recognizer):
            model = Qwen3ASRModel(model)
        if not isinstance(model, Qwen3ASRModel) and not hasattr(processor, "apply_transcription_request"):
            raise RequestInvalid(
                f"{type(model).__name__} cannot transcribe here; give a bundle, what qwen3asr.load returns, or "
                "Qwen3ASRForConditionalGeneration with processor=AutoProcessor.from_pretrained(...)"
            )
        super().__init__(model, processor, device, **parameters)

    def _sanitize_parameters(
        self, return_timestamps: object = None, return_language: bool | None = None,
        return_finish_reason: bool | None = None, chunk_length_s: float | None = None, stride_length_s: object = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        **generation: Any,  # transformers takes every other parameter of a pipeline for one of generate()
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:  # fmt: skip
        forward, after = _generate_options({**(generate_kwargs or {}), **generation}), {}
        if return_timestamps is not None:
            if return_timestamps not in (True, False, "word"):
                raise RequestInvalid(f"return_timestamps={return_timestamps!r} is not known; give True or 'word'")
            self._check_exported("times", return_timestamps)
            forward["timestamps"] = "word" if return_timestamps == "word" else None
            after["return_timestamps"] = return_timestamps
        if return_language is not None:
            after["return_language"] = return_language
        if return_finish_reason is not None:
            after["return_finish_reason"] = return_finish_reason
        if chunk_length_s is not None:
            self._check_exported("chunk_length_s", chunk_length_s)
            forward["piece_seconds"] = chunk_length_s or None
        if stride_length_s:
            _log.info("stride_length_s has no effect: pieces are cut at pauses and need no overlap")
        return {}, forward, after

    def _check_exported(self, what: str, asked: object) -> None:
        if asked and not isinstance(self.model, Qwen3ASRModel):
            raise RequestInvalid(
                f"the torch model has no {what}: it decodes each clip in one pass; give an exported bundle instead "
                "(qwen3asr export), for word times with aligner="
            )

    def preprocess(self, given: Any) -> AudioInput:
        """Any of the forms that transformers takes, as one that qwen3asr reads.

        Raises:
            RequestInvalid: a ``"stride"``, which is for overlapping pieces.
        """
        return audio_input(given)

    def postprocess(
        self, transcript: Transcript, return_timestamps: Literal["word"] | bool = False, return_language: bool = False,
        return_finish_reason: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """``{"text"}``, and as asked ``"language"``, ``"finish_reason"``, ``"chunks": [{"text", "timestamp"}]``.

        A timestamp is ``(start, end)`` in seconds.

        A word is without the punctuation around it; ``"text"`` has it all. A text that could not be aligned, which is
        logged, has no chunks of words.
        """
        result: dict[str, Any] = {"text": transcript.text}
        if return_language:
            result["language"] = transcript.language
        if return_finish_reason:
            result["finish_reason"] = transcript.finish_reason
        if return_timestamps:
            result["chunks"] = [
                timed(part) | ({"language": segment.language} if return_language else {})
                for segment in transcript.segments
                for part in (segment.words if return_timestamps == "word" else (segment,))
            ]
        return result

    def _each(
        self, prepared: Iterator[AudioInput], batch_size: int, options: Mapping[str, Any]
    ) -> Iterator[Transcript]:
        if isinstance(self.model, Qwen3ASRModel):
            return (_raised(result) for result in self.model.recognizer.transcribe_each(prepared, **options))
        batches = iter(lambda: [read_audio(audio) for audio in islice(prepared, batch_size)], [])
        return (transcript for batch in batches for transcript in self._torch_batch(batch, options))

    def _torch_batch(self, clips: list[Audio], options: Mapping[str, Any]) -> Iterator[Transcript]:
        """The way of transformers' documentation: transcription request, generate, decode what is new."""
        language, budget = options.get("language"), options.get("max_new_tokens")
        if budget is None:
            budget = int(max(clip.duration for clip in clips) * _TOKENS_A_SECOND) + _LEAST_TOKENS
        inputs = self.processor.apply_transcription_request(
            [clip.samples for clip in clips], language=language, prompt=options.get("context") or None
        ).to(self.device, self.model.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=budget)[:, inputs["input_ids"].shape[1] :]
        said = self.processor.decode(ids, return_format="parsed")
        for clip, row, parsed in zip(clips, ids.tolist(), said, strict=True):
            ended = bool(np.isin(row, self.model.generation_config.eos_token_id).any())
            if not ended:
                _log.warning("%s: the text is cut at %d tokens; give a larger max_new_tokens", clip.name, budget)
            named = _language_name(language) or parsed["language"]
            yield Transcript(parsed["transcription"], named, clip.duration, "stop" if ended else "length")


def _generate_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The recogniser's options; ``None`` of transformers' prompt is no context."""
    if unknown := sorted(given.keys() - _GENERATE):
        raise RequestInvalid(
            f"{', '.join(unknown)}: not known here; decoding is greedy, and generate_kwargs takes "
            f"{', '.join(_GENERATE)}; what qwen3asr.load takes goes into model_kwargs"
        )
    for name in given.keys() & {"language", "prompt"}:
        if not isinstance(given[name], str | None):
            raise RequestInvalid(f"{name}={given[name]!r} is no text; give one for all clips, or call for each")
    options = {_GENERATE[name]: value for name, value in given.items()}
    return options | ({"context": options["context"] or ""} if "context" in options else {})


def _raised(result: Transcript | Exception) -> Transcript:
    if isinstance(result, Exception):
        raise result
    return result


def _language_name(language: str | None) -> str | None:
    """The name of a language that transformers' processor took by name or code."""
    if language is None:
        return None
    return next((name for name, code in LANGUAGES.items() if language.casefold() in (name.casefold(), code)), language)
