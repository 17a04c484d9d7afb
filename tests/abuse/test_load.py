"""Hundreds of clients of every kind at once: each is answered right or refused as documented, and nothing is left."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import httpx2 as httpx
import pytest
from tests.abuse.process import MODEL, ServerProcess, settled
from tests.abuse.serving import wait_for
from tests.abuse.traffic import PATH, Clip, Load, clips
from tests.conftest import Recording

from qwen3asr import Recognizer

SPOKEN = ("english", "german", "german-short", "spanish", "chinese")
GROWTH_MB = 60
"""Resident memory that the server may gain over a load, after one that warmed it up."""
POOLED = 10
"""Threads that pools may still begin after warming up: they grow when many wait, and never beyond their size."""
REFUSED = {"oversized": "413", "no audio": "400", "no form": "400", "language": "400"}


@pytest.fixture(scope="module")
def spoken(model: Recognizer, recordings: dict[str, Recording]) -> list[Clip]:
    return clips(model, [recordings[name].path for name in SPOKEN])


@pytest.fixture
def process(asr_bundle: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(asr_bundle, tmp_path / "log", "--slots", "4", "--queue", "8", "--drain-seconds", "30")
    try:
        yield server
    finally:
        server.kill()


def test_every_client_gets_its_own_answer_or_a_refusal_and_nothing_is_left(
    process: ServerProcess, spoken: list[Clip], recordings: dict[str, Recording]
) -> None:
    texts = {name: recordings[name].text for name in SPOKEN}
    warm = Load(process.url, spoken, texts).run(160, at_a_time=32)
    assert warm.wrong == []
    before = settled(process)
    load = Load(process.url, spoken, texts, seed=1).run(320, at_a_time=40)
    assert load.wrong == []
    assert sum(load.outcomes.values()) == 320
    for kind, status in REFUSED.items():  # a full server may refuse it before it has looked
        ended = {each.split(": ")[1] for each in load.outcomes if each.split(": ")[0] == kind}
        assert {status} <= ended <= {status, "429"}
    after = settled(process)
    assert after["rss_mb"] < before["rss_mb"] + GROWTH_MB
    assert after["handles"] <= before["handles"] + 2
    assert after["threads"] <= before["threads"] + POOLED
    assert "Traceback" not in process.log.read_text()


class Upload:
    """A request all of which but the last byte is sent: begun, for as long as the test likes."""

    def __init__(self, url: str, clip: Clip) -> None:
        form = httpx.Request("POST", url + PATH, files={"file": clip.data}, data={"model": MODEL})
        body = form.read()
        self._connection = HTTPConnection(form.url.host, form.url.port, timeout=60)
        self._connection.putrequest("POST", PATH)
        for name in ("Content-Type", "Content-Length"):
            self._connection.putheader(name, form.headers[name])
        self._connection.endheaders(body[:-1])
        self._rest = body[-1:]

    def finish(self) -> tuple[int, str]:
        """Status and text."""
        self._connection.send(self._rest)
        answer = self._connection.getresponse()
        with closing(self._connection):
            return answer.status, json.loads(answer.read()).get("text", "")


def test_a_signal_under_load_finishes_what_was_begun(process: ServerProcess, spoken: list[Clip]) -> None:
    def ask(clip: Clip) -> httpx.Response | None:
        try:
            return httpx.post(process.url + PATH, files={"file": clip.data}, data={"model": MODEL}, timeout=60)
        except httpx.TransportError:
            return None  # it had stopped listening, perhaps with the connection not yet taken

    begun, others = [Upload(process.url, clip) for clip in spoken[:4]], spoken[4:12]
    wait_for(lambda: process.held()["server_requests"] == len(begun))
    with ThreadPoolExecutor(len(others)) as threads:
        asked = [threads.submit(ask, clip) for clip in others]
        process.signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in process.log.read_text())
        assert [upload.finish() for upload in begun] == [(200, clip.text) for clip in spoken[:4]]
        answers = [each.result() for each in asked]
    assert process.end() == 0
    for clip, answer in zip(others, answers, strict=True):
        if answer is not None and answer.status_code == 200:
            assert answer.json()["text"] == clip.text
        else:
            assert answer is None or answer.status_code in (429, 503)
