from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from qwen3asr.transcript import Transcript
from qwen3asr.types import Segment, Word

HELLO = Word("你好", 0.12345, 0.5, (0, 2), 0.987654)
WORLD = Word("world", 0.6, 1.0004, (3, 8))
SPOKEN = Transcript(
    "你好，world.",
    "Chinese",
    2.00049,
    "stop",
    (Segment("你好，", 0.12345, 0.5, (HELLO,)), Segment("world.", 0.6, 1.0004, (WORLD,))),
    0.123456,
)
SILENT = Transcript("", None, 1.0, "no_speech")


def test_words_are_those_of_all_segments_in_order() -> None:
    assert SPOKEN.words == (HELLO, WORLD)
    assert SILENT.words == ()
    assert Transcript("a", None, 1.0, "stop", (Segment("a", 0.0, 1.0),)).words == ()


def test_repaired_words_are_counted() -> None:
    words = (replace(HELLO, repaired=True), WORLD, replace(WORLD, repaired=True))
    assert replace(SPOKEN, segments=(Segment("a", 0.0, 1.0, words),)).repaired_words == 2


def test_str_is_the_text() -> None:
    assert f"{SPOKEN}" == "你好，world."


def test_dict_has_rounded_times_and_no_spans() -> None:
    assert SPOKEN.to_dict() == {
        "text": "你好，world.",
        "language": "Chinese",
        "duration": 2.0,
        "finish_reason": "stop",
        "confidence": 0.1235,
        "repaired_words": 0,
        "segments": [
            {
                "text": "你好，",
                "start": 0.123,
                "end": 0.5,
                "language": None,
                "words": [{"text": "你好", "start": 0.123, "end": 0.5, "confidence": 0.9877, "repaired": False}],
            },
            {
                "text": "world.",
                "start": 0.6,
                "end": 1.0,
                "language": None,
                "words": [{"text": "world", "start": 0.6, "end": 1.0, "confidence": None, "repaired": False}],
            },
        ],
    }


def test_json_is_the_dict_in_its_own_script() -> None:
    assert json.loads(SPOKEN.to_json()) == SPOKEN.to_dict()
    assert '"text": "你好，world."' in SPOKEN.to_json()
    assert SPOKEN.to_json().startswith('{\n  "text"')
    assert "\n" not in SPOKEN.to_json(indent=None)
    assert json.loads(SILENT.to_json()) == {
        "text": "",
        "language": None,
        "duration": 1.0,
        "finish_reason": "no_speech",
        "confidence": None,
        "repaired_words": 0,
        "segments": [],
    }


def test_subtitles_of_segments() -> None:
    assert SPOKEN.to_srt() == ("1\n00:00:00,123 --> 00:00:00,500\n你好，\n\n2\n00:00:00,600 --> 00:00:01,000\nworld.\n")
    assert SPOKEN.to_vtt() == (
        "WEBVTT\n\n00:00:00.123 --> 00:00:00.500\n你好，\n\n00:00:00.600 --> 00:00:01.000\nworld.\n"
    )


def test_subtitles_stay_within_the_audio() -> None:
    late = Transcript("a b", None, 2.0, "stop", (Segment("a", 0.0, 1.0), Segment("b", 2.0, 2.0)))
    assert "00:00:01,700 --> 00:00:02,000\nb\n" in late.to_srt()


def test_text_without_segments_is_one_cue_over_the_audio() -> None:
    assert Transcript("a", None, 2.0, "stop").to_srt() == "1\n00:00:00,000 --> 00:00:02,000\na\n"


def test_subtitles_of_nothing() -> None:
    assert (SILENT.to_srt(), SILENT.to_vtt()) == ("", "WEBVTT\n")


def test_a_transcript_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SILENT.text = "a"  # type: ignore[misc]
