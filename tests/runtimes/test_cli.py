"""The command line, run in this process: what it prints where, and its exit codes."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import TINY
from tests.conftest import ROOT, Recording

from qwen3asr import cli

MANIFEST = ROOT / "examples/recordings/manifest.json"


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, " ".join(err.split())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        code = int(end.value.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def test_transcribe_prints_the_text_and_nothing_else(
    run: Any, asr_bundle: Path, recordings: dict[str, Recording]
) -> None:
    result = run("transcribe", asr_bundle, recordings["german"].path)
    assert (result.code, result.out) == (0, recordings["german"].text + "\n")


def test_standard_input(
    run: Any, asr_bundle: Path, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    stdin = type("Stdin", (), {"buffer": Pipe(recordings["english"].path.read_bytes())})
    monkeypatch.setattr("sys.stdin", stdin)
    assert run("transcribe", asr_bundle, "-").out == recordings["english"].text + "\n"


def test_json_holds_words_with_times_and_confidence(
    run: Any, asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    result = run("transcribe", asr_bundle, recordings["chinese"].path, "--aligner", aligner_bundle, "-f", "json")
    content = json.loads(result.out)
    assert (content["text"], content["language"]) == (recordings["chinese"].text, "Chinese")
    words = [word for segment in content["segments"] for word in segment["words"]]
    assert [word["text"] for word in words] == list(recordings["chinese"].text)
    assert all({"start", "end", "confidence"} <= word.keys() for word in words)


@pytest.mark.parametrize(("form", "begin"), [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n")])
def test_subtitle_formats(
    run: Any, asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording], form: str, begin: str
) -> None:
    result = run("transcribe", asr_bundle, recordings["english"].path, "--aligner", aligner_bundle, "--format", form)
    assert result.out.startswith(begin)
    assert recordings["english"].text.split()[0] in result.out


def test_one_bad_file_among_many_is_reported_and_the_others_are_done(
    run: Any, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    files = [recordings["english"].path, bad, tmp_path / "missing.wav", recordings["spanish"].path]
    result = run("transcribe", asr_bundle, *files, "-f", "json")
    assert result.code == cli.INPUT_FAILED
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["text"] for line in lines] == [recordings["english"].text, recordings["spanish"].text]
    assert lines[0]["file"] == str(recordings["english"].path)
    assert "bad.wav" in result.err
    assert "missing.wav" in result.err
    assert "2 of 4 files failed" in result.err


def test_output_dir_gets_one_file_each_even_for_equal_stems(
    run: Any, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    copies = [tmp_path / "a.flac", tmp_path / "a.wav"]
    for copy in copies:
        shutil.copyfile(recordings["german-short"].path, copy)
    assert run("transcribe", asr_bundle, *copies, "--output-dir", tmp_path / "out").code == 0
    written = {path.name: path.read_text("utf-8") for path in (tmp_path / "out").iterdir()}
    assert written == dict.fromkeys(["a.flac.txt", "a.wav.txt"], recordings["german-short"].text + "\n")
    twice = run("transcribe", asr_bundle, copies[0], copies[0], "--output-dir", tmp_path / "out")
    assert (twice.code, "same name" in twice.err) == (cli.USAGE, True)


def test_json_files_are_the_same_for_one_and_for_many(
    run: Any, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    paths = [recordings[name].path for name in ("english", "spanish")]
    run("transcribe", asr_bundle, *paths, "-f", "json", "--output-dir", tmp_path / "many")
    run("transcribe", asr_bundle, paths[0], "-f", "json", "--output-dir", tmp_path / "one")
    assert (tmp_path / "many/english.json").read_text() == (tmp_path / "one/english.json").read_text()


def test_a_cut_text_and_subtitles_without_word_times_are_said(
    run: Any, asr_bundle: Path, recordings: dict[str, Recording]
) -> None:
    result = run("transcribe", asr_bundle, recordings["english-long"].path, "-f", "srt", "--max-new-tokens", 6)
    assert result.code == 0
    assert "without --aligner" in result.err
    assert "cut after 6 tokens; raise max_new_tokens" in result.err


def test_results_go_to_the_pipe_even_when_progress_is_drawn(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    """Rich's progress bar once took standard output along to the terminal: the pipe stayed empty."""
    import pty

    terminal, screen = pty.openpty()
    command = [sys.executable, "-m", "qwen3asr.cli", "transcribe", str(asr_bundle), str(recordings["spanish"].path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=screen, text=True, check=True)
    os.close(screen)
    os.close(terminal)
    assert done.stdout == recordings["spanish"].text + "\n"


def test_several_subtitle_files_need_a_folder(run: Any, asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    result = run("transcribe", asr_bundle, recordings["english"].path, recordings["german"].path, "-f", "srt")
    assert (result.code, "--output-dir" in result.err) == (cli.USAGE, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["transcribe", "{tmp}/none", "x.wav"], cli.UNUSABLE, "there is no bundle"),
        (["transcribe", "{aligner}", "x.wav"], cli.UNUSABLE, "kind 'aligner'"),
        (["transcribe", "{asr}", "x.wav", "--language", "Germn"], cli.USAGE, "did you mean 'German'"),
        (["transcribe", "{asr}", "x.wav", "--format", "docx"], cli.USAGE, "docx"),
        (["transcribe", "{asr}"], cli.USAGE, "Missing argument"),
        (["align", "{aligner}", "x.wav"], cli.USAGE, "--text"),
        (["align", "{aligner}", "x.wav", "--text", "one"], cli.INPUT_FAILED, "no audio file"),
        (["export", "{tmp}/none", "{tmp}/out"], cli.UNUSABLE, "no checkpoint folder"),
        (["export", "{tiny}", "{asr}"], cli.USAGE, "--force"),
        (["export", "{tiny}", "{tmp}/out", "--precision", "int1"], cli.USAGE, "'int8', 'int4'"),
        (
            ["export", "{tiny}", "{tmp}/out", "--precision", "int4", "--dialect", "standard"],
            cli.USAGE,
            "not offered in",
        ),
        (["export", "nobody/nothing", "{tmp}/out", "--offline"], cli.UNUSABLE, "not whole, in the cache"),
        (["export", "no folder", "{tmp}/out"], cli.UNUSABLE, "give a folder, or a hub id"),
        (["info", "{tmp}"], cli.UNUSABLE, "has no bundle.json"),
        (["export", "{tiny}", "{tiny}", "--force"], cli.USAGE, "no bundle"),
        (["verify", "{asr}", "{tiny}/../aligner"], cli.USAGE, "was not exported from"),
        (["verify", "{asr}", "{tiny}", "--audio", "x.wav"], cli.INPUT_FAILED, "no audio file"),
        (["transcribe", "{asr}", "x.wav", "--output-dir", "{asr}/config.json"], cli.USAGE, "cannot be made"),
        (["export", "{tiny}", "/proc/nothing/out"], cli.UNUSABLE, "/proc"),
        (["nonsense"], cli.USAGE, "nonsense"),
        (["eval", "{asr}", "{tmp}/none.jsonl"], cli.USAGE, "No such file"),
        (["eval", "{tmp}/none", "{list}"], cli.UNUSABLE, "there is no bundle"),
        (["eval", "{asr}", "{list}", "--against", "{aligner}"], cli.UNUSABLE, "kind 'aligner'"),
        (["eval", "{asr}", "{list}", "--aligner", "{asr}"], cli.UNUSABLE, "kind 'asr'"),
        (["eval", "{asr}", "{list}", "--against-aligner", "{aligner}"], cli.USAGE, "give --aligner as well"),
        (["eval", "{asr}", "{list}", "--output", "{tmp}/none/report"], cli.USAGE, "a folder that exists"),
        (["eval", "{asr}", "{list}", "--output", "{tmp}"], cli.USAGE, "name a file"),
        (["eval", "{asr}", "{list}", "--capacity", "1000000"], cli.USAGE, "outside of this model's"),
        (["eval", "{asr}", "{list}", "--engine", "openvino"], cli.USAGE, "'onnxruntime' or 'tensorrt'"),
        (["transcribe", "{asr}", "x.wav", "--engine", "openvino"], cli.USAGE, "'onnxruntime' or 'tensorrt'"),
        (["transcribe", "{asr}", "x.wav", "--engine", "tensorrt", "--device", "cpu"], cli.USAGE, "needs an NVIDIA GPU"),
        (["align", "{aligner}", "x.wav", "--text", "a", "--engine", "openvino"], cli.USAGE, "'onnxruntime' or"),
        (["serve", "{asr}", "--engine", "tensorrt", "--device", "cpu"], cli.USAGE, "needs an NVIDIA GPU"),
        (["bench", "{asr}", "--engine", "tensorrt", "--device", "cpu"], cli.USAGE, "needs an NVIDIA GPU"),
    ],
)
def test_errors_name_the_cure_and_have_their_exit_code(
    run: Any, asr_bundle: Path, aligner_bundle: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    places = {"tmp": tmp_path, "asr": asr_bundle, "aligner": aligner_bundle, "tiny": TINY / "asr", "list": MANIFEST}
    result = run(*(argument.format(**places) for argument in arguments))
    assert (result.code, result.out) == (code, "")
    assert words in result.err


def test_align_prints_a_word_a_line(
    run: Any, aligner_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    wanted = recordings["english"]
    result = run("align", aligner_bundle, wanted.path, "--text", wanted.text, "--language", "en")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [row[2] for row in rows] == wanted.text.split()
    assert all(float(row[0]) <= float(row[1]) for row in rows)
    (tmp_path / "said.txt").write_text(wanted.text, "utf-8")
    as_json = run("align", aligner_bundle, wanted.path, "--text-file", tmp_path / "said.txt", "-f", "json")
    words = [word for segment in json.loads(as_json.out)["segments"] for word in segment["words"]]
    assert [f"{word['start']:.3f}" for word in words] == [row[0] for row in rows]


def test_export_verify_info(run: Any, tmp_path: Path, recordings: dict[str, Recording]) -> None:
    made = run("export", TINY / "asr", tmp_path / "asr", "--no-verify")
    assert made.code == 0
    assert made.out.splitlines()[-1].split() == ["verified", "no"]
    verified = run("verify", tmp_path / "asr", TINY / "asr", "--audio", recordings["german"].path)
    assert verified.code == 0
    assert "damage: forced tokens that differ" in verified.out
    assert "within the bounds of int8" in verified.out
    assert "FAILED" not in verified.out
    assert "passed against transformers" in run("info", tmp_path / "asr").out
    card = (tmp_path / "asr" / "README.md").read_text("utf-8")
    assert "not verified" not in card  # as it once went on saying
    assert "| mel |" in card


def test_a_bundle_that_failed_says_so_ever_after(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old verdict once stayed in bundle.json when a later verification failed."""
    run("export", TINY / "asr", tmp_path / "asr", "--no-verify")
    monkeypatch.setattr("qwen3asr_export.verification.MEL_BOUND", -1.0)
    failed = run("verify", tmp_path / "asr", TINY / "asr")
    assert (failed.code, "FAILED at" in failed.err) == (cli.DIFFERS, True)
    assert "FAILED against transformers" in run("info", tmp_path / "asr").out
    assert "| mel | " in (tmp_path / "asr" / "README.md").read_text("utf-8")


def test_a_figure_that_is_not_finite_is_written_as_json_and_read_back(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("export", TINY / "asr", tmp_path / "asr", "--no-verify")
    monkeypatch.setattr("qwen3asr_export.verification._relative", lambda *_: math.inf)
    failed = run("verify", tmp_path / "asr", TINY / "asr")
    assert (failed.code, "FAILED at" in failed.err) == (cli.DIFFERS, True)
    manifest = (tmp_path / "asr" / "bundle.json").read_text("utf-8")
    assert "Infinity" not in manifest
    checks = {check["check"]: check["worst"] for check in json.loads(manifest)["verified"]["checks"]}
    assert checks["decoder logits"] is None
    told = run("info", tmp_path / "asr")
    assert (told.code, "not finite relative to max" in told.out) == (0, True)
    assert "| decoder logits | not finite |" in (tmp_path / "asr" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("change", [{"source": {}}, {"verified": {"x": 1}}])
def test_info_of_an_odd_manifest_is_an_error_that_says_so(
    run: Any, asr_bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(asr_bundle, tmp_path / "odd"))
    manifest = json.loads((folder / "bundle.json").read_text("utf-8")) | change
    (folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    for command in ("info", "bench"):
        result = run(command, folder)
        assert (result.code, "bundle.json in" in result.err) == (cli.UNUSABLE, True)


def test_eval_prints_a_report(run: Any, asr_bundle: Path, aligner_bundle: Path) -> None:
    result = run("eval", asr_bundle, MANIFEST, "--aligner", aligner_bundle)
    assert (result.code, result.err) == (0, "")
    rows = {line[:42].strip(): line[42:].strip() for line in result.out.splitlines()}
    assert result.out.startswith(f"{asr_bundle} (asr, fp32); aligner {aligner_bundle} (aligner, fp32)\n7 clips, 34.3 s")
    assert rows["mixed error rate, overall"] == "0.00 %"
    assert rows["language detected rightly, of 6 clips"] == "100.00 %"
    assert rows["words compared"] == "40"


def test_eval_compares_two_bundles_and_writes_json(
    run: Any, asr_bundle: Path, aligner_bundle: Path, tmp_path: Path
) -> None:
    result = run(
        *("eval", asr_bundle, MANIFEST, "--against", asr_bundle, "--language", "manifest"),
        *("--aligner", aligner_bundle, "--against-aligner", aligner_bundle),
        *("--format", "json", "--output", tmp_path / "report.json"),
    )
    assert result.code == 0
    assert "B has fewer errors than A in 0 clips, more in 0, as many in 7" in result.out
    assert "language detected" not in result.out
    assert "7 clips, 34.3 s of audio; languages forced" in result.out
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert content["manifest"] == str(MANIFEST)
    first, second = content["models"]
    assert first["summary"]["boundaries"]["shift_ms"] == second["summary"]["boundaries"]["shift_ms"]
    assert [row["hypothesis"] for row in second["clips"]] == [
        e["text"] for e in json.loads(MANIFEST.read_text("utf-8"))
    ]
    assert {"label": "CER, overall", "unit": "share", "A": 0.0, "B": 0.0, "difference": 0.0} in content["figures"]


def test_eval_goes_on_after_a_clip_that_fails(
    run: Any, asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    lines = [("bad.wav", "x"), (str(recordings["german"].path), "heute heute null fünf acht")]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"audio": a, "text": t}) for a, t in lines))
    result = run("eval", asr_bundle, tmp_path / "list.jsonl", "--format", "json")
    assert result.code == cli.INPUT_FAILED
    assert "bad.wav cannot be read as audio" in result.err
    assert "1 of 2 clips failed" in result.err
    (model,) = json.loads(result.out)["models"]
    assert "cannot be read" in model["clips"][0]["error"]
    assert model["summary"]["overall"]["edits"]["rate"] == 0.4  # "fünf vier vier" for "fünf acht"


def test_eval_checks_the_manifest_and_jiwer_before_it_loads_a_model(
    run: Any, asr_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qwen3asr.load", load)
    (tmp_path / "list.jsonl").write_text('{"audio": "none.wav", "text": ""}\n[]')
    result = run("eval", asr_bundle, tmp_path / "list.jsonl")
    assert (result.code, "line 1: there is no audio file" in result.err) == (cli.USAGE, True)
    assert "line 2: it is not an object" in result.err
    monkeypatch.setitem(sys.modules, "jiwer", None)
    result = run("eval", asr_bundle, MANIFEST)
    assert (result.code, "pip install 'qwen3asr[eval]'" in result.err) == (cli.UNUSABLE, True)


def test_eval_misses_the_japanese_splitter_before_it_loads_a_model(
    run: Any,
    asr_bundle: Path,
    aligner_bundle: Path,
    recordings: dict[str, Recording],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nagisa", None)
    monkeypatch.setattr("qwen3asr.load", lambda *_, **__: 1 / 0)
    words = [{"text": "猫", "start": 0, "end": 1}]
    line = {"audio": str(recordings["english"].path), "text": "猫", "language": "ja", "words": words}
    (tmp_path / "list.jsonl").write_text(json.dumps(line))
    result = run("eval", asr_bundle, tmp_path / "list.jsonl", "--aligner", aligner_bundle)
    assert (result.code, "qwen3asr[ja]" in result.err) == (cli.UNUSABLE, True)


def test_ctrl_c_during_an_evaluation_leaves_no_report(
    run: Any, asr_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen3asr.Recognizer.transcribe", interrupted)
    result = run("eval", asr_bundle, MANIFEST, "--output", tmp_path / "report.txt")
    assert (result.code, result.out, list(tmp_path.iterdir())) == (cli.INTERRUPTED, "", [])


def test_ctrl_c_exits_with_130_and_leaves_nothing(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen3asr_export.convert.build_decoder", interrupted)
    result = run("export", TINY / "asr", tmp_path / "asr")
    assert (result.code, "interrupted" in result.err) == (cli.INTERRUPTED, True)
    assert list(tmp_path.iterdir()) == []


def test_help_explains_every_command(run: Any) -> None:
    overview = run("--help").out
    for command in ("export", "verify", "transcribe", "align", "eval", "info"):
        assert command in overview
        assert len(run(command, "--help").out) > 300
    assert "qwen3asr[export]" in run("export", "--help").out
    assert run("--version").out.startswith("qwen3asr ")


def test_a_model_repository_is_written_from_a_bundle(
    run: Any, asr_bundle: Path, aligner_bundle: Path, tmp_path: Path
) -> None:
    options = ("--engine", "triton", "--aligner", aligner_bundle, "--slots", 2)
    result = run("export", asr_bundle, tmp_path / "models", *options)
    assert (result.code, result.out.strip()) == (0, str(tmp_path / "models" / "qwen3_asr"))
    assert (tmp_path / "models" / "qwen3_asr" / "1" / "model.py").is_file()
    assert "--engine tensorrt" in run("export", asr_bundle, tmp_path / "x", "--engine", "triton", "--chunk", 64).err
    assert "--engine triton" in run("export", asr_bundle, tmp_path / "x", "--aligner", aligner_bundle).err
    assert "model repository" in run("export", asr_bundle, "--engine", "triton").err
    for more in (("--precision", "int4"), ("--force",), ("--no-verify",), ("--dialect", "standard"), ("--offline",)):
        assert "it takes --aligner" in run("export", asr_bundle, tmp_path / "x", "--engine", "triton", *more).err
    assert not (tmp_path / "x").exists()
