"""Hundreds of clients of every kind at once: each is answered right or refused as documented, and nothing is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    assert any(each.endswith(": 429") for each in load.outcomes), "the queue was never full"
    after = settled(process)
    assert after["rss_mb"] < before["rss_mb"] + GROWTH_MB
    assert after["handles"] <= before["handles"] + 2
    assert after["threads"] <= before["threads"] + POOLED
    assert "Traceback" not in process.log.read_text()


def test_a_signal_under_load_finishes_what_was_begun(process: ServerProcess, spoken: list[Clip]) -> None:
    def ask(clip: Clip) -> httpx.Response | None:
        try:
            return httpx.post(process.url + PATH, files={"file": clip.data}, data={"model": MODEL}, timeout=60)
        except httpx.ConnectError:
            return None  # it had stopped listening

    some = spoken[:12]
    with ThreadPoolExecutor(len(some)) as threads:
        asked = [threads.submit(ask, clip) for clip in some]
        wait_for(lambda: process.held()["server_requests"] >= 4)
        process.signal(signal.SIGTERM)
        answers = [each.result() for each in asked]
    assert process.end() == 0
    statuses = [answer.status_code for answer in answers if answer is not None]
    assert statuses.count(200) >= 4
    assert set(statuses) <= {200, 503}
    for clip, answer in zip(some, answers, strict=True):
        if answer is not None and answer.status_code == 200:
            assert answer.json()["text"] == clip.text
