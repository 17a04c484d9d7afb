"""``qwen3asr bench``: how fast a bundle is on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qwen3asr import console
from qwen3asr.audio import read_audio
from qwen3asr.benchmark import FORMATS, Settings, as_dict, as_tables, benchmark, check_available, plot
from qwen3asr.cli.common import USAGE, Device, Engine, Model, Threads, check_writable, fail, write
from qwen3asr.features import SAMPLE_RATE

_DEFAULTS = Settings()


def bench(
    model: Model,
    aligner: Annotated[Path | None, typer.Option(help="Forced aligner's bundle, to be measured too.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Recording to use; else something like speech is made.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Length of each clip. [default: 10, or the recording's]")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Text tokens that each clip is forced to.")] = _DEFAULTS.tokens,
    concurrency: Annotated[str, typer.Option(help="Clips at a time, one level after the other.")] = "1,2,4",
    clips: Annotated[int, typer.Option(help="Clips a client in a round, one after the other.")] = _DEFAULTS.clips,
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = _DEFAULTS.rounds,
    warmup: Annotated[int, typer.Option(help="Rounds before them that do not count.")] = _DEFAULTS.warmup,
    past: Annotated[str, typer.Option(help="Tokens in the cache when a step is measured.")] = "150,1000",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for everything that was measured.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Picture (.png, .svg, .pdf); needs matplotlib.")
    ] = None,
    roofline: Annotated[bool, typer.Option(help="Measure what memory and cores could do, too.")] = True,
    device: Device = "auto",
    engine: Engine = None,
    threads: Threads = 0,
) -> None:
    r"""Measure loading, encoder, prefill, decode steps, and whole clips at several levels of concurrency.

    Every clip is forced to the same number of tokens, so that figures do not depend on what the model says. All of it
    takes a minute or two for the 0.6B in int8 on two cores. To set figures beside the technical report's, give
    --seconds 120 --tokens 360 --concurrency 1,8,32,128, and for the aligner's --seconds 60. Needs
    pip install 'qwen3asr\[bench]' for --plot and for energy.
    """
    _check_files(json_file, plot_file)
    samples = None if audio is None else read_audio(audio).samples
    length = _DEFAULTS.seconds if samples is None else len(samples) / SAMPLE_RATE
    settings = Settings(
        seconds=length if seconds is None else seconds, tokens=tokens,
        concurrency=_numbers("--concurrency", concurrency),
        rounds=rounds, warmup=warmup, clips=clips, past=_numbers("--past", past),
    )  # fmt: skip
    name = "synthetic" if audio is None else audio.name
    with console.stages() as progress:
        report = benchmark(
            model, settings, aligner=aligner, samples=samples, audio=name, device=device, engine=engine,
            threads=threads, roofline=roofline, progress=progress,
        )  # fmt: skip
    screen = Console(highlight=False)
    for block in as_tables(report):
        screen.print(block)
    if json_file is not None:
        write(json.dumps(as_dict(report), ensure_ascii=False, indent=2, allow_nan=False) + "\n", json_file)
    if plot_file is not None:
        plot(report, plot_file)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, each once, in their order."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        fail(USAGE, f"{option} {text!r} is no list of whole numbers; give some with commas between, such as 1,2,4")


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Refuse now what could not be written after the measurements."""
    check_writable("--json", json_file)
    check_writable("--plot", plot_file)
    if plot_file is not None:
        if plot_file.suffix not in FORMATS:
            fail(USAGE, f"--plot {plot_file} has no ending that can be drawn; end it in {', '.join(FORMATS)}")
        check_available()
