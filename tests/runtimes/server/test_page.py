"""The demo page in a headless Chromium, against a real server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import numpy as np
import pytest
import soundfile
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from tests.conftest import Recording
from tests.runtimes.server.conftest import Server, Start

import qwen3asr
from qwen3asr import LANGUAGES
from qwen3asr.server import ServerSettings

PATIENCE = 30.0
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=900,1000 "
    "--autoplay-policy=no-user-gesture-required --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()
needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromedriver are not installed",
)


class Page:
    """What a user sees and does."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.until(lambda: self["body"].get_attribute("data-ready"))

    def __getitem__(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, holds: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.05).until(lambda _: holds())

    def choose(self, path: Path) -> None:
        self["#file"].send_keys(str(path))
        self.until(lambda: not self["#busy"].is_displayed())

    @property
    def text(self) -> str:
        return self["#text"].text

    @property
    def complaints(self) -> list[str]:
        """What the browser itself found wrong, such as a violated Content-Security-Policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


Open: TypeAlias = Callable[..., Page]


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Open]:
    drivers: list[webdriver.Chrome] = []

    def open_page(url: str, *flags: str) -> Page:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags):
            options.add_argument(flag)
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        drivers.append(webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver")))))
        return Page(drivers[-1], url)

    yield open_page
    for driver in drivers:
        driver.quit()


def test_page_allows_nothing_from_elsewhere(server: Server) -> None:
    policy = httpx2.get(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    for path in ("/", "/page/app.js", "/page/live.js", "/page/reader.js", "/page/recorder.js", "/page/style.css"):
        answer = httpx2.get(server.url + path)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "://" not in answer.text.replace("https:// or localhost", "")
        assert not re.search(r"innerHTML|insertAdjacentHTML|outerHTML|document\.write|eval\(", answer.text)
    assert httpx2.get(server.url + "/page/languages.json").json()["names"] == LANGUAGES


def test_page_can_be_left_out(start: Start) -> None:
    assert httpx2.get(start(ServerSettings(page=False)).url).status_code == 404


@needs_chromium
def test_words_of_a_file(server: Server, open_page: Open, recordings: dict[str, Recording], tmp_path: Path) -> None:
    page, recording = open_page(server.url), recordings["english"]
    page.choose(recording.path)
    assert page.text == recording.text
    words = page.all(".word")
    assert [word.text for word in words] == recording.text.split()

    starts = [float(word.get_attribute("data-start") or "nan") for word in words]
    assert starts == pytest.approx([float(str(word["start"])) for word in recording.words], abs=0.1)
    words[3].click()
    assert page.js("return document.querySelector('audio').currentTime") == pytest.approx(starts[3], abs=0.01)
    page.until(lambda: [word.text for word in page.all(".word.now")] == ["water"])
    words[3].send_keys(Keys.ARROW_LEFT)
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.until(lambda: [word.text for word in page.all(".word.now")] == ["two"])

    page.js("document.querySelector('audio').currentTime = 0")
    page.until(lambda: [word.text for word in page.all(".word.now")] != ["two"])
    page.js("window.marked = new Set(); const note = () => { for (const w of document.querySelectorAll('.word.now'))"
            " marked.add(w.textContent); requestAnimationFrame(note) }; note();"
            " document.querySelector('audio').play()")  # fmt: skip
    page.until(lambda: page.js("return document.querySelector('audio').ended"))
    assert page.js("return [...marked]") == recording.text.split()

    for kind, wanted in (("srt", "00:00:00,"), ("vtt", "WEBVTT")):
        page[f"#{kind}"].click()
        saved = tmp_path / "downloads" / f"english.{kind}"
        page.until(saved.exists)
        assert wanted in saved.read_text("utf-8")
        assert recording.text in saved.read_text("utf-8").replace("\n", " ")
    assert page.complaints == []


@needs_chromium
def test_a_dropped_file_in_a_forced_language(server: Server, open_page: Open, recordings: dict[str, Recording]) -> None:
    page, recording = open_page(server.url), recordings["chinese"]
    page["#language"].send_keys("Chinese")
    page.js(
        "const files = new DataTransfer(); files.items.add(new File([new Uint8Array(arguments[0])], 'a.flac'));"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: files, bubbles: true}))",
        list(recording.path.read_bytes()),
    )
    page.until(lambda: page.text == recording.text)
    assert len(page.all(".word")) > 1


@needs_chromium
def test_without_an_aligner_segments_are_read(
    start: Start, asr_bundle: Path, open_page: Open, recordings: dict[str, Recording]
) -> None:
    with qwen3asr.load(asr_bundle) as bare:
        page = open_page(start(None, bare).url)
        page.choose(recordings["german"].path)
        assert [unit.text for unit in page.all(".word")] == [recordings["german"].text]


@needs_chromium
def test_what_goes_wrong_is_said(
    server: Server, open_page: Open, tmp_path: Path, recordings: dict[str, Recording]
) -> None:
    page = open_page(server.url)
    (tmp_path / "notes.mp3").write_bytes(b"no audio at all")
    page.choose(tmp_path / "notes.mp3")
    assert "cannot be read as audio" in page["#error"].text
    page.choose(recordings["silence"].path)
    assert page.text == "Nobody speaks in this file."
    assert not page["#error"].is_displayed()


@needs_chromium
def test_a_key_is_asked_for(start: Start, open_page: Open, recordings: dict[str, Recording], tmp_path: Path) -> None:
    page = open_page(start(ServerSettings(api_keys=("open-sesame",))).url, _spoken(recordings["english"], tmp_path))
    assert page["#key"].is_displayed()
    page["#key"].send_keys("wrong" + Keys.ENTER)
    page.until(lambda: "none of the server's API keys" in page["#error"].text)
    page["#key"].clear()
    page["#key"].send_keys("open-sesame" + Keys.ENTER)
    page.until(lambda: not page["#error"].is_displayed() and page["#model"].text)
    page.choose(recordings["spanish"].path)
    assert page.text == recordings["spanish"].text
    _record(page)
    page.until(lambda: page["#text .pending"].text or page["#text p span"].text)
    page["#record"].click()
    page.until(lambda: page["#record"].text == "Record")


@needs_chromium
def test_text_while_somebody_speaks(
    server: Server, open_page: Open, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    page = open_page(server.url, _spoken(recordings["english"], tmp_path))
    _record(page)
    page.until(lambda: page["#text .pending"].text)  # greyed, while more is said
    assert page["#text p"].text
    page.until(lambda: page["#text p span"].text == recordings["english"].text)
    page["#record"].click()
    page.until(lambda: page["#record"].text == "Record")
    assert recordings["english"].text in page.text
    assert not page["#error"].is_displayed()
    page.until(lambda: not server.app.state.lifecycle.running)
    assert page.complaints == []


@needs_chromium
def test_recording_ends_with_the_server(
    start: Start, open_page: Open, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    server = start()
    page = open_page(server.url, _spoken(recordings["english"], tmp_path))
    _record(page)
    server.drain()
    page.until(lambda: "about to stop" in page["#error"].text)
    assert page["#record"].text == "Record"


def _record(page: Page) -> None:
    page["#record"].click()
    page.until(lambda: page["#record"].text == "Stop" or page["#error"].is_displayed())
    assert page["#error"].text == ""


def _spoken(recording: Recording, folder: Path) -> str:
    """The flag that makes Chromium's microphone hear a recording and two seconds of quiet, again and again."""
    samples, rate = soundfile.read(recording.path, dtype="float32")
    quiet = np.zeros(2 * rate, np.float32)
    soundfile.write(folder / "microphone.wav", np.concatenate([quiet[:rate], samples, quiet]), rate, subtype="PCM_16")
    return f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}"
