"""Forced alignment as a pipeline: when each word of a known text is spoken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen3asr import Aligner, Recognizer, Word
from qwen3asr.errors import RequestInvalid

from .clips import ClipPipeline, audio_input, timed
from .models import Qwen3AlignerModel


class Qwen3AlignmentPipeline(ClipPipeline):
    """When each word of a known text is spoken.

        aligned = pipe("take3.flac", text="What the speaker says.", language="English")
        aligned = pipe([{"audio": "take3.flac", "text": "What the speaker says."}, ...])

    Args:
        model: a :class:`Qwen3AlignerModel`, a :class:`qwen3asr.Aligner`, or a :class:`qwen3asr.Recognizer` loaded with
            an aligner, which aligns audio of any length.
        parameters: ``text`` and ``language`` for inputs that have none, and what every ``Pipeline`` takes.

    Raises:
        RequestInvalid: the model is none of these.
    """

    _load_processor = False

    def __init__(self, model: Any, **parameters: Any) -> None:
        if isinstance(model, Aligner | Recognizer):
            model = Qwen3AlignerModel(model)
        if not isinstance(model, Qwen3AlignerModel):
            raise RequestInvalid(
                f"{type(model).__name__} cannot align; give an aligner's bundle, or what qwen3asr.load_aligner returns"
            )
        super().__init__(model, **parameters)

    def _sanitize_parameters(
        self, text: str | None = None, language: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"text": text, "language": language}
        return {name: value for name, value in given.items() if value is not None}, {}, {}

    def preprocess(self, given: Any, text: str | None = None, language: str | None = None) -> dict[str, Any]:
        """``{"audio", "text", "language"}``, or audio alone where the text is given for the call.

        Raises:
            RequestInvalid: there is no text.
        """
        if isinstance(given, Mapping) and "audio" in given:
            text, language = given.get("text", text), given.get("language", language)
            given = given["audio"]
        if not isinstance(text, str):
            raise RequestInvalid('there is no text to align; give {"audio": ..., "text": ...}, or the argument text=')
        return {"audio": audio_input(given), "text": text, "language": language}

    def postprocess(self, words: tuple[Word, ...]) -> list[dict[str, Any]]:
        """``[{"text", "timestamp": (start, end)}]``, times in seconds."""
        return [timed(word) for word in words]

    def _each(
        self, prepared: Iterator[dict[str, Any]], batch_size: int, options: Mapping[str, Any]
    ) -> Iterator[tuple[Word, ...]]:
        """One after the other, as the aligner itself would."""
        return (self.model.aligner.align(said["audio"], said["text"], language=said["language"]) for said in prepared)
