"""The Ray plugin on a cluster of two nodes, over the tiny trained models."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import soundfile
import soxr
from ray import serve
from ray.cluster_utils import Cluster
from starlette.testclient import TestClient
from tests.conftest import ROOT, Recording

import qwen3asr
from qwen3asr.errors import (
    AlignerMissing,
    BundleNotFound,
    EngineClosed,
    LanguageUnknown,
    ManifestInvalid,
    RequestInvalid,
)
from qwen3asr.server import ServerSettings, create_app
from qwen3asr_plugins.ray import Corpus, Server, Transcribe, build, transcribe_corpus

SPOKEN = ("english", "german-short", "spanish", "chinese")
STORE = 80 << 20  # bytes of an object store
PATIENCE = 60.0


@dataclass
class Nodes:
    """The head, where the tests are, and another node; each has one CPU, and so one actor."""

    cluster: Cluster
    other: Any = None

    def whole(self) -> None:
        """Both nodes are there."""
        if self.other is None:
            self.other = self.cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def kill(self) -> None:
        """End the other node as a power cut would."""
        self.cluster.remove_node(self.other, allow_graceful=False)
        self.other = None


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,  # a short path: it holds sockets
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder
        patch.setenv("OMP_NUM_THREADS", "1")
        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        nodes = Nodes(Cluster(initialize_head=True, head_node_args=head))
        ray.init(address=nodes.cluster.address, log_to_driver=False)
        yield nodes
        serve.shutdown()
        ray.shutdown()
        nodes.cluster.shutdown()


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    cluster.whole()
    return cluster


@pytest.fixture
def copies(recordings: dict[str, Recording], tmp_path: Path) -> Callable[[int], dict[str, str]]:
    """So many files of a folder, with what is said in them."""

    def make(count: int) -> dict[str, str]:
        (tmp_path / "audio").mkdir()
        truth = {}
        for number in range(count):
            wanted = recordings[SPOKEN[number % len(SPOKEN)]]
            path = tmp_path / "audio" / f"{number:03d}.flac"
            shutil.copy(wanted.path, path)
            truth[str(path)] = wanted.text
        return truth

    return make


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def _texts(folder: Path) -> dict[str, str | None]:
    rows = _rows(folder)
    texts = {row["path"]: row["text"] for row in rows}
    assert len(texts) == len(rows), "a file is there twice"
    return texts


# --- the stage -------------------------------------------------------------------------------------------------


def test_rows_of_a_dataset_get_text_words_and_errors(
    nodes: Nodes, asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    wanted = [recordings[name] for name in SPOKEN]
    rows = [{"id": number, "bytes": one.path.read_bytes()} for number, one in enumerate(wanted)]
    rows += [{"id": 4, "bytes": b"no audio"}, {"id": 5, "bytes": recordings["silence"].path.read_bytes()}]
    results = ray.data.from_items(rows).map_batches(
        Transcribe,
        fn_constructor_kwargs={"bundle": str(asr_bundle), "aligner": str(aligner_bundle), "timestamps": "word"},
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    found = sorted(results.take_all(), key=lambda row: row["id"])
    assert [row["text"] for row in found[:4]] == [one.text for one in wanted]
    assert [row["language"] for row in found[:4]] == [one.language for one in wanted]
    assert [word["text"] for word in found[0]["words"]] == wanted[0].text.split()
    assert 0 <= found[0]["words"][0]["start"] < found[0]["words"][0]["end"] <= found[0]["duration"]
    assert found[4]["text"] is None
    assert found[4]["error"].startswith("AudioUnreadable: ")
    assert (found[5]["text"], found[5]["finish_reason"], found[5]["words"]) == ("", "no_speech", [])
    assert [row["error"] for row in found if row["id"] != 4] == [None] * 5
    assert set(found[0]) == {"id", "text", "language", "duration", "finish_reason", "words", "error"}


def test_recordings_come_in_any_column(asr_bundle: Path, recordings: dict[str, Recording]) -> None:
    wanted = recordings["spanish"]
    samples, original = soundfile.read(wanted.path, dtype="float32")
    rate = 24_000
    samples = soxr.resample(samples, original, rate)
    decoded = {"array": samples.tolist(), "sampling_rate": rate}
    stage = Transcribe(asr_bundle, slots=2)
    for columns in (
        {"path": [str(wanted.path)]},
        {"bytes": [wanted.path.read_bytes()], "path": ["only a name"]},
        {"audio": [wanted.path.read_bytes()]},
        {"audio": [str(wanted.path)]},
        {"audio": [decoded]},
        {"audio": [{"bytes": wanted.path.read_bytes(), "path": None}]},
        {"audio": [{"bytes": None, "path": str(wanted.path)}]},
        {"audio": [samples.tolist()], "sampling_rate": [rate]},
    ):
        result = stage(pa.table(columns)).to_pylist()
        assert [(row["text"], row["error"]) for row in result] == [(wanted.text, None)], columns.keys()


def test_a_bad_row_harms_no_other(asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path) -> None:
    """Batches without a single text, and paths that are nothing, keep the types of the columns."""
    stage = Transcribe(asr_bundle, slots=2)
    good = str(recordings["english"].path)
    table = stage(pa.table({"path": [None, good, str(tmp_path), "/nowhere.wav"]}))
    assert [(error or "").split(":")[0] for error in table["error"].to_pylist()] == [
        "AudioFormatInvalid", "", "AudioUnreadable", "AudioNotFound",
    ]  # fmt: skip
    unusable = stage(pa.table({"audio": [["not", "numbers"], None]}))["error"].to_pylist()
    assert [error.split(":")[0] for error in unusable] == ["AudioFormatInvalid"] * 2
    assert table["text"].to_pylist() == [None, recordings["english"].text, None, None]
    assert stage(pa.table({"path": ["/nowhere.wav"]})).schema.equals(table.schema)


def test_known_text_is_aligned_and_not_transcribed(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    """Of an empty text there are no words; a language that the aligner does not know fails its row only."""
    one, two = recordings["english"], recordings["spanish"]
    text = one.text.replace(" ", ", ") + "!"
    stage = Transcribe(asr_bundle, aligner=aligner_bundle, slots=2, known_text=True)
    rows = [
        {"path": str(one.path), "text": text, "language": "English"},
        {"path": str(two.path), "text": None, "language": None},
        {"path": str(one.path), "text": "", "language": None},
        {"path": str(one.path), "text": "a", "language": "Thai"},
        {"path": "/nowhere.wav", "text": "a", "language": None},
    ]
    aligned, heard, empty, *failed = stage(pa.Table.from_pylist(rows)).to_pylist()
    assert (aligned["text"], aligned["language"], aligned["finish_reason"]) == (text, "English", None)
    assert [word["text"] for word in aligned["words"]] == one.text.split()
    true = [float(str(word["start"])) for word in one.words]
    assert np.abs(np.array([word["start"] for word in aligned["words"]]) - true).mean() < 0.1
    assert aligned["duration"] == pytest.approx(soundfile.info(one.path).duration, abs=0.001)
    assert (heard["text"], heard["finish_reason"], heard["words"]) == (two.text, "stop", [])
    assert (empty["text"], empty["words"], empty["error"]) == ("", [], None)
    assert [row["error"].split(":")[0] for row in failed] == ["LanguageUnknown", "AudioNotFound"]
    with pytest.raises(AlignerMissing):
        Transcribe(asr_bundle, known_text=True)


def test_options_are_checked_when_the_stage_is_made(asr_bundle: Path) -> None:
    with pytest.raises(AlignerMissing):
        Transcribe(asr_bundle, timestamps="word")
    stage = Transcribe(asr_bundle)
    with pytest.raises(RequestInvalid, match='batch_format="pyarrow"'):
        stage({"path": np.array(["a.wav"])})  # type: ignore[arg-type]
    with pytest.raises(RequestInvalid, match="rows have name, but no column bytes, audio or path"):
        stage(pa.table({"name": ["a.wav"]}))
    with pytest.raises(RequestInvalid, match="rows have text, language already"):
        stage(pa.table({"path": ["a.wav"], "text": ["what is said"], "language": ["en"]}))


# --- a corpus --------------------------------------------------------------------------------------------------


def test_a_lost_node_loses_and_doubles_nothing(
    nodes: Nodes, asr_bundle: Path, copies: Callable[[int], dict[str, str]], tmp_path: Path
) -> None:
    truth = copies(32)
    lost: list[Corpus] = []

    def lose_a_node(corpus: Corpus) -> None:
        if not lost and not ray.available_resources().get("CPU"):  # an actor is on each
            nodes.kill()
            lost.append(corpus)

    done = transcribe_corpus(truth, tmp_path / "out", asr_bundle, actors=2, batch_size=2, slots=2, progress=lose_a_node)
    assert lost
    assert lost[0].done < 32
    assert (done.total, done.skipped, done.done, done.failed) == (32, 0, 32, 0)
    assert _texts(tmp_path / "out") == truth


def test_a_run_that_was_stopped_goes_on(
    nodes: Nodes, asr_bundle: Path, copies: Callable[[int], dict[str, str]], tmp_path: Path
) -> None:
    truth, out = copies(8), tmp_path / "out"
    manifest = tmp_path / "list.jsonl"
    lines = [json.dumps({"audio": os.path.relpath(path, tmp_path), "text": "x"}) for path in truth]
    manifest.write_text("\n\n".join([*lines, lines[0]]), "utf-8")

    def stop(corpus: Corpus) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcribe_corpus(manifest, out, asr_bundle, batch_size=2, slots=2, progress=stop)
    kept = _texts(out)
    assert len(kept) == 2
    (out / ".part-000001-x.parquet.draft").write_bytes(b"half a")  # of a run that was killed while it wrote

    reports: list[Corpus] = []
    done = transcribe_corpus(manifest, out, asr_bundle, batch_size=2, slots=2, part_rows=4, progress=reports.append)
    assert done == reports[-1]
    assert (done.total, done.skipped, done.done) == (8, 2, 6)
    assert [report.done for report in reports] == [2, 4, 6]
    assert done.seconds == pytest.approx(sum(row["duration"] for row in _rows(out) if row["path"] not in kept))
    assert _texts(out) == truth
    assert sorted(path.name.split("-")[1] for path in out.glob("part-*")) == ["000000", "000001", "000002"]
    assert not list(out.glob(".*"))
    assert transcribe_corpus(manifest, out, asr_bundle, progress=stop) == Corpus(8, 8)


def test_failed_and_changed_files_are_done_again_and_leave_one_row(
    nodes: Nodes, asr_bundle: Path, copies: Callable[[int], dict[str, str]], recordings: dict[str, Recording],
    tmp_path: Path,
) -> None:  # fmt: skip
    truth, out = copies(4), tmp_path / "out"
    first, second, third, _ = truth
    Path(first).unlink()
    Path(second).write_bytes(b"no audio")
    done = transcribe_corpus(truth, out, asr_bundle, slots=2)
    assert (done.done, done.failed) == (2, 2)
    errors = {row["path"]: (row["error"] or "").split(":")[0] for row in _rows(out)}
    assert [errors[path] for path in (first, second, third)] == ["AudioNotFound", "AudioUnreadable", ""]
    assert transcribe_corpus(truth, out, asr_bundle) == Corpus(4, 4)

    shutil.copy(recordings["english"].path, first)  # was not there
    os.utime(third, ns=(1, 1))  # another version
    done = transcribe_corpus(truth, out, asr_bundle, slots=2)
    assert (done.skipped, done.done, done.failed) == (2, 2, 0)
    done = transcribe_corpus(truth, out, asr_bundle, slots=2, retry_failed=True)
    assert (done.skipped, done.done, done.failed) == (3, 0, 1)
    assert _texts(out) == truth | {second: None}
    assert len(_rows(out)) == 4


def test_a_manifest_s_text_is_aligned_and_again_where_it_has_changed(
    nodes: Nodes, asr_bundle: Path, aligner_bundle: Path, copies: Callable[[int], dict[str, str]], tmp_path: Path
) -> None:
    truth, out, manifest = copies(2), tmp_path / "out", tmp_path / "list.jsonl"
    first, second = truth
    other = "stop hello"  # is not what was said, and so nobody heard it

    def run(*lines: dict[str, object], **options: Any) -> Corpus:
        manifest.write_text("\n".join(map(json.dumps, lines)), "utf-8")
        return transcribe_corpus(manifest, out, asr_bundle, aligner=aligner_bundle, slots=2, **options)

    said, heard = {"audio": first, "text": other, "language": "en"}, {"audio": second}
    assert run(said, heard, known_text=True).done == 2
    assert _texts(out) == {first: other, second: truth[second]}
    (row,) = [row for row in _rows(out) if row["path"] == first]
    assert [word["text"] for word in row["words"]] == other.split()
    assert run(said, heard, known_text=True) == Corpus(2, 2)
    done = run(said | {"text": truth[first]}, heard, known_text=True)
    assert (done.skipped, done.done) == (1, 1)
    assert _texts(out) == truth
    with pytest.raises(RequestInvalid, match="was begun with known_text=True, not False"):
        run(said, heard)
    with pytest.raises(ManifestInvalid, match="text is 3"):
        run({"audio": first, "text": 3}, known_text=True)


def test_what_cannot_work_is_refused_before_anything_is_written(
    nodes: Nodes, asr_bundle: Path, copies: Callable[[int], dict[str, str]], tmp_path: Path
) -> None:
    truth, out = copies(1), tmp_path / "out"
    with pytest.raises(LanguageUnknown, match="'Klingon'") as raised:
        transcribe_corpus(truth, out, asr_bundle, language="Klingon")
    assert type(raised.value) is LanguageUnknown
    with pytest.raises(BundleNotFound):
        transcribe_corpus(truth, out, tmp_path / "no bundle")
    assert not out.exists()
    transcribe_corpus(truth, out, asr_bundle, language="en")
    with pytest.raises(RequestInvalid, match="was begun with language='en', not None"):
        transcribe_corpus(truth, out, asr_bundle)
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"audio": "a.wav"}\n{"audio": 3}\n{"text": "x"}\n[', "utf-8")
    with pytest.raises(ManifestInvalid, match=r"(?s)line 2 .*line 3 .*line 4 "):
        transcribe_corpus(manifest, out, asr_bundle, language="en")
    with pytest.raises(ManifestInvalid):
        transcribe_corpus(tmp_path / "nowhere.jsonl", out, asr_bundle, language="en")


def test_the_example_goes_on_where_it_stopped(
    nodes: Nodes, asr_bundle: Path, copies: Callable[[int], dict[str, str]], tmp_path: Path
) -> None:
    truth = copies(2)
    missing = tmp_path / "nowhere.wav"

    def run(*paths: object) -> subprocess.CompletedProcess[str]:
        script = [sys.executable, str(ROOT / "examples/ray_corpus.py"), asr_bundle, tmp_path / "out", *paths]
        env = os.environ | {"RAY_ADDRESS": nodes.cluster.address}
        return subprocess.run(list(map(str, script)), capture_output=True, text=True, check=False, env=env)

    done = run(*truth, missing)
    assert done.returncode == 1, done.stderr
    wanted = [f"{path}  {text}" for path, text in truth.items()]
    assert done.stdout.splitlines()[:2] == wanted
    assert done.stdout.splitlines()[2].startswith(f"{missing}  AudioNotFound: ")
    assert "3 of 3, " in done.stderr
    assert run(*truth).stdout.splitlines()[:2] == wanted


def test_the_readme_s_code_works(
    nodes: Nodes, asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With one core for each actor, and without the server's proxy, whose port may be taken."""
    text = (ROOT / "integrations/README.md").read_text("utf-8")
    blocks = re.findall(r"```py\n(.*?)```", text[text.index("\n## Ray") : text.index("\n## Triton")], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    shutil.copy(recordings["english"].path, tmp_path / "corpus" / "call.wav")
    line = {"audio": "corpus/call.wav", "text": "hello, stop"}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(line), "utf-8")
    known: dict[str, Any] = {"ray": ray, "Transcribe": Transcribe}

    def run(block: str) -> None:
        code = block.replace("/models/qwen3-asr-0.6b", str(asr_bundle))
        code = code.replace("/models/forced-aligner", str(aligner_bundle))
        code = code.replace('files("corpus"', f"files({str(tmp_path / 'corpus')!r}")  # workers are elsewhere
        exec(re.sub(r"\b(num_cpus|cpus)=4", r"\1=1", code).replace("size=8", "size=1").replace("(1, 16)", "1"), known)

    corpus, stage, server = blocks
    run(corpus)
    wanted = recordings["english"].text
    assert (known["done"].done, known["done"].failed) == (1, 0)
    (row,) = _rows(tmp_path / "transcripts")
    assert row["text"] == wanted
    assert [word["text"] for word in row["words"]] == wanted.split()
    run(stage)
    assert [row["text"] for row in known["rows"].take_all()] == [wanted]
    serve.start(proxy_location="Disabled")
    run(server)
    assert _running() == 1
    serve.shutdown()


def test_a_missing_package_is_named() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; import qwen3asr_plugins.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "ExtraMissing: the Ray plugin needs the package ray; install it with: pip install 'qwen3asr[ray]'"
        in done.stderr
    )


# --- the server ------------------------------------------------------------------------------------------------


@pytest.fixture
def address(nodes: Nodes, asr_bundle: Path, aligner_bundle: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(asr_bundle, aligner=aligner_bundle, replicas=2, slots=2))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def _post(address: str, audio: bytes, **fields: str) -> httpx.Response:
    files = {"file": ("clip.flac", audio)}
    data = {"model": "asr"} | fields
    return httpx.post(f"{address}/v1/audio/transcriptions", files=files, data=data, timeout=PATIENCE)


def _running() -> int:
    [application] = serve.status().applications.values()
    return application.deployments["Qwen3ASR"].replica_states.get("RUNNING", 0)


def test_two_replicas_serve_lose_one_and_finish_what_they_began(
    nodes: Nodes, address: str, model: qwen3asr.Recognizer, recordings: dict[str, Recording]
) -> None:
    wanted = [recordings[SPOKEN[number % len(SPOKEN)]] for number in range(12)]

    def texts() -> list[str]:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda one: _post(address, one.path.read_bytes()), wanted))
        assert [answer.status_code for answer in answers] == [200] * len(wanted)
        return [answer.json()["text"] for answer in answers]

    assert _running() == 2  # with a CPU each, one on each node
    assert texts() == [one.text for one in wanted]
    words = _post(
        address, wanted[0].path.read_bytes(), response_format="verbose_json", **{"timestamp_granularities[]": "word"}
    ).json()["words"]
    assert [word["word"] for word in words] == wanted[0].text.split()
    refused = _post(address, b"no audio")
    assert refused.status_code == 400
    assert httpx.get(f"{address}/ready").json() == {"status": "ready"}

    nodes.kill()
    assert texts() == [one.text for one in wanted]

    samples, rate = soundfile.read(recordings["english-long"].path, dtype="int16")
    long = io.BytesIO()
    soundfile.write(long, np.tile(samples, 20), rate, format="FLAC")
    audio = long.getvalue()
    events = []
    fields = {"model": "asr", "stream": "true"}
    request = httpx.stream(
        "POST", f"{address}/v1/audio/transcriptions", files={"file": audio}, data=fields, timeout=PATIENCE
    )
    with request as answer, ThreadPoolExecutor(1) as stopper:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            events.append(json.loads(line.removeprefix("data: ")))
            if len(events) == 1:
                stopped = stopper.submit(serve.delete, "default")
        stopped.result(PATIENCE)
    assert len(events) > 2
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == model.transcribe(audio).text
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"]


def test_a_replica_is_healthy_until_its_model_is_closed(asr_bundle: Path) -> None:
    async def live() -> None:
        replica = Server.__new__(Server)
        await Server.__init__(replica, str(asr_bundle), None, ServerSettings(), 1, 1)
        await replica.check_health()
        await replica.__del__()  # as Serve does when the replica is to stop
        with pytest.raises(EngineClosed):
            await replica.check_health()

    asyncio.run(live())


def test_keys_are_asked_for_under_a_route_prefix_too(model: qwen3asr.Recognizer) -> None:
    """Serve passes the whole path on, with the prefix as the root."""
    app = create_app(model, ServerSettings(api_keys=("key",)))
    with TestClient(app, root_path="/speech") as client:  # which also starts it and ends it, as Serve does
        assert client.get("/speech/v1/models").status_code == 401
        assert client.get("/speech/v1/models", headers={"Authorization": "Bearer key"}).status_code == 200
        assert client.get("/speech/ready").status_code == 200


def test_autoscaling_and_refusals_of_an_application(asr_bundle: Path) -> None:
    settings = ServerSettings(drain_seconds=7)
    application = build(asr_bundle, replicas=(1, 3), slots=5, queue=9, settings=settings)
    config = application._bound_deployment._deployment_config  # Ray shows it nowhere else
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (1, 3)
    assert config.autoscaling_config.target_ongoing_requests == 5
    assert (config.max_ongoing_requests, config.max_queued_requests) == (10, 9)
    assert config.graceful_shutdown_timeout_s == 7
    for wrong in ({"replicas": 0}, {"replicas": (3, 2)}, {"slots": 0}, {"queue": -1}):
        with pytest.raises(RequestInvalid):
            build(asr_bundle, **wrong)  # type: ignore[arg-type]
