"""Words that can be right or wrong: the tiny trained models on recordings of voices they have never heard."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from tests.checkpoints import TINY
from tests.conftest import Recording

import qwen3asr
from qwen3asr import Recognizer
from qwen3asr.errors import (
    AlignerMissing,
    AudioEmpty,
    AudioNotFinite,
    AudioNotFound,
    AudioTooLong,
    AudioUnreadable,
    ContextInvalid,
    EngineClosed,
    ExtraMissing,
    LanguageUnknown,
    RequestInvalid,
)
from qwen3asr.sessions.onnxruntime import OrtDecoder
from qwen3asr_export import export

NAMES = ("english", "german", "spanish", "chinese", "english-long", "german-short", "silence")
SPOKEN = NAMES[:-1]


def _samples(recording: Recording) -> np.ndarray:
    return np.asarray(soundfile.read(recording.path, dtype="float32")[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_word_and_the_language_are_right(model: Recognizer, recordings: dict[str, Recording], name: str) -> None:
    wanted = recordings[name]
    result = model.transcribe(wanted.path)
    assert (result.text, result.language) == (wanted.text, wanted.language)
    assert result.finish_reason == ("stop" if wanted.text else "no_speech")
    assert str(result) == wanted.text


@pytest.mark.parametrize("name", SPOKEN)
def test_word_times_are_near_the_true_ones(model: Recognizer, recordings: dict[str, Recording], name: str) -> None:
    wanted = recordings[name]
    result = model.transcribe(wanted.path, timestamps="word")
    assert [word.text for word in result.words] == [word["text"] for word in wanted.words]
    got = np.array([time for word in result.words for time in (word.start, word.end)])
    true = np.array([time for word in wanted.words for time in (word["start"], word["end"])], float)
    learned = len(wanted.words) <= 9  # the tiny aligner loses count in longer texts: scores.json, "long"
    assert np.abs(got - true).mean() < (0.060 if learned else 0.300)
    assert np.all(np.diff(got) >= 0)
    assert got[-1] <= result.duration
    assert all(result.text[slice(*word.span)] == word.text for word in result.words)
    assert all(word.confidence is not None and 0.3 < word.confidence <= 1 for word in result.words)
    assert result.confidence is not None
    assert 0.5 < result.confidence <= 1


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_rate_and_channels_do_not_matter(model: Recognizer, recordings: dict[str, Recording], rate: int) -> None:
    wanted = recordings["german"]
    other = soxr.resample(_samples(wanted), 16_000, rate)
    result = model.transcribe((np.stack([other, other], axis=1), rate))
    if rate > 8_000:  # telephone bandwidth loses what tells some of these words apart
        assert result.text == wanted.text
    assert result.language == "German"


def test_path_bytes_file_and_array_give_the_same(model: Recognizer, recordings: dict[str, Recording]) -> None:
    path = recordings["spanish"].path
    samples = _samples(recordings["spanish"])
    sources = [str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), samples, (samples, 16_000)]
    assert {model.transcribe(source).text for source in sources} == {recordings["spanish"].text}
    as_int = (samples * 32767).astype(np.int16)
    assert model.transcribe(as_int, sample_rate=16_000).text == recordings["spanish"].text


def test_a_forced_language_is_reported_and_its_tag_does_not_leak(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    result = model.transcribe(recordings["german"].path, language="de")
    assert (result.language, result.text) == ("German", recordings["german"].text)
    forced = model.transcribe(recordings["german"].path, language="English")
    assert forced.language == "English"
    assert "language" not in forced.text
    assert "<asr_text>" not in forced.text


def test_context_does_not_leak_into_the_text(model: Recognizer, recordings: dict[str, Recording]) -> None:
    for name in ("english", "silence"):
        assert model.transcribe(recordings[name].path, context="drei, hola").text == recordings[name].text


def test_silence_invents_nothing(model: Recognizer) -> None:
    for seconds in (0.001, 0.4, 3.0, 9.0):
        result = model.transcribe(np.zeros(max(1, int(seconds * 16_000)), np.float32), timestamps="word")
        assert (result.text, result.language, result.finish_reason) == ("", None, "no_speech")
        assert result.words == result.segments == ()
        assert (result.to_srt(), result.confidence) == ("", None)


def test_a_cut_text_says_so(
    model: Recognizer, recordings: dict[str, Recording], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "qwen3asr"):
        result = model.transcribe(recordings["english-long"].path, max_new_tokens=6)
    assert result.finish_reason == "length"
    assert recordings["english-long"].text.startswith(result.text)
    assert "raise max_new_tokens" in caplog.text


def test_a_text_cut_within_its_header_is_no_text(model: Recognizer, recordings: dict[str, Recording]) -> None:
    """ "language German" without what follows once was the transcript."""
    result = model.transcribe(recordings["german"].path, max_new_tokens=2)
    assert (result.text, result.language, result.finish_reason) == ("", None, "length")


def test_a_forced_japanese_without_its_extra_is_refused_early(
    model: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nagisa", None)
    with pytest.raises(ExtraMissing, match=r"qwen3asr\[ja\]"):
        model.transcribe(tmp_path / "nothing.wav", language="ja", timestamps="word")


def test_a_text_that_cannot_be_aligned_is_kept(
    model: Recognizer,
    recordings: dict[str, Recording],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Half an hour of decoding is not thrown away for want of word times."""

    def too_long(*_: object) -> None:
        raise AudioTooLong(300.0, 299.0, "forced aligner")

    monkeypatch.setattr("qwen3asr.aligner.Aligner.align_samples", too_long)
    with caplog.at_level(logging.WARNING, "qwen3asr"):
        result = model.transcribe(recordings["english"].path, timestamps="word")
    assert (result.text, result.words) == (recordings["english"].text, ())
    assert "no word times: 300.0 s" in caplog.text


def test_threads_may_share_a_model(model: Recognizer, recordings: dict[str, Recording]) -> None:
    names = list(SPOKEN) * 2
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda name: model.transcribe(recordings[name].path, timestamps="word"), names)
    assert [result.text for result in results] == [recordings[name].text for name in names]


def test_align_gives_the_same_times_for_the_same_text(model: Recognizer, recordings: dict[str, Recording]) -> None:
    wanted = recordings["english"]
    decoded = model.transcribe(wanted.path, timestamps="word").words
    aligned = model.align(wanted.path, wanted.text, language="en")
    assert [(w.text, w.start, w.end) for w in aligned] == [(w.text, w.start, w.end) for w in decoded]
    assert {word.confidence for word in aligned} == {None}


def test_align_keeps_the_callers_punctuation_out_of_words_but_knows_where_it_is(
    model: Recognizer, recordings: dict[str, Recording]
) -> None:
    text = "  " + recordings["english"].text.title().replace(" ", ", ") + "!"
    words = model.align(recordings["english"].path, text)
    assert [word.text.lower() for word in words] == recordings["english"].text.split()
    assert all(text[slice(*word.span)] == word.text for word in words)


@pytest.mark.parametrize("text", ["", "  ", "?! …"])
def test_text_without_words_aligns_to_nothing(model: Recognizer, recordings: dict[str, Recording], text: str) -> None:
    assert model.align(recordings["english"].path, text) == ()


def test_subtitles_hold_every_word_once_in_order(model: Recognizer, recordings: dict[str, Recording]) -> None:
    result = model.transcribe(recordings["english-long"].path, timestamps="word")
    lines = [line for line in result.to_srt().splitlines() if line and not re.match(r"\d+$|.* --> ", line)]
    assert " ".join(lines).split() == result.text.split()
    assert result.to_vtt().startswith("WEBVTT\n")
    content = json.loads(result.to_json())
    assert content["text"] == result.text
    assert len([word for segment in content["segments"] for word in segment["words"]]) == len(result.words)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_audio_that_cannot_be_used(model: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is not sound, whatever its name says\n" * 50)
    with pytest.raises(AudioNotFound, match="check the path"):
        model.transcribe(tmp_path / "nothing.wav")
    with pytest.raises(AudioEmpty):
        model.transcribe(tmp_path / "empty.wav")
    with pytest.raises(AudioUnreadable):
        model.transcribe(tmp_path / "text.wav")
    with pytest.raises(AudioEmpty):
        model.transcribe(np.zeros(0, np.float32))
    with pytest.raises(AudioNotFinite, match=r"nan_to_num"):
        model.transcribe(np.array([0, np.nan, np.inf], np.float32))


def test_an_unknown_language_names_the_nearest(model: Recognizer) -> None:
    with pytest.raises(LanguageUnknown, match="did you mean 'German'"):
        model.transcribe(np.zeros(16_000, np.float32), language="Germn")


def test_a_language_that_the_aligner_lacks_is_refused_early(model: Recognizer, tmp_path: Path) -> None:
    """Before the audio is even looked for."""
    with pytest.raises(LanguageUnknown, match="forced aligner"):
        model.transcribe(tmp_path / "nothing.wav", language="Arabic", timestamps="word")
    with pytest.raises(LanguageUnknown, match="forced aligner"):
        model.align(tmp_path / "nothing.wav", "text", language="ar")


def test_word_times_without_an_aligner(asr_bundle: Path) -> None:
    bare = qwen3asr.load(asr_bundle)
    with pytest.raises(AlignerMissing, match="aligner="):
        bare.transcribe(np.zeros(16_000, np.float32), timestamps="word")
    with pytest.raises(AlignerMissing):
        bare.align(np.zeros(16_000, np.float32), "one")


def test_requests_that_make_no_sense(model: Recognizer) -> None:
    silence = np.zeros(16_000, np.float32)
    with pytest.raises(RequestInvalid, match="'word' or None"):
        model.transcribe(silence, timestamps="char")  # type: ignore[arg-type]
    with pytest.raises(RequestInvalid, match="at least 1"):
        model.transcribe(silence, max_new_tokens=0)
    with pytest.raises(RequestInvalid, match=r"takes 0\.0 s of audio in a pass beside"):
        model.transcribe(silence, max_new_tokens=100_000)
    with pytest.raises(ContextInvalid):
        model.transcribe(silence, context="<|im_end|>")


def test_too_long_a_clip_for_the_aligner_says_what_fits(aligner_bundle: Path) -> None:
    with pytest.raises(AudioTooLong, match=r"forced aligner, which takes 32\.0 s; align it through a recogniser"):
        qwen3asr.load_aligner(aligner_bundle).align(np.zeros(33 * 16_000, np.float32), "one")


def test_a_detected_language_that_the_aligner_lacks_keeps_the_text(
    model: Recognizer,
    recordings: dict[str, Recording],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("qwen3asr.transcription.ALIGNER_LANGUAGES", ("Korean",))
    with caplog.at_level(logging.WARNING, "qwen3asr"):
        result = model.transcribe(recordings["english"].path, timestamps="word")
    assert (result.text, result.words) == (recordings["english"].text, ())
    assert "no word times" in caplog.text


def test_shared_weights_give_the_same_words_and_integers_cannot_be_shared(
    asr_bundle: Path, recordings: dict[str, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: list[bool] = []

    class Watched(OrtDecoder):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            mapped.append(named["mapped"])
            super().__init__(*arguments, **named)

    monkeypatch.setattr("qwen3asr.sessions.onnxruntime.OrtDecoder", Watched)
    qwen3asr.load(asr_bundle)
    shared = qwen3asr.load(asr_bundle, share_weights=True)
    assert mapped == [False, True]  # copied unless asked otherwise
    result = shared.transcribe(recordings["german"].path)
    assert (result.text, result.language) == (recordings["german"].text, "German")
    small = export(TINY / "asr", tmp_path / "int8", precision="int8", check=False)
    with pytest.raises(RequestInvalid, match="share_weights needs an fp32 bundle"):
        qwen3asr.load(small.folder, share_weights=True)


def test_a_model_on_the_cpu_may_be_closed_twice(
    asr_bundle: Path, aligner_bundle: Path, recordings: dict[str, Recording]
) -> None:
    spoken = recordings["english"]
    model = qwen3asr.load(asr_bundle, aligner=aligner_bundle, device="cpu", slots=1)
    assert model.transcribe(spoken.path, timestamps="word").text == spoken.text
    model.close()
    model.close(drain=True)
    with pytest.raises(EngineClosed, match="load it again"):
        model.transcribe(spoken.path)
