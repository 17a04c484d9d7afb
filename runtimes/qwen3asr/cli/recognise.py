"""``qwen3asr transcribe`` and ``align``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import qwen3asr
from qwen3asr import console
from qwen3asr.cli.common import INPUT_FAILED, USAGE, Capacity, Device, Engine, Model, Slots, Threads, fail, write
from qwen3asr.errors import Qwen3AsrError
from qwen3asr.languages import resolve_for_aligner
from qwen3asr.recognizer import Options
from qwen3asr.transcript import Transcript


class Format(StrEnum):
    """How a transcript is written."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


_Language = Annotated[str | None, typer.Option(help="Name or ISO code (German, de). Default: detected.")]
_Format = Annotated[Format, typer.Option("--format", "-f", help="What to write; json holds everything.")]


def transcribe(
    model: Model,
    audio: Annotated[list[str], typer.Argument(help="Audio files of any format and rate; - for standard input.")],
    aligner: Annotated[Path | None, typer.Option(help="Forced aligner's bundle: adds word times.")] = None,
    language: _Language = None,
    context: Annotated[str, typer.Option(help="Names and terms that may occur; not an instruction.")] = "",
    form: _Format = Format.text,
    output_dir: Annotated[Path | None, typer.Option(help="Write AUDIO.FORMAT files there, not to the screen.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most text tokens; default: by duration.")] = None,
    piece_seconds: Annotated[
        float | None, typer.Option(help="Longest pass; longer audio is cut at silences. Default: 180.")
    ] = None,
    slots: Slots = None,
    capacity: Capacity = None,
    device: Device = "auto",
    engine: Engine = None,
    threads: Threads = 0,
) -> None:
    """Transcribe audio files of any length.

    Several files are decoded together, and written in their order; one that fails is reported and the others go on.
    Several json results on the screen are one object a line; several srt or vtt need --output-dir.
    """
    if len(audio) > 1 and output_dir is None and form in (Format.srt, Format.vtt):
        fail(USAGE, f"several {form} files cannot share the screen; name a folder with --output-dir")
    targets = _targets(audio, output_dir, form)
    recogniser = qwen3asr.load(
        model, aligner=aligner, device=device, engine=engine, threads=threads, slots=slots, capacity=capacity
    )
    options = Options(
        language=language, context=context, timestamps=None if aligner is None else "word",
        max_new_tokens=max_new_tokens, piece_seconds=piece_seconds,
    )  # fmt: skip
    recogniser.check(**options)
    if aligner is None and form in (Format.srt, Format.vtt):
        console.warn("without --aligner a file becomes one cue over its whole length")
    failed = 0
    with recogniser, console.bar("transcribing", len(audio)) as advance:
        for name, target, result in zip(audio, targets, _transcripts(recogniser, audio, options), strict=True):
            if isinstance(result, Transcript):
                write(_render(result, form, name if len(audio) > 1 and target is None else None), target)
            else:
                failed += 1
                console.error(f"{name}: {result}")
            advance()
    if failed:
        fail(INPUT_FAILED, f"{failed} of {len(audio)} files failed")


def _transcripts(
    recogniser: qwen3asr.Recognizer, audio: Sequence[str], options: Options
) -> Iterator[Transcript | Qwen3AsrError | OSError]:
    """The transcript of each file, or why there is none; in their order."""
    sources: list[qwen3asr.AudioInput] = [sys.stdin.buffer if name == "-" else name for name in audio]
    if len(sources) > 1:
        yield from recogniser.transcribe_each(sources, **options)
        return
    with console.seconds("seconds of audio") as report:
        try:
            result = recogniser.transcribe(sources[0], progress=lambda now: report(now.done, now.total), **options)
        except (Qwen3AsrError, OSError) as error:
            yield error
        else:
            yield result


def align(
    aligner: Annotated[Path, typer.Argument(help="Folder of the forced aligner's bundle.")],
    audio: Annotated[str, typer.Argument(help="Audio file; - for standard input.")],
    text: Annotated[str | None, typer.Option(help="What is said in it.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="UTF-8 file with what is said.")] = None,
    language: Annotated[str | None, typer.Option(help="Name or ISO code; chooses how words are split.")] = None,
    form: _Format = Format.text,
    device: Device = "auto",
    engine: Engine = None,
    threads: Threads = 0,
) -> None:
    """Find when each word of a known text is spoken, in up to 240 s of audio.

    Longer audio needs a recogniser, to share the text out: `align` of the model that qwen3asr.load(..., aligner=)
    gives. The text format is one word a line: start, end (seconds) and word, separated by tabs.
    """
    if (text is None) == (text_file is None):
        fail(USAGE, "give the words with either --text or --text-file")
    try:
        words_said = text if text is not None else Path(str(text_file)).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fail(USAGE, f"{text_file} cannot be read as text: {error}")
    model = qwen3asr.load_aligner(aligner, device=device, engine=engine, threads=threads)
    clip = qwen3asr.read_audio(sys.stdin.buffer if audio == "-" else audio)
    words = model.align((clip.samples, 16_000), words_said, language=language)
    if form is Format.text:
        print("".join(f"{word.start:.3f}\t{word.end:.3f}\t{word.text}\n" for word in words), end="")
        return
    result = Transcript.from_words(words_said, words, clip.duration, resolve_for_aligner(language))
    print(_render(result, form, None), end="")


def _targets(audio: Sequence[str], folder: Path | None, form: Format) -> list[Path | None]:
    """A file for each input, or ``None`` for the screen; two inputs never share a file."""
    if folder is None:
        return [None] * len(audio)
    suffix = "txt" if form is Format.text else form.value
    names = ["stdin" if name == "-" else Path(name).name for name in audio]
    stems = [Path(name).stem for name in names]
    plain = stems if len(set(stems)) == len(stems) else names
    if len(set(plain)) < len(plain):
        fail(USAGE, "two of the files have the same name; give each its own --output-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(USAGE, f"--output-dir {folder} cannot be made: {error.strerror}")
    return [folder / f"{stem}.{suffix}" for stem in plain]


def _render(result: Transcript, form: Format, name: str | None) -> str:
    if form is Format.json:
        content: dict[str, Any] = ({} if name is None else {"file": name}) | result.to_dict()
        return json.dumps(content, ensure_ascii=False, indent=2 if name is None else None) + "\n"
    if form is Format.text:
        return ("" if name is None else f"{name}: ") + result.text + "\n"
    return result.to_srt() if form is Format.srt else result.to_vtt()
