"""The benchmark: clips have the length they are forced to, figures count what they say, and nothing is half-written."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from rich.console import Console
from tests.conftest import Recording

import qwen3asr
from qwen3asr import cli
from qwen3asr.benchmark import Report, Settings, Spread, as_dict, as_tables, benchmark, plot
from qwen3asr.benchmark.clients import Clients, Round, Stopwatch
from qwen3asr.benchmark.energy import open_boards
from qwen3asr.benchmark.product import product
from qwen3asr.benchmark.published import (
    Published,
    PublishedAlignment,
    published,
    published_alignment,
    size_of,
    why_not,
)
from qwen3asr.benchmark.roofline import ModelWork, Roof, Work, measure_roof
from qwen3asr.benchmark.speech import fit, speech_like
from qwen3asr.benchmark.spread import timed
from qwen3asr.bundle import open_bundle
from qwen3asr.engine import Engine
from qwen3asr.errors import BundleKindWrong, DeviceUnavailable, ExtraMissing, RequestInvalid
from qwen3asr.jobs import Job
from qwen3asr.postprocess import parse_output
from qwen3asr.prompt import PromptBuilder
from qwen3asr.sessions.onnxruntime import OrtDecoder
from qwen3asr.tokenizer import open_tokenizer

SMALL = Settings(seconds=2.0, tokens=6, concurrency=(1, 3), rounds=2, warmup=1, clips=2, past=(20, 60))


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def report(asr_bundle: Path, aligner_bundle: Path, stages: list[tuple[str, int, int]]) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clients, "run", together(Clients.run))
        return benchmark(asr_bundle, SMALL, aligner=aligner_bundle, progress=lambda *stage: stages.append(stage))


def together(run: Callable[[Clients, int, int], Round]) -> Callable[[Clients, int, int], Round]:
    """Clients of which none is served before all have asked: a fast machine would be done with one before the next."""
    submit, decode = Engine.submit, OrtDecoder.run

    def ran(self: Clients, clients: int, clips: int) -> Round:
        asked, all_asked = itertools.count(1), threading.Event()

        def submitted(engine: Engine, job: Job) -> Any:
            future = submit(engine, job)
            if next(asked) == clients:
                all_asked.set()
            return future

        def decoded(decoder: OrtDecoder, *arguments: Any) -> Any:
            assert all_asked.wait(30)
            return decode(decoder, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "submit", submitted)
            patch.setattr(OrtDecoder, "run", decoded)
            return run(self, clients, clips)

    return ran


def text_of(report: Report, width: int = 100) -> str:
    screen = Console(width=width, record=True, file=open_null())
    for block in as_tables(report):
        screen.print(block)
    return screen.export_text()


def open_null() -> Any:
    return SimpleNamespace(write=len, flush=lambda: None)


# --- what is measured ------------------------------------------------------------------------------------------


def test_forced_clips_hold_the_models_own_text_and_go_on_past_its_end(
    model: qwen3asr.Recognizer, recordings: dict[str, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, tokenizer = model.bundle.spec, open_tokenizer(model.bundle.folder, model.bundle.spec)
    written: list[int] = []
    push = Stopwatch.push
    monkeypatch.setattr(Stopwatch, "push", lambda self, token: (written.append(token), push(self, token))[1])
    samples = qwen3asr.read_audio(recordings["english"].path).samples
    frame = PromptBuilder(tokenizer).frame()
    engine = model.engine
    clients = Clients(engine.encoder, engine.decoder, spec.windows, frame, samples, tokens=40)
    done = clients.run(1, 1)
    assert len(written) == len(done.watches[0].times) == 40
    end = next(place for place, token in enumerate(written) if token in spec.eos)
    assert parse_output(tokenizer.decode(written[:end]), None) == ("English", recordings["english"].text)


def test_every_clip_and_every_token_is_counted(report: Report) -> None:
    for level, clients in zip(report.levels, (1, 3), strict=True):
        clips = SMALL.rounds * SMALL.clips * clients
        assert level.concurrency == clients
        assert level.first_token.count == level.clip.count == level.real_time_factor.count == clips
        assert level.inter_token.count == clips * (SMALL.tokens - 1)
        assert level.throughput.count == SMALL.rounds
        assert level.real_time_factor.p50 == pytest.approx(level.clip.p50 / 2.0)
    alone = report.levels[0]
    assert alone.rows_per_step == 1.0
    assert 1.0 < report.levels[1].rows_per_step <= 3.0
    assert alone.first_token.most < alone.clip.most
    assert alone.throughput.most <= 1 / alone.real_time_factor.least  # a round is longer than its clips


def test_clients_that_are_there_together_are_decoded_together(
    model: qwen3asr.Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clients, "run", together(Clients.run))
    frame = PromptBuilder(open_tokenizer(model.bundle.folder, model.bundle.spec)).frame()
    engine = model.engine
    clients = Clients(engine.encoder, engine.decoder, model.bundle.spec.windows, frame, speech_like(2.0), tokens=6)
    assert clients.run(3, 1).rows_per_step == 3.0


def test_parts_name_their_size_and_are_measured_as_often_as_was_asked(report: Report) -> None:
    assert [part.name for part in report.parts] == [
        "features of 2 s", "encoder, 1 s", "encoder, 8 s", "encoder, 30 s", f"prefill of {report.prompt_tokens} tokens",
        "decode step after 20 tokens", "decode step after 60 tokens",
    ]  # fmt: skip
    assert report.prompt_tokens == 26 + 15  # two seconds of audio; nine tokens before it, six behind
    assert [part.seconds.count for part in report.parts] == [2, 2, 2, 2, 2, 20, 20]
    assert report.load.count == SMALL.rounds


def test_steps_are_measured_on_a_cache_that_holds_tokens(asr_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: dict[int, int] = {}
    steps: list[int] = []
    run = OrtDecoder.run

    def watched(self: OrtDecoder, ids: Any, audio: Any, take: Any, slots: range, past: Any) -> Any:
        if ids.shape[1] == 1 and not fed.get(0, 0) < past[0]:
            steps.append(int(past[0]))
        assert past[0] <= fed.get(slots.start, 0), "a gap in the cache"
        fed[slots.start] = max(fed.get(slots.start, 0), int(past[0]) + ids.shape[1])
        return run(self, ids, audio, take, slots, past)

    monkeypatch.setattr(OrtDecoder, "run", watched)
    benchmark(asr_bundle, replace(SMALL, concurrency=(1,), rounds=1, warmup=0, past=(90, 700)), roofline=False)
    assert {90, 700} <= set(steps)


def test_the_aligner_is_measured_by_itself(report: Report) -> None:
    aligner = report.aligner
    assert aligner is not None
    assert (aligner.words, aligner.seconds, aligner.about.kind) == (5, 2.0, "aligner")
    assert aligner.real_time_factor.count == aligner.load.count == SMALL.rounds


def test_progress_ends_where_it_said_it_would(report: Report, stages: list[tuple[str, int, int]]) -> None:
    last = {stage: (done, total) for stage, done, total in stages}
    assert list(last) == ["load", "parts", "clips at a time", "aligner", "memory and cores"]
    assert all(done == total for done, total in last.values())
    assert last["parts"] == (7, 7)
    assert last["clips at a time"] == (6, 6)  # two levels in three rounds


def test_memory_is_that_of_the_model_not_of_the_roofline(report: Report) -> None:
    memory = report.levels[-1].memory
    assert report.loaded.resident is not None
    assert memory.resident is not None
    assert memory.peak is not None
    assert memory.peak >= memory.resident


# --- the roofline ----------------------------------------------------------------------------------------------


def test_bytes_of_a_step_are_those_of_the_graph(asr_bundle: Path) -> None:
    bundle = open_bundle(asr_bundle)
    graph = onnx.load(bundle.component("decoder"), load_external_data=False).graph
    multiplied = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    weights = sum(4 * int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.name in multiplied)
    work = ModelWork(bundle)
    assert work.feed(1).bytes == pytest.approx(weights, rel=0.2)  # and norms, padding between tensors, the graph itself
    assert work.feed(1).bytes >= weights
    cache = 2 * bundle.spec.layers * bundle.spec.kv_heads * bundle.spec.head_dim * 4
    assert work.feed(1, past=100, rows=3).bytes - work.feed(1).bytes == 300 * cache


def test_operations_are_those_of_the_graphs_products(asr_bundle: Path) -> None:
    bundle = open_bundle(asr_bundle)
    spec, work = bundle.spec, ModelWork(bundle)

    def products(part: str, kinds: tuple[str, ...]) -> dict[str, int]:
        graph = onnx.load(bundle.component(part), load_external_data=False).graph
        dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        used = [name for node in graph.node if node.op_type in kinds for name in node.input if name in dims]
        return {name: int(np.prod(dims[name])) for name in used if len(dims[name]) > 1}

    decoder = 2 * sum(products("decoder", ("MatMul", "Gemm")).values())
    attention = 4 * spec.layers * spec.heads * spec.head_dim
    assert work.feed(1).flops == decoder + attention
    assert work.feed(1, past=9).flops == decoder + 10 * attention
    layers = decoder - 2 * spec.classes * spec.hidden
    assert work.feed(3, taken=1).flops == 3 * layers + 2 * spec.classes * spec.hidden + (1 + 2 + 3) * attention

    sizes = (64 * 50, 32 * 25, 16 * 13)  # of what each convolution puts out, from 128 bands x 100 frames
    kernels = products("encoder", ("Conv",)).values()
    convolutions = sum(2 * size * kernel for size, kernel in zip(sizes, kernels, strict=True))
    linear = 2 * 13 * sum(products("encoder", ("MatMul",)).values())
    seen = 4 * 13 * 13 * spec.encoder.width * spec.encoder.layers
    assert work.encode(100).flops == convolutions + linear + seen
    assert work.encode(37).flops == work.encode(100).flops  # padded to a chunk
    assert work.encode(1600).flops == 2 * work.encode(800).flops  # windows do not see each other
    assert work.encode(1600).bytes == 2 * work.encode(100).bytes


def test_a_floor_is_the_slower_of_reading_and_computing() -> None:
    roof = Roof(read_bytes=10.0, flops=100.0)
    assert roof.seconds(Work(20, 100)) == 2.0
    assert roof.seconds(Work(20, 500)) == 5.0


@pytest.mark.parametrize(
    ("kind", "weights", "given", "result"),
    [("MatMul", np.float32, np.float32, np.float32), ("MatMulInteger", np.int8, np.uint8, np.int32)],
)
def test_the_products_that_are_timed_are_products(kind: str, weights: Any, given: Any, result: Any) -> None:
    rng = np.random.default_rng(0)
    matrix, rows = rng.integers(-64, 64, (300, 7)).astype(weights), rng.integers(0, 256, (5, 300)).astype(given)
    graph = product(kind, matrix, given, result)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    (found,) = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"x": rows})
    assert found.dtype == result
    np.testing.assert_array_equal(found, rows.astype(np.int64) @ matrix.astype(np.int64))


def test_integer_bundles_are_held_against_integer_products(report: Report) -> None:
    assert not measure_roof("fp32").integer
    roof = measure_roof("int8")
    assert roof.integer
    assert roof.flops > 1e8
    assert "GFLOP/s in 8-bit integers" in text_of(replace(report, roof=roof))


def test_bounds_hold_for_what_was_measured(report: Report) -> None:
    assert report.roof is not None
    assert report.roof.read_bytes > 1e8
    assert report.roof.flops > 1e8
    for level in report.levels:
        assert level.bounds is not None
        assert level.bounds.throughput > 0
    one, three = (level.bounds for level in report.levels)
    assert one is not None
    assert three is not None
    assert one.first_token == three.first_token
    assert one.inter_token < three.inter_token < 3 * one.inter_token  # rows share the weights


# --- on paper --------------------------------------------------------------------------------------------------


def test_the_table_says_what_ran_where_and_how(report: Report) -> None:
    text = text_of(report)
    for expected in (
        "asr, fp32, ort dialect", "onnxruntime 1.", "clips of 2 s (synthetic), a prompt of 41 tokens, 6 tokens forced",
        "2 rounds after 1 that do not count", "GFLOP/s in float32", "decode step after 60 tokens", "between tokens, ms",
        "audio seconds a second", "aligner (aligner, fp32)", "5 words in 2 s", "energy is not measured",
    ):  # fmt: skip
        assert expected in text
    assert "technical report" not in text


def test_json_holds_everything_and_its_version(report: Report) -> None:
    content = json.loads(json.dumps(as_dict(report), allow_nan=False))
    assert content["schema"] == 1
    assert content["about"]["precision"] == "fp32"
    assert content["machine"]["packages"]["onnxruntime"]
    assert content["settings"] == {"seconds": 2.0, "tokens": 6, "concurrency": [1, 3], "rounds": 2, "warmup": 1,
                                   "clips": 2, "past": [20, 60]}  # fmt: skip
    assert set(content["levels"][1]["first_token"]) == {"count", "mean", "least", "p25", "p50", "p75", "p95", "most"}


def test_the_reports_figures_stand_beside_where_the_setting_is_theirs(report: Report) -> None:
    assert size_of(1024, 28) == "0.6B"
    assert size_of(64, 2) is None
    assert published("0.6B", 120.0, 360, 8) == Published(0.228, 0.0147, 543)
    assert published("1.7B", 118.0, 400, 128) == Published(3.392, 0.1050, 1220)
    for elsewhere in (("0.6B", 10.0, 360, 8), ("0.6B", 120.0, 360, 2), (None, 120.0, 360, 8)):
        assert published(*elsewhere) is None
    there = replace(report.levels[0], published=published("0.6B", 120.0, 360, 1))
    text = text_of(replace(report, levels=(there, *report.levels[1:])), width=160)
    assert "technical report, Table 2" in text
    assert "does not name: other hardware than here" in text
    assert [
        cell.strip() for cell in next(row for row in text.splitlines() if " report " in row and "│" in row).split("│")
    ][2:6] == ["report", "92", "0.0094", "106"]


def test_clips_of_too_few_tokens_are_not_set_beside_the_reports_and_that_is_said(report: Report) -> None:
    """Two minutes with 35 tokens cost a fraction of what two minutes of speech do."""
    assert published("0.6B", 120.0, 35, 1) is None
    reason = why_not("0.6B", 120.0, 35)
    assert reason.endswith("35 tokens are too few for 120 s of speech; give --tokens 360 or more.")
    assert reason in " ".join(text_of(replace(report, unlike=reason), width=400).split())
    for alike in (("0.6B", 120.0, 360), ("0.6B", 10.0, 35), (None, 120.0, 35)):
        assert why_not(*alike) == ""
    assert report.unlike == ""


def test_the_reports_aligner_stands_beside_where_the_clip_is_a_minute(report: Report) -> None:
    assert published_alignment("0.6B", 60.0) == PublishedAlignment(0.0089, 112)
    for elsewhere in (("0.6B", 10.0), ("1.7B", 60.0), (None, 60.0)):
        assert published_alignment(*elsewhere) is None
    assert report.aligner is not None
    assert report.aligner.published is None
    aligner = replace(report.aligner, published=PublishedAlignment(0.0089, 112))
    assert "Table 2: 0.0089, 112; vLLM" in text_of(replace(report, aligner=aligner), width=200)


def test_a_picture_is_whole_or_not_there(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plot(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    plot(report, tmp_path / "a.svg")
    picture = (tmp_path / "a.svg").read_text("utf-8")
    assert "</svg>" in picture
    from matplotlib.figure import Figure

    def breaks(self: Figure, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", breaks)
    with pytest.raises(OSError, match="the disk is full"):
        plot(report, tmp_path / "b.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]


# --- energy ----------------------------------------------------------------------------------------------------


def test_energy_says_why_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    boards = open_boards()
    assert boards.joules() is None
    assert boards.note.endswith("nvidia-ml-py is not installed; pip install 'qwen3asr[bench]'")


class FakeNvml:
    """Two boards that each draw 250 mJ between two readings."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts: bool) -> None:
        self.counts, self.millijoules = counts, 0

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"Board {handle}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if not self.counts:
            raise self.NVMLError("Not Supported")
        self.millijoules += 125
        return self.millijoules


def test_energy_is_that_of_all_boards_over_the_audio(asr_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(counts=True))
    report = benchmark(asr_bundle, replace(SMALL, concurrency=(1, 2), past=(5,)), roofline=False)
    assert report.machine.gpus == ("Board 0", "Board 1")
    assert report.energy == ""
    energies = [level.joules_per_audio_second for level in report.levels]
    assert [spread and spread.mean for spread in energies] == [
        0.5 / 4,
        0.5 / 8,
    ]  # half a joule over 2 and 4 clips of 2 s
    assert "J an audio second" in text_of(report)


def test_old_boards_count_no_energy_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(counts=False))
    boards = open_boards()
    assert boards.joules() is None
    assert boards.note == "energy is not measured: Board 0, Board 1 does not count it (Not Supported)"


# --- the pieces ------------------------------------------------------------------------------------------------


def test_a_spread_is_that_of_its_values() -> None:
    spread = Spread.of([3.0, 1.0, 2.0, 4.0, 5.0])
    assert spread == Spread(5, 3.0, 1.0, 2.0, 3.0, 4.0, pytest.approx(4.8), 5.0)
    assert spread.scaled(10) == Spread(5, 30.0, 10.0, 20.0, 30.0, 40.0, pytest.approx(48.0), 50.0)
    calls: list[int] = []
    assert timed(lambda: calls.append(1), rounds=3, warmup=2).count == 3
    assert len(calls) == 5


def test_made_up_speech_is_the_same_every_time_and_as_loud_as_speech() -> None:
    samples = speech_like(3.0)
    assert samples.shape == (48_000,)
    assert samples.dtype == np.float32
    assert np.array_equal(samples, speech_like(3.0))
    loudness = 20 * np.log10(np.sqrt(np.mean(samples**2)))
    assert -30 < loudness < -15
    assert np.array_equal(fit(samples, 7.0)[48_000:96_000], samples)
    assert np.array_equal(fit(samples, 1.0), samples[:16_000])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.1}, "seconds=0.1 is too short to measure; give at least 0.5"),
        ({"seconds": float("nan")}, "seconds=nan is too short"),
        ({"tokens": 1}, "tokens=1 measures nothing; give at least 2"),
        ({"rounds": 0}, "rounds=0 measures nothing"),
        ({"warmup": -1}, "warmup=-1 measures nothing"),
        ({"concurrency": (1, 0)}, r"concurrency=\(1, 0\) measures nothing"),
        ({"concurrency": ()}, "concurrency names no level"),
        ({"past": (0,)}, r"past=\(0,\) measures nothing"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        Settings(**settings)


def test_what_does_not_fit_is_refused_before_anything_is_measured(asr_bundle: Path, aligner_bundle: Path) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was measured")

    with pytest.raises(BundleKindWrong):
        benchmark(aligner_bundle, SMALL, progress=never)
    with pytest.raises(BundleKindWrong):
        benchmark(asr_bundle, SMALL, aligner=asr_bundle, progress=never)
    with pytest.raises(DeviceUnavailable, match="device="):
        benchmark(asr_bundle, SMALL, device="toaster")
    with pytest.raises(RequestInvalid, match="capacity="):
        benchmark(asr_bundle, replace(SMALL, past=(1_000_000,)))


# --- the command -----------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("signal.signal", lambda *_: None)
        cli.main(["bench", *map(str, arguments)])
    return int(end.value.code or 0)


QUICK = ("--tokens", 3, "--concurrency", "1,2", "--rounds", 1, "--warmup", 0, "--past", "5", "--no-roofline")


def test_the_command_measures_a_recording_and_writes_both_files(
    asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert run(asr_bundle, "--audio", recordings["english"].path, *QUICK, *files) == 0
    content = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert content["audio"] == "english.flac"
    assert content["settings"]["seconds"] == pytest.approx(3.9413, abs=1e-4)
    assert content["roof"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]
    out, err = capsys.readouterr()
    assert "clips of 3.94131 s (english.flac)" in out
    assert "error" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--concurrency", "1,x"), "--concurrency '1,x' is no list of whole numbers"),
        (("--past", ""), "--past '' is no list of whole numbers"),
        (("--plot", "a.gif"), "--plot a.gif has no ending that can be drawn; end it in .png, .svg, .pdf"),
        (("--json", "nowhere/a.json"), "--json nowhere/a.json cannot be written"),
        (("--rounds", "0"), "rounds=0 measures nothing; give at least 1"),
    ],
)
def test_wrong_arguments_are_refused_first(
    asr_bundle: Path, arguments: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(asr_bundle, *arguments) == cli.USAGE
    assert message in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named_first(asr_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3asr.benchmark import check_available

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ExtraMissing, match=r"drawing a benchmark needs .* matplotlib; .*'qwen3asr\[bench\]'"):
        check_available()


@pytest.fixture
def endless(asr_bundle: Path, tmp_path: Path, heeds_ctrl_c: None) -> Iterator[subprocess.Popen[str]]:
    files = ("--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    command = [sys.executable, "-m", "qwen3asr.cli", "bench", asr_bundle, *QUICK, "--clips", 1_000_000, *files]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_an_interrupt_leaves_nothing_half_written(endless: subprocess.Popen[str], tmp_path: Path) -> None:
    assert endless.stderr is not None
    for line in endless.stderr:
        if line.startswith("clips at a time"):  # clients are on their way, or about to be
            break
    endless.send_signal(signal.SIGINT)
    _, rest = endless.communicate(timeout=60)
    assert endless.returncode == cli.INTERRUPTED
    assert rest.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
