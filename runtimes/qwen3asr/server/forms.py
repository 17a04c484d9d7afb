"""The parameters of requests, as OpenAI's clients send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import FormData

from qwen3asr.errors import ModelUnknown, ParameterInvalid

Form = TypeVar("Form", bound=BaseModel)
Name: TypeAlias = Annotated[str, Field(max_length=200)]
LISTS = ("include", "timestamp_granularities")
"""Parameters that may be given several times, as ``NAME[]``."""


class TranscriptionForm(BaseModel):
    """``POST /v1/audio/transcriptions``; parameters that it does not know are ignored.

    Attributes:
        model: the server's model.
        language: name or ISO code of the language spoken; by default it is detected.
        prompt: names and terms that may occur.
        response_format: how the transcript is written.
        timestamp_granularities: what gets times in ``verbose_json``; words need an aligner.
        stream: send the text as it is decoded, as server-sent events.
        temperature: taken and not used: decoding is greedy.
        include: must be empty.
    """

    model: Name
    language: Name | None = None
    prompt: str = Field(default="", max_length=10_000)  # it is tokenised on the event loop
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    timestamp_granularities: list[Literal["segment", "word"]] = Field(default=["segment"])
    stream: bool = False
    temperature: float = Field(default=0.0, ge=0.0, le=1.0)
    include: list[Name] = Field(default=[])

    def check(self, model_name: str) -> Self:
        """Refuse what does not fit together, or this server.

        Raises:
            ModelUnknown: it asks for another model.
            ParameterInvalid: for something that is not offered.
        """
        if self.model != model_name:
            raise ModelUnknown(self.model, model_name)
        if self.include:
            raise ParameterInvalid("include[]", f"{', '.join(self.include)} is not offered; leave include out")
        if "word" in self.timestamp_granularities and self.response_format != "verbose_json":
            raise ParameterInvalid("timestamp_granularities[]", "word needs response_format=verbose_json")
        if self.stream and self.response_format not in ("json", "text"):
            raise ParameterInvalid("stream", f"{self.response_format} cannot be streamed; ask for json or text")
        return self


class AlignmentForm(BaseModel):
    """``POST /v1/audio/alignments``.

    Attributes:
        text: what is said in the file.
        language: name or ISO code; chooses how the text is split into words.
        model: the server's model, if it is named.
    """

    text: str = Field(min_length=1)
    language: Name | None = None
    model: Name | None = None

    def check(self, model_name: str) -> Self:
        """Refuse another model.

        Raises:
            ModelUnknown: it asks for one.
        """
        if self.model not in (None, model_name):
            raise ModelUnknown(str(self.model), model_name)
        return self


def parse(kind: type[Form], form: FormData) -> Form:
    """The parameters of a form; of one that is given twice, the last.

    Raises:
        ParameterInvalid: the first value that is wrong, or the first parameter that is missing.
    """
    values: dict[str, Any] = {}
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        if name in LISTS:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        raise ParameterInvalid(f"{name}[]" if name in LISTS else name, first["msg"]) from error
