"""What a client may set in a transcription session, as OpenAI's realtime protocol names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen3asr.errors import EventInvalid
from qwen3asr.segmenter import StreamSettings

_STREAM = StreamSettings()
_Name: TypeAlias = Annotated[str, Field(max_length=200)]
_COMMITTED = StreamSettings(pre_roll=5.0)  # what a client commits is heard from its start; only long silence is not
_WHOLE = {"format", "turn_detection"}  # of several kinds: what is left out gets its default, not its old value


class _Strict(BaseModel):
    """What it does not know is refused by name: a client should not wait for what is not offered."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pcm(_Strict):
    """16-bit mono samples, little-endian; ``rate`` in Hz."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Annotated[int, Field(ge=8_000, le=48_000)] = 24_000


class G711(_Strict):
    """8 kHz mono samples of one byte: mu-law (``pcmu``) or A-law (``pcma``)."""

    type: Literal["audio/pcmu", "audio/pcma"]

    @property
    def rate(self) -> int:
        """In Hz."""
        return 8_000


AudioFormat: TypeAlias = Annotated[Pcm | G711, Field(discriminator="type")]


class Transcription(_Strict):
    """What is known of the speech: ``language`` is a name or a code; ``prompt`` and ``keywords`` say what may occur."""

    model: _Name | None = None
    language: _Name | None = None
    prompt: Annotated[str, Field(max_length=10_000)] = ""
    keywords: Annotated[tuple[_Name, ...], Field(max_length=100)] = ()

    @property
    def context(self) -> str:
        """For the model."""
        return "\n".join(part for part in (self.prompt, ", ".join(self.keywords)) if part)


class ServerVad(_Strict):
    """The server finds where turns begin and end. The defaults are those of :class:`qwen3asr.StreamSettings`."""

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0.01, le=0.99)] = _STREAM.threshold
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5_000)] = round(1000 * _STREAM.pre_roll)
    silence_duration_ms: Annotated[int, Field(ge=150, le=10_000)] = round(1000 * _STREAM.end_silence)


class AudioInput(_Strict):
    """``turn_detection`` is null where the client commits its turns."""

    format: AudioFormat = Pcm()
    transcription: Transcription = Transcription()
    turn_detection: ServerVad | None = ServerVad(type="server_vad")
    noise_reduction: None = None


class Audio(_Strict):
    """Only what comes in."""

    input: AudioInput = AudioInput()


class SessionConfig(_Strict):
    """One session's settings; ``include`` may ask for ``qwen3asr.partial`` events."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: tuple[Literal["qwen3asr.partial"], ...] | None = None

    @property
    def turns(self) -> ServerVad | None:
        """How turns are found; ``None``: by the client."""
        return self.audio.input.turn_detection

    @property
    def partials(self) -> bool:
        """Whether text that may still change is told too."""
        return "qwen3asr.partial" in (self.include or ())

    def updated(self, changes: object) -> SessionConfig:
        """With the fields that ``changes`` has, and the others as they are.

        Raises:
            EventInvalid: a field that is not offered, or a value out of its range; names it.
        """
        if not isinstance(changes, dict):
            raise EventInvalid("session.update needs a session object", "missing_required_parameter", "session")
        try:
            return SessionConfig.model_validate(_merged(self.model_dump(mode="json"), changes))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            param = ".".join(["session", *(str(part)[:80] for part in first["loc"])])
            raise EventInvalid(f"{param}: {first['msg'][:500]}", "invalid_value", param) from error

    def stream_settings(self) -> StreamSettings:
        """How the stream is to listen."""
        if self.turns is None:
            return _COMMITTED
        return StreamSettings(
            threshold=self.turns.threshold,
            pre_roll=self.turns.prefix_padding_ms / 1000,
            end_silence=self.turns.silence_duration_ms / 1000,
            announce=True,
        )


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(old)
    for name, value in new.items():
        before = old.get(name)
        inside = isinstance(before, dict) and isinstance(value, dict) and name not in _WHOLE
        both[name] = _merged(before or {}, value) if inside else value
    return both
