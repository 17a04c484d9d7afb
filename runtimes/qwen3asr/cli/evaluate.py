"""``qwen3asr eval``: which of two bundles is good enough, on the user's own recordings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import qwen3asr
from qwen3asr import console
from qwen3asr.bundle import open_bundle
from qwen3asr.cli.common import (
    INPUT_FAILED,
    USAGE,
    Capacity,
    Device,
    Engine,
    Model,
    Threads,
    check_writable,
    fail,
    write,
)
from qwen3asr.evaluation import (
    Clip,
    Evaluation,
    Failure,
    LeftOut,
    Result,
    Side,
    as_dict,
    as_text,
    check_available,
    evaluate,
    read_clips,
)
from qwen3asr.words import check_splitter


class ReportFormat(StrEnum):
    """How a report is written."""

    text = "text"
    json = "json"


class Languages(StrEnum):
    """Who says what language a clip has."""

    auto = "auto"
    manifest = "manifest"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A recogniser's bundle with its aligner's."""

    bundle: Path
    aligner: Path | None


def eval(  # the command's name
    model: Model,
    manifest: Annotated[Path, typer.Argument(help="JSON lines: audio, text, perhaps language, context, words.")],
    against: Annotated[Path | None, typer.Option(help="Another recogniser's bundle, to compare with.")] = None,
    aligner: Annotated[Path | None, typer.Option(help="Forced aligner's bundle, for clips with word times.")] = None,
    against_aligner: Annotated[Path | None, typer.Option(help="Aligner's bundle of the other side.")] = None,
    form: Annotated[ReportFormat, typer.Option("--format", "-f", help="json has every clip.")] = ReportFormat.text,
    output: Annotated[Path | None, typer.Option(help="File for the report; the screen then shows the text.")] = None,
    language: Annotated[Languages, typer.Option(help="Detect languages, or force the manifest's.")] = Languages.auto,
    capacity: Capacity = None,
    device: Device = "auto",
    engine: Engine = None,
    threads: Threads = 0,
) -> None:
    r"""Score bundles on recordings whose text is known: errors, languages, word times, speed.

    A line of the manifest is {"audio": "a.wav", "text": "what is said", "language": "en"}, the path relative to
    the manifest, and perhaps "words": \[{"text": "what", "start": 0.1, "end": 0.3}, ...]. Give --against to choose
    between two precisions; both are scored on the clips that both can do. Needs pip install 'qwen3asr\[eval]'.
    """
    check_available()
    pairs = _pairs(_Pair(model, aligner), against, against_aligner)
    check_writable("--output", output)
    clips = read_clips(manifest)
    abouts = [_about(pair, clips) for pair in pairs]

    def load(pair: _Pair) -> qwen3asr.Recognizer:
        return qwen3asr.load(
            pair.bundle, aligner=pair.aligner, device=device, engine=engine, threads=threads, capacity=capacity
        )

    if len(pairs) > 1:  # an hour later would be a bad time to learn that the second cannot be loaded
        load(pairs[1]).close()
    sides: list[Side] = []
    for letter, pair, (about, aligner_about) in zip("AB", pairs, abouts, strict=False):
        recogniser = load(pair)
        label = f"evaluating {letter}" if len(pairs) > 1 else "evaluating"
        done = _run(label, recogniser, clips, pair.aligner is not None, language is Languages.manifest)
        sides.append(Side(str(pair.bundle), about, aligner_about, done))
        recogniser.close()
        del recogniser  # before the next: two large models may not fit the memory
    _report(sides, form, output, manifest)
    _end([side.evaluation for side in sides], len(clips))


def _pairs(first: _Pair, against: Path | None, against_aligner: Path | None) -> list[_Pair]:
    if against_aligner is not None and first.aligner is None:
        fail(USAGE, "--against-aligner has nothing to compare with; give --aligner as well")
    if against is None and against_aligner is None:
        return [first]
    return [first, _Pair(against or first.bundle, against_aligner)]


def _about(pair: _Pair, clips: Sequence[Clip]) -> tuple[str, str | None]:
    """What the bundles are; refuses, before any model is loaded, what cannot be."""
    asr = open_bundle(pair.bundle, kind="asr").manifest
    about = f"{asr.source['name']}, {asr.precision}"
    if pair.aligner is None:
        return about, None
    for name in {clip.language for clip in clips if clip.words}:
        check_splitter(name)
    aligner = open_bundle(pair.aligner, kind="aligner").manifest
    return about, f"{pair.aligner} ({aligner.source['name']}, {aligner.precision})"


def _run(label: str, recogniser: qwen3asr.Recognizer, clips: Sequence[Clip], align: bool, force: bool) -> Evaluation:
    with console.bar(label, len(clips)) as advance:

        def done(outcome: Result | Failure) -> None:
            if isinstance(outcome, Failure):
                console.error(f"{outcome.clip.name}: {outcome.message}")
            elif isinstance(outcome.alignment, LeftOut) and outcome.alignment.failed:
                console.error(f"{outcome.clip.name}: words not compared: {outcome.alignment.reason}")
            advance()

        return evaluate(recogniser, clips, align=align, force=force, done=done)


def _report(sides: Sequence[Side], form: ReportFormat, output: Path | None, manifest: Path) -> None:
    text = as_text(sides)
    if form is ReportFormat.text or output is not None:
        write(text, None)  # first: if the file fails, the figures are not lost
    if form is ReportFormat.json:
        content = {"qwen3asr": qwen3asr.__version__, "manifest": str(manifest), **as_dict(sides)}
        text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    if form is ReportFormat.json or output is not None:
        write(text, output)


def _end(evaluations: Sequence[Evaluation], clips: int) -> None:
    """Exit code 1 if a clip could not be transcribed, or was refused by the aligner."""
    outcomes = zip(*(evaluation.outcomes for evaluation in evaluations), strict=True)
    failed = sum(any(map(_failed, both)) for both in outcomes)
    if failed:
        fail(INPUT_FAILED, f"{failed} of {clips} clips failed")


def _failed(outcome: Result | Failure) -> bool:
    return isinstance(outcome, Failure) or (isinstance(outcome.alignment, LeftOut) and outcome.alignment.failed)
