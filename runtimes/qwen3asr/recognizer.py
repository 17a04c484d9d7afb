"""The model as its users see it: transcribe and align."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal

import numpy as np

from qwen3asr.aligner import Aligner
from qwen3asr.audio import Audio, AudioInput, read_audio
from qwen3asr.bundle import Bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.errors import AlignerMissing, AudioTooLong, ExtraMissing, RequestInvalid
from qwen3asr.features import frame_count, log_mel
from qwen3asr.generate import Generation, generate
from qwen3asr.languages import ALIGNER_LANGUAGES, resolve, resolve_for_aligner
from qwen3asr.postprocess import parse_output
from qwen3asr.prompt import PromptBuilder
from qwen3asr.subtitles import segments_of
from qwen3asr.tokenizer import Tokenizer
from qwen3asr.transcript import Transcript
from qwen3asr.types import Word
from qwen3asr.words import check_splitter

_log = logging.getLogger("qwen3asr")
_EXPECTED_TOKENS_A_SECOND = 12
"""More than anyone speaks: the default budget cuts loops, not speech."""
_LEAST_TOKENS_A_SECOND = 6
"""Fast speech: where the KV cache leaves less room than this, the clip is refused."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A transcription whose arguments were found good."""

    language: str | None
    context: str
    align: bool
    max_new_tokens: int | None


class Recognizer:
    """A loaded recogniser, perhaps with a forced aligner. Made by :func:`qwen3asr.load`.

    Safe to share between threads; requests run one after the other.
    """

    def __init__(
        self, bundle: Bundle, tokenizer: Tokenizer, encoder: Encoder, decoder: Decoder, aligner: Aligner | None = None
    ) -> None:
        self.bundle = bundle
        self._tokenizer, self._encoder, self._decoder, self._aligner = tokenizer, encoder, decoder, aligner
        self._prompts = PromptBuilder(tokenizer)
        self._lock = Lock()

    def transcribe(
        self,
        audio: AudioInput,
        *,
        language: str | None = None,
        context: str = "",
        timestamps: Literal["word"] | None = None,
        max_new_tokens: int | None = None,
        sample_rate: int | None = None,
    ) -> Transcript:
        """Speech to text.

        Args:
            audio: path, bytes, binary file, array (mono or multi-channel), ``(array, rate)``, or a
                ``datasets`` dict; see :func:`qwen3asr.audio.read_audio`.
            language: name or ISO code to force (``"German"``, ``"de"``); ``None`` detects it.
            context: background text or hot words that the speech may contain.
            timestamps: ``"word"`` for word times, which need the aligner.
            max_new_tokens: budget of text tokens; by default far more than the audio can hold.
            sample_rate: rate of a bare array in Hz (16000 if not given).

        Returns:
            The transcript. ``finish_reason`` is ``"length"`` where the budget cut the text, ``"no_speech"``
            where nothing was said. A text that turns out not to be alignable (its detected language is none of
            the aligner's, say) comes without words, and the reason is logged as a warning.

        Raises:
            Qwen3AsrError: a subclass for each cause; arguments are checked before any work is done.
        """
        request = self._request(language, context, timestamps, max_new_tokens)
        clip = read_audio(audio, sample_rate)
        if request.align and self._aligner is not None:
            self._aligner.check_duration(clip.duration)
        budget = self._budget(clip, request)
        with self._lock:
            (embeddings,) = self._encoder.encode([log_mel(clip.samples)])
            prompt = self._prompts.transcription(embeddings, request.context, request.language)
            generation = generate(self._decoder, prompt, eos=self.bundle.spec.eos, budget=budget)
        transcript = self._transcript(clip, request, generation)
        return self._with_words(clip, request, generation, transcript)

    def align(
        self, audio: AudioInput, text: str, *, language: str | None = None, sample_rate: int | None = None
    ) -> tuple[Word, ...]:
        """Times of the words of a known text: :meth:`qwen3asr.aligner.Aligner.align` of this model's aligner.

        Raises:
            AlignerMissing: the model was loaded without one.
        """
        if self._aligner is None:
            raise AlignerMissing
        return self._aligner.align(audio, text, language=language, sample_rate=sample_rate)

    def check(
        self,
        *,
        language: str | None = None,
        context: str = "",
        timestamps: Literal["word"] | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        """Refuse arguments of :meth:`transcribe` that no audio can make good; for those who have many files.

        Raises:
            Qwen3AsrError: as :meth:`transcribe`.
        """
        self._request(language, context, timestamps, max_new_tokens)

    def _request(self, language: str | None, context: str, timestamps: object, max_new_tokens: int | None) -> _Request:
        if timestamps not in (None, "word"):
            raise RequestInvalid(f"timestamps={timestamps!r} is not known; give 'word' or None")
        if timestamps and self._aligner is None:
            raise AlignerMissing
        if max_new_tokens is not None and max_new_tokens < 1:
            raise RequestInvalid(f"max_new_tokens={max_new_tokens} writes nothing; give at least 1, or None")
        self._prompts.check_context(context)
        name = resolve_for_aligner(language) if timestamps else resolve(language)
        if timestamps:
            check_splitter(name)
        return _Request(name, context, timestamps == "word", max_new_tokens)

    def _budget(self, clip: Audio, request: _Request) -> int:
        """Text tokens that may be written; what does not fit the KV cache is refused before the encoder runs."""
        windows = self.bundle.spec.windows
        audio_tokens = windows.tokens(frame_count(len(clip.samples)))
        frame = self._prompts.length(0, request.context, request.language)
        room = self._decoder.capacity - frame - audio_tokens
        if request.max_new_tokens is not None:
            if room < request.max_new_tokens:
                raise RequestInvalid(
                    f"max_new_tokens={request.max_new_tokens} and {clip.duration:.1f} s of audio do not fit the KV "
                    f"cache together; {max(room, 0)} would; load the model with a larger capacity="
                )
            return request.max_new_tokens
        if room < _LEAST_TOKENS_A_SECOND * (clip.duration + 1):
            audio_a_second = windows.chunk_tokens / windows.chunk_frames * 100
            limit = (self._decoder.capacity - frame - _LEAST_TOKENS_A_SECOND) / (
                audio_a_second + _LEAST_TOKENS_A_SECOND
            )
            raise AudioTooLong(clip.duration, max(limit, 0.0))
        return min(room, 32 + math.ceil(clip.duration * _EXPECTED_TOKENS_A_SECOND))

    def _transcript(self, clip: Audio, request: _Request, generation: Generation) -> Transcript:
        raw, finish = self._tokenizer.decode(generation.tokens), generation.finish_reason
        if finish == "length":
            cure = "raise max_new_tokens" if request.max_new_tokens else "load the model with a larger capacity="
            _log.warning("%s: the text is cut after %d tokens; %s", clip.name, len(generation.tokens), cure)
            raw = raw.rstrip("\ufffd")  # the cut may go through a character
            if request.language is None and self._tokenizer.asr_text not in generation.tokens:
                raw = ""  # only the beginning of "language ..." was written
        language, text = parse_output(raw, request.language)
        if finish == "stop" and not text:
            finish = "no_speech"
        logprobs = generation.logprobs[self._header(generation) :]
        confidence = math.exp(float(np.mean(logprobs))) if text and logprobs else None
        return Transcript(text, language, clip.duration, finish, segments_of(text, (), clip.duration), confidence)

    def _header(self, generation: Generation) -> int:
        """Tokens of "language German<asr_text>", which are not text."""
        tag = self._tokenizer.asr_text
        return generation.tokens.index(tag) + 1 if tag in generation.tokens else 0

    def _with_words(self, clip: Audio, request: _Request, generation: Generation, transcript: Transcript) -> Transcript:
        """Add word times; a text that cannot be aligned is kept without them, and the reason is logged."""
        if not request.align or self._aligner is None or not transcript.text:
            return transcript
        if transcript.language is not None and transcript.language not in ALIGNER_LANGUAGES:
            _log.warning("%s: no word times: the forced aligner does not know %s", clip.name, transcript.language)
            return transcript
        try:
            words = self._aligner.align_samples(clip.samples, transcript.text, transcript.language)
        except (AudioTooLong, ExtraMissing) as error:  # of a text that only now is known
            _log.warning("%s: no word times: %s", clip.name, error)
            return transcript
        scores = self._confidences(generation, transcript.text, words)
        scored = tuple(replace(word, confidence=score) for word, score in zip(words, scores, strict=True))
        return replace(transcript, segments=segments_of(transcript.text, scored, clip.duration))

    def _confidences(self, generation: Generation, text: str, words: Sequence[Word]) -> list[float | None]:
        """Geometric mean probability of the tokens that wrote each word."""
        raw, spans = self._tokenizer.join(generation.tokens)
        offset = raw.rfind(text)
        if offset < 0:  # a repetition was taken out: characters and tokens no longer correspond
            return [None] * len(words)
        scores: list[float | None] = []
        for word in words:
            first, last = word.span[0] + offset, word.span[1] + offset
            pairs = zip(spans, generation.logprobs, strict=True)
            inside = [logprob for (start, end), logprob in pairs if start < last and end > first]
            scores.append(math.exp(float(np.mean(inside))) if inside else None)
        return scores
