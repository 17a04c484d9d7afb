"""The command line: ``qwen3asr export | verify | transcribe | align | info``.

Results go to standard output, progress and errors to standard error. Exit codes: 0 all done; 1 some input
failed (the others are done); 2 wrong arguments; 3 a bundle, checkpoint or device cannot be used; 4 the export
differs from its checkpoint; 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import qwen3asr
from qwen3asr import console
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.errors import (
    AlignerMissing,
    AudioEmpty,
    AudioFormatInvalid,
    AudioNotFinite,
    AudioNotFound,
    AudioTooLong,
    AudioUnreadable,
    ContextInvalid,
    ExtraMissing,
    LanguageUnknown,
    Qwen3AsrError,
    RequestInvalid,
    TargetExists,
    VerificationFailed,
)
from qwen3asr.languages import resolve_for_aligner
from qwen3asr.transcript import Transcript

if TYPE_CHECKING:
    from types import ModuleType

INPUT_FAILED, USAGE, UNUSABLE, DIFFERS, INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    help="Qwen3-ASR speech recognition and forced alignment without torch.",
    epilog="Exit codes: 0 done, 1 some input failed, 2 wrong arguments, 3 bundle or checkpoint unusable, "
    "4 export differs from its checkpoint, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Format(StrEnum):
    """How a transcript is written."""

    text = "text"
    json = "json"
    srt = "srt"
    vtt = "vtt"


_Model = Annotated[Path, typer.Argument(help="Folder of the recogniser's bundle, as `qwen3asr export` wrote it.")]
_Language = Annotated[str | None, typer.Option(help="Name or ISO code (German, de). Default: detected.")]
_Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: one a physical core.")]
_Format = Annotated[Format, typer.Option("--format", "-f", help="What to write; json holds everything.")]


@app.command()
def transcribe(
    model: _Model,
    audio: Annotated[list[str], typer.Argument(help="Audio files of any format and rate; - for standard input.")],
    aligner: Annotated[Path | None, typer.Option(help="Forced aligner's bundle: adds word times.")] = None,
    language: _Language = None,
    context: Annotated[str, typer.Option(help="Names and terms that may occur; not an instruction.")] = "",
    form: _Format = Format.text,
    output_dir: Annotated[Path | None, typer.Option(help="Write AUDIO.FORMAT files there, not to the screen.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most text tokens; default: by duration.")] = None,
    capacity: Annotated[int | None, typer.Option(min=1, help="KV-cache tokens; 13 a second of audio.")] = None,
    threads: _Threads = 0,
) -> None:
    """Transcribe audio files.

    Several files are done one after the other; one that fails is reported and the others go on. Several json
    results on the screen are one object a line; several srt or vtt need --output-dir.
    """
    if len(audio) > 1 and output_dir is None and form in (Format.srt, Format.vtt):
        _fail(USAGE, f"several {form} files cannot share the screen; name a folder with --output-dir")
    targets = _targets(audio, output_dir, form)
    recogniser = qwen3asr.load(model, aligner=aligner, threads=threads, capacity=capacity)
    timestamps: Literal["word"] | None = None if aligner is None else "word"
    recogniser.check(language=language, context=context, timestamps=timestamps, max_new_tokens=max_new_tokens)
    if aligner is None and form in (Format.srt, Format.vtt):
        console.warn("without --aligner a file becomes one cue over its whole length")
    failed = 0
    with console.bar("transcribing", len(audio)) as advance:
        for name, target in zip(audio, targets, strict=True):
            try:
                result = recogniser.transcribe(
                    sys.stdin.buffer if name == "-" else name, language=language, context=context,
                    timestamps=timestamps, max_new_tokens=max_new_tokens,
                )  # fmt: skip
            except (Qwen3AsrError, OSError) as error:
                failed += 1
                console.error(f"{name}: {error}")
            else:
                _write(_render(result, form, name if len(audio) > 1 and target is None else None), target)
            advance()
    if failed:
        _fail(INPUT_FAILED, f"{failed} of {len(audio)} files failed")


@app.command()
def align(
    aligner: Annotated[Path, typer.Argument(help="Folder of the forced aligner's bundle.")],
    audio: Annotated[str, typer.Argument(help="Audio file; - for standard input.")],
    text: Annotated[str | None, typer.Option(help="What is said in it.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="UTF-8 file with what is said.")] = None,
    language: Annotated[str | None, typer.Option(help="Name or ISO code; chooses how words are split.")] = None,
    form: _Format = Format.text,
    threads: _Threads = 0,
) -> None:
    """Find when each word of a known text is spoken.

    The text format is one word a line: start, end (seconds) and word, separated by tabs.
    """
    if (text is None) == (text_file is None):
        _fail(USAGE, "give the words with either --text or --text-file")
    try:
        words_said = text if text is not None else Path(str(text_file)).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        _fail(USAGE, f"{text_file} cannot be read as text: {error}")
    model = qwen3asr.load_aligner(aligner, threads=threads)
    clip = qwen3asr.read_audio(sys.stdin.buffer if audio == "-" else audio)
    words = model.align((clip.samples, 16_000), words_said, language=language)
    if form is Format.text:
        print("".join(f"{word.start:.3f}\t{word.end:.3f}\t{word.text}\n" for word in words), end="")
        return
    result = Transcript.from_words(words_said, words, clip.duration, resolve_for_aligner(language))
    print(_render(result, form, None), end="")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder in the -hf layout (config.json, safetensors).")],
    target: Annotated[Path, typer.Argument(help="Bundle folder to make.")],
    precision: Annotated[str, typer.Option(help="Precision of the weights: fp32.")] = "fp32",
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare with PyTorch before finishing.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target.")] = False,
) -> None:
    r"""Turn a checkpoint into an ONNX bundle and verify it against transformers.

    Needs torch: pip install 'qwen3asr\[export]'. The target appears when it is whole; Ctrl-C leaves nothing.
    """
    _exporter()
    from qwen3asr_export.convert import export as run  # noqa: PLC0415 (needs torch)

    with console.stages() as progress:
        bundle = run(checkpoint, target, precision=precision, check=check, replace=force, progress=progress)
    _show(bundle)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint that it was exported from.")],
    audio: Annotated[list[str] | None, typer.Option(help="Recordings to compare on, besides synthetic clips.")] = None,
) -> None:
    """Compare a bundle with its checkpoint in PyTorch, stage by stage, and record the figures in it.

    All checks run; then one table is printed. Exit code 4 if any figure is past its bound.
    """
    _exporter()
    from qwen3asr_export.checkpoint import Checkpoint  # noqa: PLC0415 (needs torch)
    from qwen3asr_export.verification import verify as run  # noqa: PLC0415

    opened = open_bundle(bundle, check_hashes=True)
    recordings = {name: qwen3asr.read_audio(name).samples for name in audio or ()}
    with console.stages() as progress:
        source = Checkpoint(checkpoint)
        report = run(opened, source, recordings=recordings, progress=lambda *step: progress("verify", *step))
    print(report.table())
    print(f"equal to {report.reference}")


@app.command()
def info(bundle: Annotated[Path, typer.Argument(help="Bundle folder.")]) -> None:
    """Show what a bundle holds, checking every file's SHA-256."""
    _show(open_bundle(bundle, check_hashes=True))


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"qwen3asr {qwen3asr.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        _fail(USAGE, "name a command; see qwen3asr --help")


def _exporter() -> ModuleType:
    try:
        import qwen3asr_export  # noqa: PLC0415 (needs torch)
    except ModuleNotFoundError as error:
        raise ExtraMissing("this command", error.name or "torch", "export") from error
    return qwen3asr_export


def _show(bundle: Bundle) -> None:
    manifest, spec = bundle.manifest, bundle.spec
    verified = "no"
    if manifest.verified:
        verified = f"{'passed' if manifest.verified['passed'] else 'FAILED'} against {manifest.verified['reference']}"
    rows = {
        "bundle": bundle.folder,
        "kind": manifest.kind,
        "source": manifest.source["name"],
        "precision": f"{manifest.precision}, {manifest.dialect} dialect, opset {manifest.opset}",
        "size": f"{bundle.bytes / 1e6:.1f} MB in {len(bundle.sizes)} files",
        "encoder": f"{spec.encoder.layers} layers, width {spec.encoder.width}",
        "decoder": f"{spec.layers} layers, width {spec.hidden}, {spec.classes} output classes",
        "KV cache": f"{2 * spec.layers * spec.kv_heads * spec.head_dim * 4 / 1024:.0f} KiB a token",
        "longest sequence": f"{manifest.limits['positions']} tokens",
        "verified": verified,
    }
    print("\n".join(f"{label:<17} {value}" for label, value in rows.items()))
    for check in manifest.verified["checks"] if manifest.verified else ():
        figures = f"{check['worst']:.2g} {check['unit']}, at most {check['bound']:g}, {check['comparisons']} clips"
        print(f"  {check['check']:<32} {figures}")


def _targets(audio: Sequence[str], folder: Path | None, form: Format) -> list[Path | None]:
    """A file for each input, or ``None`` for the screen; two inputs never share a file."""
    if folder is None:
        return [None] * len(audio)
    suffix = "txt" if form is Format.text else form.value
    names = ["stdin" if name == "-" else Path(name).name for name in audio]
    stems = [Path(name).stem for name in names]
    plain = stems if len(set(stems)) == len(stems) else names
    if len(set(plain)) < len(plain):
        _fail(USAGE, "two of the files have the same name; give each its own --output-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(USAGE, f"--output-dir {folder} cannot be made: {error.strerror}")
    return [folder / f"{stem}.{suffix}" for stem in plain]


def _render(result: Transcript, form: Format, name: str | None) -> str:
    if form is Format.json:
        content: dict[str, Any] = ({} if name is None else {"file": name}) | result.to_dict()
        return json.dumps(content, ensure_ascii=False, indent=2 if name is None else None) + "\n"
    if form is Format.text:
        return ("" if name is None else f"{name}: ") + result.text + "\n"
    return result.to_srt() if form is Format.srt else result.to_vtt()


def _write(text: str, target: Path | None) -> None:
    if target is None:
        print(text, end="", flush=True)
    else:
        draft = target.with_name(target.name + ".part")
        draft.write_text(text, "utf-8")
        draft.replace(target)


def _fail(code: int, message: str) -> NoReturn:
    console.error(message)
    raise typer.Exit(code)


def _exit_code(error: Qwen3AsrError | OSError) -> int:
    if isinstance(error, VerificationFailed):
        return DIFFERS
    audio = (AudioNotFound, AudioUnreadable, AudioEmpty, AudioNotFinite, AudioFormatInvalid, AudioTooLong)
    if isinstance(error, audio):
        return INPUT_FAILED
    usage = (RequestInvalid, ContextInvalid, LanguageUnknown, AlignerMissing, TargetExists)
    return USAGE if isinstance(error, usage) else UNUSABLE


def _terminate(*_: object) -> NoReturn:
    raise KeyboardInterrupt  # so that SIGTERM cleans up as Ctrl-C does


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the ``qwen3asr`` command; always ends in :class:`SystemExit`."""
    signal.signal(signal.SIGTERM, _terminate)
    logging.getLogger("qwen3asr").handlers = [console.Warnings()]
    try:
        app(args=arguments, prog_name="qwen3asr")
    except (Qwen3AsrError, OSError) as error:
        console.error(str(error))
        sys.exit(_exit_code(error))
    except SystemExit as end:
        if end.code == INTERRUPTED:
            console.error("interrupted")
        raise
    sys.exit(0)


if __name__ == "__main__":
    main()
