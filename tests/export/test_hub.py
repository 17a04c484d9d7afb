"""Checkpoints by name, against a small hub that runs in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest
from tests.checkpoints import TINY
from tests.fake_hub import COMMIT, ID, TAGGED, WEIGHTS, Handler, Hub
from tests.original import make_original, write_json

from qwen3asr.errors import (
    CheckpointForbidden,
    CheckpointInvalid,
    CheckpointNotFound,
    ConfigInvalid,
    DiskFull,
    HubUnreachable,
    Qwen3AsrError,
    RequestInvalid,
)
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.hub import Found, find_checkpoint


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    shutil.copytree(TINY / "asr", folder)
    (folder / "README.md").write_text("not wanted")
    (folder / "pytorch_model.bin").write_bytes(bytes(10))
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("not wanted either")
    with Hub(folder) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def find(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # between its attempts
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def run(source: str = ID, **options: Any) -> Found:
        return find_checkpoint(source, cache_dir=tmp_path / "cache", endpoint=hub.address, **options)

    return run


def test_a_repository_arrives_whole_and_says_its_commit(find: Any, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    found = find()
    assert (found.name, found.revision) == (ID, COMMIT)
    assert {path.name for path in found.folder.iterdir()} == {path.name for path in (TINY / "asr").iterdir()}
    assert Checkpoint(found.folder).weights_sha256 == Checkpoint(TINY / "asr").weights_sha256
    assert hub.log.index("GET config.json") < hub.log.index(f"GET {WEIGHTS}")
    assert capfd.readouterr() == ("", "")  # no progress bars in a log file


def test_a_second_time_nothing_is_fetched_and_offline_nothing_is_asked(find: Any, hub: Hub) -> None:
    first = find()
    hub.log.clear()
    assert find() == first
    assert not [line for line in hub.log if line.startswith("GET")]
    hub.log.clear()
    assert find(offline=True) == first
    assert hub.log == []


def test_the_environment_can_forbid_the_network_too(find: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert find() == first
    assert hub.log == []


def test_a_revision_is_taken(find: Any) -> None:
    assert find(revision="v1").revision == TAGGED
    assert find(revision="v1", offline=True).revision == TAGGED
    assert find(revision=COMMIT).revision == COMMIT


def test_the_original_layout_comes_with_all_its_files(find: Any, hub: Hub, tmp_path: Path) -> None:
    hub.folder = make_original(tmp_path / "original", "asr")
    checkpoint = Checkpoint(find().folder)
    assert checkpoint.layout == "original"
    assert json.loads(checkpoint.carried()["tokenizer.json"])["model"]["type"] == "BPE"


def _refused(find: Any, error: type[Qwen3AsrError], match: str, source: str = ID, **options: Any) -> None:
    with pytest.raises(error, match=match):
        find(source, **options)


def test_what_is_not_there_is_named(find: Any) -> None:
    _refused(find, CheckpointNotFound, "neither a folder someone/other here nor .* HF_TOKEN", "someone/other")
    _refused(find, CheckpointNotFound, f"{ID} has no revision 'v9'", revision="v9")
    _refused(find, CheckpointNotFound, "not, or not whole, in the cache .* run once with a connection", offline=True)
    _refused(find, CheckpointInvalid, "neither a folder here nor the name of a repository", "a--b/c")
    assert issubclass(CheckpointNotFound, FileNotFoundError)


def test_what_is_not_for_everyone_names_the_token(find: Any, hub: Hub) -> None:
    hub.gated = True
    _refused(find, CheckpointForbidden, "after consent to its terms .* HF_TOKEN")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model_type": "qwen2_audio"}, CheckpointInvalid, "a model of type 'qwen2_audio', not Qwen3-ASR"),
        ({"audio_config": {}}, ConfigInvalid, "activation_function"),
        ({"thinker_config": {}}, ConfigInvalid, r"thinker_config\.audio_config"),
    ],
)
def test_another_model_is_refused_before_its_weights_are_fetched(
    find: Any, hub: Hub, change: dict[str, Any], error: type[Qwen3AsrError], match: str
) -> None:
    config = json.loads((hub.folder / "config.json").read_text("utf-8"))
    write_json(hub.folder / "config.json", config | change)
    _refused(find, error, match)
    assert {line.split()[1] for line in hub.log} == {"config.json"}
    _refused(find, CheckpointNotFound, "not whole", offline=True)  # what was looked at is no checkpoint


@pytest.mark.parametrize(("file", "match"), [("config.json", "has no config.json"), (WEIGHTS, "no safetensors")])
def test_a_repository_without_a_checkpoint_is_refused(find: Any, hub: Hub, file: str, match: str) -> None:
    (hub.folder / file).unlink()
    _refused(find, CheckpointInvalid, match)


def test_a_connection_that_drops_is_taken_up_where_it_was(find: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.cuts = 2
    found = find()
    assert (found.folder / WEIGHTS).read_bytes() == (TINY / "asr" / WEIGHTS).read_bytes()
    first, second = (int(given.removeprefix("bytes=").rstrip("-")) for given in hub.ranges)
    assert 0 < first < second


def test_a_connection_that_stays_away_says_that_running_again_goes_on(
    find: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "_content", _without_weights(Handler._content))
    _refused(find, HubUnreachable, "could not be fetched .* run the same again: files that arrived whole are kept")
    _refused(find, CheckpointNotFound, "not whole", offline=True)
    monkeypatch.undo()
    hub.log.clear()
    assert Checkpoint(find().folder).spec.kind == "asr"
    assert (hub.served("config.json"), hub.served(WEIGHTS)) == (0, 1)


def _without_weights(content: Any) -> Any:
    def send(handler: Handler, path: str, body: bytes, headers: dict[str, str]) -> None:
        if (handler.command, path) == ("GET", WEIGHTS):
            handler.close_connection = True
        else:
            content(handler, path, body, headers)

    return send


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with Hub(tmp_path) as gone:
        address = gone.address
    with pytest.raises(HubUnreachable, match=f"{ID} could not be fetched"):
        find_checkpoint(ID, cache_dir=tmp_path, endpoint=address)
    assert issubclass(HubUnreachable, ConnectionError)


class _Usage(NamedTuple):
    total: int = 10**9
    used: int = 10**9 - 10**6
    free: int = 10**6


def test_too_small_a_disk_is_named_before_anything_is_fetched(
    find: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as small:
        small.setattr("shutil.disk_usage", lambda path: _Usage())
        _refused(find, DiskFull, f"{ID} needs 2 MB more .* has 1 MB free; free some space, or set HF_HOME")
        assert WEIGHTS not in {line.split()[1] for line in hub.log}
    first = find()
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage())
    assert find() == first  # nothing is needed any more


def test_a_disk_that_fills_on_the_way_is_named(find: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qwen3asr_export.hub.snapshot_download", full)
    _refused(find, DiskFull, "the disk of .* is full")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = TINY / "asr"
    assert find_checkpoint(folder) == find_checkpoint(str(folder)) == Found(folder, "asr", None)
    with pytest.raises(RequestInvalid, match="is a folder and has no revision 'main'"):
        find_checkpoint(folder, revision="main")


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "a/b/c", "a b/c", str(TINY / "train.py")])
def test_what_is_neither_folder_nor_id_says_what_to_give(source: str) -> None:
    with pytest.raises(CheckpointInvalid, match=r"give a folder, or a hub id such as Qwen/Qwen3-ASR-0\.6B"):
        find_checkpoint(source)
