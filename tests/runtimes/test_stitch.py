"""One transcript of several parts: text with the right spaces, every word where it is said and where it is written."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3asr.errors import RequestInvalid
from qwen3asr.events import Final
from qwen3asr.stitch import Part, join_texts, stitch, transcript_of
from qwen3asr.subtitles import segments_of
from qwen3asr.types import FinishReason, Word
from qwen3asr.words import split_words

steady = settings(deadline=None, derandomize=True, database=None, max_examples=200)


def part(text: str = "", start: float = 0.0, end: float = 10.0, **other: Any) -> Part:
    given_ = {"language": "English", "words": (), "finish_reason": "stop", "confidence": None, "tokens": 0, **other}
    return Part(text=text, start=start, end=end, **given_)


def spoken(text: str, start: float, step: float = 0.5, **other: Any) -> Part:
    """A part whose words take ``step`` seconds each."""
    units = split_words(text)
    words = tuple(Word(text[slice(*u.span)], n * step, (n + 1) * step, u.span) for n, u in enumerate(units))
    return part(text, start, start + step * len(units), words=words, **other)


# --- text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ("Good morning.", "How are you?", "Good morning. How are you?"),
        ("Straße", "zwölf", "Straße zwölf"),
        ("안녕하세요.", "저는", "안녕하세요. 저는"),
        ("今天", "天气", "今天天气"),
        ("今天。", "天气", "今天。天气"),
        ("ひらがな", "カタカナ", "ひらがなカタカナ"),
        ("OK", "ｶﾅ", "OKｶﾅ"),
        ("AI", "𠮷野家", "AI𠮷野家"),
        ("สวัสดี", "ครับ", "สวัสดีครับ"),
        ("ສະບາຍ", "ດີ", "ສະບາຍດີ"),
        ("សួស្តី", "បង", "សួស្តីបង"),
        ("မင်္ဂလာ", "ပါ", "မင်္ဂလာပါ"),
        ("今天", "AI is", "今天AI is"),
        ("is AI", "今天", "is AI今天"),
        ("OK！", "Yes", "OK！Yes"),
        ("한국", "漢字", "한국漢字"),
        ("well", ", I think", "well, I think"),
        ("(see", ") there", "(see) there"),
        ("done", "…", "done…"),
        ("سلام", "؟", "سلام؟"),
        ("one ", " two", "one two"),
    ],
)
def test_a_space_stands_between_parts_where_their_script_has_one(before: str, after: str, whole: str) -> None:
    assert stitch([part(before), part(after)], 20.0).text == whole


def test_parts_without_text_leave_no_trace_in_it() -> None:
    silent = part("", finish_reason="no_speech", language=None)
    result = stitch([silent, part("one"), silent, part("  "), part("two"), silent], 60.0)
    assert (result.text, len(result.segments)) == ("one two", 2)


# --- words and segments ----------------------------------------------------------------------------------------


def test_times_and_spans_become_those_of_the_whole() -> None:
    result = stitch([spoken("Good morning.", 0.0), spoken("Who is there?", 90.0)], 95.0)
    assert [(w.text, w.start, w.end, w.span) for w in result.words] == [
        ("Good", 0.0, 0.5, (0, 4)),
        ("morning", 0.5, 1.0, (5, 12)),
        ("Who", 90.0, 90.5, (14, 17)),
        ("is", 90.5, 91.0, (18, 20)),
        ("there", 91.0, 91.5, (21, 26)),
    ]
    assert [(s.text, s.start, s.end) for s in result.segments] == [
        ("Good morning.", 0.0, 1.0),
        ("Who is there?", 90.0, 91.5),
    ]
    assert result.duration == 95.0


def test_what_else_a_word_knows_stays() -> None:
    word = Word("one", 1.0, 2.0, (1, 4), confidence=0.5, repaired=True)
    result = stitch([part(" one", 3.0, 9.0, words=(word,))], 9.0)
    assert result.words == (Word("one", 4.0, 5.0, (0, 3), confidence=0.5, repaired=True),)


def test_a_segment_never_spans_two_parts() -> None:
    """Without a pause or a full stop between them, they once became one cue."""
    parts = [spoken("and so on", 0.0), spoken("and on", 1.5)]
    together = "and so on and on"
    words = stitch(parts, 3.0).words
    assert len(segments_of(together, words, 3.0)) == 1
    assert [segment.text for segment in stitch(parts, 3.0).segments] == ["and so on", "and on"]


def test_a_part_without_words_is_one_segment_over_its_time() -> None:
    result = stitch([part("one. two.", 3.0, 9.0), spoken("three.", 9.0)], 12.0)
    assert [(s.text, s.start, s.end, len(s.words)) for s in result.segments] == [
        ("one. two.", 3.0, 9.0, 0),
        ("three.", 9.0, 9.5, 1),
    ]


def test_no_time_runs_past_its_part_by_rounding() -> None:
    start, end = 4.1, 28.8
    assert start + (end - start) > end
    word = Word("one", 0.0, end - start, (0, 3))
    result = stitch([part("one", start, end, words=(word,))], end)
    assert result.words[0].end == result.segments[0].end == end


def test_words_that_do_not_fit_their_text_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="does not fit"):
        stitch([part("one", words=(Word("one", 0.0, 1.0, (2, 5)),))], 10.0)


@steady
@given(st.lists(st.text("aB é,.!?「」今カก한 ", max_size=12), max_size=6))
def test_every_word_is_found_at_its_span(texts: list[str]) -> None:
    start, parts = 0.0, []
    for text in texts:
        parts.append(spoken(text, start))
        start = parts[-1].end
    result = stitch(parts, start)
    assert [word.text for word in result.words] == [w.text for p in parts for w in p.words if p.text.strip()]
    assert all(result.text[slice(*word.span)] == word.text for word in result.words)
    times = [time for word in result.words for time in (word.start, word.end)]
    assert times == sorted(times)
    squeezed = "".join("".join(texts).split())
    assert "".join(result.text.split()) == squeezed
    assert "".join("".join(segment.text for segment in result.segments).split()) == squeezed


# --- language, end, confidence ---------------------------------------------------------------------------------


def test_each_segment_keeps_its_language_and_the_most_spoken_one_is_the_whole_s() -> None:
    parts = [
        spoken("eins zwei", 0.0, language="German"),
        spoken("one two three", 10.0, language="English"),
        spoken("vier fünf", 20.0, language="German"),
        spoken("hm", 30.0, language=None),
    ]
    result = stitch(parts, 40.0)
    assert result.language == "German"
    assert [segment.language for segment in result.segments] == ["German", "English", "German", None]


def test_language_is_weighed_by_speech_not_by_the_length_of_pieces() -> None:
    word = Word("ja", 0.0, 0.2, (0, 2))
    silence = part("ja", 0.0, 100.0, words=(word,), language="German")
    assert stitch([silence, spoken("one two", 100.0)], 110.0).language == "English"


def test_without_text_the_language_is_the_forced_one_or_none() -> None:
    assert stitch([part(language=None), part(language="German")], 20.0).language == "German"
    assert stitch([part(language=None)], 10.0).language is None


@pytest.mark.parametrize(
    ("reasons", "whole"),
    [
        (["stop", "no_speech"], "stop"),
        (["no_speech", "no_speech"], "no_speech"),
        (["stop", "loop", "no_speech"], "loop"),
        (["loop", "length", "stop"], "length"),
        (["length", "cancelled"], "cancelled"),
        ([], "no_speech"),
    ],
)
def test_the_worst_ending_is_the_whole_s(reasons: list[FinishReason], whole: str) -> None:
    assert stitch([part(finish_reason=reason) for reason in reasons], 10.0).finish_reason == whole


def test_confidence_is_the_geometric_mean_over_all_tokens() -> None:
    known = [part("a", confidence=0.9, tokens=3), part("b", confidence=0.4, tokens=1)]
    unknown = [part("c", confidence=None, tokens=50), part("", confidence=0.1, tokens=0)]
    assert stitch(known + unknown, 40.0).confidence == pytest.approx(math.exp((3 * math.log(0.9) + math.log(0.4)) / 4))
    assert stitch(unknown, 20.0).confidence is None
    assert stitch([*known, part("d", confidence=0.0, tokens=1)], 30.0).confidence == 0.0


def test_no_parts_are_an_empty_transcript() -> None:
    result = stitch([], 3.0)
    assert (result.text, result.language, result.duration, result.segments) == ("", None, 3.0, ())
    assert (result.confidence, result.to_srt()) == (None, "")


# --- streams ---------------------------------------------------------------------------------------------------


def test_the_finals_of_a_stream_become_one_transcript() -> None:
    words = (Word("Hello", 1.2, 1.5, (0, 5)), Word("you", 1.5, 1.9, (6, 9)))
    finals = [
        Final("Hello you.", "English", 1.0, 2.0, "stop", words, 0.5),
        Final("", None, 3.0, 3.5, "no_speech"),
        Final("Bye.", "English", 4.0, 5.0, "length", (Word("Bye", 4.5, 4.8, (0, 3)),), 1.0),
    ]
    result = transcript_of(finals)
    assert (result.text, result.language, result.finish_reason) == ("Hello you. Bye.", "English", "length")
    assert [(word.text, word.start) for word in result.words] == [("Hello", 1.2), ("you", 1.5), ("Bye", 4.5)]
    assert [result.text[slice(*word.span)] for word in result.words] == ["Hello", "you", "Bye"]
    assert result.duration == 5.0
    assert result.confidence == pytest.approx(0.5 ** (10 / 14))
    assert transcript_of([]).text == ""


def test_texts_are_joined_as_their_scripts_are_written() -> None:
    assert join_texts([" one", "", "two ", "。三", "四"]) == "one two。三四"
