from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen3asr.errors import RequestInvalid
from qwen3asr.subtitles import (
    Cue,
    cues_of_segments,
    make_cues,
    render_srt,
    render_vtt,
    segments_of,
    width,
    wrap,
)
from qwen3asr.types import Segment, Word

WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+(?:[.'][^\W\u4e00-\u9fff]+)*")


def timed(text: str, *times: tuple[float, float]) -> list[Word]:
    """The words of ``text``; without ``times``, each lasts 0.4 s and follows 0.1 s after the one before."""
    spans = [match.span() for match in WORD.finditer(text)]
    given_times = times or [(i * 0.5, i * 0.5 + 0.4) for i in range(len(spans))]
    return [Word(text[a:b], start, end, (a, b)) for (a, b), (start, end) in zip(spans, given_times, strict=True)]


def texts(text: str, words: list[Word] | None = None, **limits: float) -> list[str]:
    cues = make_cues(text, timed(text) if words is None else words, **limits)  # type: ignore[arg-type]
    return [cue.text for cue in cues]


def squeeze(text: str) -> str:
    return "".join(text.split())


# --- where the text is cut -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, I know. Do you? No!", ["Yes, I know.", "Do you?", "No!"]),
        ("It is 3.14 in all. So it is.", ["It is 3.14 in all.", "So it is."]),
        ("The U.S.A. is big. Mr. Li and J. Doe know.", ["The U.S.A. is big.", "Mr. Li and J. Doe know."]),
        ("So did I. Then we left.", ["So did I.", "Then we left."]),
        ("He said: “Go now.” (They went.) Bye", ["He said: “Go now.”", "(They went.)", "Bye"]),
        ("Well... maybe. OK?! Fine", ["Well...", "maybe.", "OK?!", "Fine"]),
        ("¿Qué tal? ¡Muy bien!", ["¿Qué tal?", "¡Muy bien!"]),
        ("Il a dit. « Bonjour. » Puis rien.", ["Il a dit.", "« Bonjour. »", "Puis rien."]),
        ("It cost a lot. $5 each.", ["It cost a lot.", "$5 each."]),
        ("你好。「再见」！好吗？好", ["你好。", "「再见」！", "好吗？", "好"]),
        ('他走了。"再见。"好', ["他走了。", '"再见。"', "好"]),
        ("— Oui . Non", ["— Oui .", "Non"]),
    ],
)
def test_sentences_are_cut_after_their_punctuation(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_a_pause_starts_a_new_cue() -> None:
    text = "one two three"
    words = timed(text, (0.0, 0.4), (0.5, 1.0), (1.9, 2.4))
    assert texts(text, words) == ["one two", "three"]
    assert texts(text, words, max_gap=0.95) == ["one two three"]


def test_a_long_sentence_is_cut_at_the_comma_near_its_middle() -> None:
    text = "All of these many people went home, and then they did not ever come back to the old town again"
    words = [Word(w.text, i * 0.1, i * 0.1 + 0.1, w.span) for i, w in enumerate(timed(text))]
    assert texts(text, words) == [
        "All of these many people went home,",
        "and then they did not ever come back to the old town again",
    ]


def test_a_long_sentence_without_commas_is_cut_evenly() -> None:
    text = " ".join(["word"] * 14)  # 7 s
    assert texts(text) == [" ".join(["word"] * 7)] * 2


def test_wide_characters_count_twice() -> None:
    text = "好" * 43
    words = [Word(w.text, i * 0.1, i * 0.1 + 0.1, w.span) for i, w in enumerate(timed(text))]
    assert len(texts(text, words)) == 2
    assert texts(text[:42], words[:42]) == [text[:42]]


def test_a_cue_is_not_cut_inside_a_number_whose_parts_are_timed_apart() -> None:
    text = "ab 12.34 xyz"
    words = [Word("ab", 0, 1, (0, 2)), Word("12", 1, 2, (3, 5)), Word("34", 2, 3, (6, 8)), Word("xyz", 3, 4, (9, 12))]
    assert texts(text, words, max_chars=11) == ["ab", "12.34 xyz"]


def test_a_cue_that_would_take_three_lines_is_cut() -> None:
    text = f"{'x' * 30} {'y' * 30} {'z' * 20}"  # 82 columns, but no two words fit a line
    words = timed(text, (0.0, 0.5), (0.5, 1.0), (1.0, 1.5))
    assert texts(text, words) == ["x" * 30, f"{'y' * 30} {'z' * 20}"]


def test_units_that_share_their_characters_stay_together() -> None:
    # nagisa makes two units of one fraction sign: the second has an empty span
    words = [Word("1", 0.0, 0.1, (0, 1)), Word("2", 5.0, 5.1, (1, 1)), Word("杯", 5.2, 5.3, (1, 2))]
    segments = segments_of("½杯", words, 6.0, max_seconds=1.0)
    assert [(s.text, len(s.words)) for s in segments] == [("½", 2), ("杯", 1)]


def test_spans_of_another_text_are_refused() -> None:
    with pytest.raises(RequestInvalid, match=r"word 1 \('b'\) has the span \(2, 3\).*the very text"):
        make_cues("a", timed("a b"))
    with pytest.raises(RequestInvalid, match="the very text"):  # in the wrong order
        segments_of("a b", timed("a b")[::-1], 1.0)


def test_text_without_words() -> None:
    assert segments_of(" Hello. ", (), 2.5) == (Segment("Hello.", 0.0, 2.5),)
    assert segments_of("  ", (), 2.5) == ()
    assert make_cues("Hello.", (), duration=2.5) == [Cue(0.0, 2.5, "Hello.")]
    assert make_cues(" ", ()) == []
    with pytest.raises(RequestInvalid, match="give words, or duration"):
        make_cues("Hello.", ())


@pytest.mark.parametrize("limits", [{"max_chars": 0}, {"max_seconds": 0.0}, {"max_seconds": float("nan")}])
def test_limits_that_nothing_fits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(RequestInvalid, match="give both above zero"):
        texts("a b", **limits)


def test_segments_hold_their_words_and_their_own_times() -> None:
    text = "Yes. No way!"
    words = timed(text, (0.0, 0.0), (0.0, 0.5), (0.6, 1.0))
    assert segments_of(text, words, 9.0) == (
        Segment("Yes.", 0.0, 0.0, (words[0],)),
        Segment("No way!", 0.0, 1.0, (words[1], words[2])),
    )


# --- times -----------------------------------------------------------------------------------------------------


def cues(*segments: tuple[float, float, str], duration: float | None = None) -> list[tuple[float, float, str]]:
    made = cues_of_segments([Segment(text, start, end) for start, end, text in segments], duration=duration)
    return [(cue.start, cue.end, cue.text) for cue in made]


def test_times_that_are_long_enough_stay() -> None:
    plain = [(0.0, 1.0, "a"), (1.0, 2.0, "b"), (2.5, 2.8, "c")]
    assert cues(*plain, duration=3.0) == plain


def test_a_short_cue_lasts_into_the_silence_behind_it() -> None:
    assert cues((1.0, 1.0, "a"), (2.0, 3.0, "b")) == [(1.0, 1.3, "a"), (2.0, 3.0, "b")]


def test_a_short_cue_takes_from_a_long_one_that_follows() -> None:
    assert cues((0.0, 0.0, "a"), (0.0, 2.0, "b")) == [(0.0, 0.3, "a"), (0.3, 2.0, "b")]


def test_cues_without_room_become_one() -> None:
    # the aligner puts words that it did not hear at one time
    assert cues((1.0, 1.0, "a."), (1.0, 1.0, "b."), (1.1, 1.1, "c.")) == [(1.0, 1.3, "a. b. c.")]
    assert cues((1.0, 1.0, "好。"), (1.0, 1.0, "吗？")) == [(1.0, 1.3, "好。吗？")]
    assert cues((1.0, 1.0, "네."), (1.0, 1.0, "좋아")) == [(1.0, 1.3, "네. 좋아")]


def test_overlapping_segments_do_not_overlap_as_cues() -> None:
    assert cues((0.0, 9.0, "a"), (5.0, 6.0, "b")) == [(0.0, 5.0, "a"), (5.0, 6.0, "b")]


def test_the_last_cue_does_not_outlast_the_audio() -> None:
    assert cues((0.0, 1.0, "a"), (2.0, 2.0, "b"), duration=2.0) == [(0.0, 1.0, "a"), (1.7, 2.0, "b")]
    assert cues((0.0, 2.0, "a"), (2.0, 2.0, "b"), duration=2.0) == [(0.0, 1.7, "a"), (1.7, 2.0, "b")]
    assert cues((1.7, 2.0, "a"), (2.0, 2.0, "b"), duration=2.0) == [(1.7, 2.0, "a b")]
    assert cues((2.0, 2.0, "a"), (2.0, 2.0, "b"), duration=2.0) == [(1.7, 2.0, "a b")]
    assert cues((0.0, 0.0, "a"), duration=0.1) == [(0.0, 0.1, "a")]
    assert cues((0.0, 0.0, "a"), duration=0.0) == [(0.0, 0.001, "a")]
    assert cues((0.0, 5.0, "a"), duration=2.0) == [(0.0, 5.0, "a")]  # a word's own end counts


def test_without_a_duration_the_last_cue_gets_its_minimum() -> None:
    assert cues((2.0, 2.0, "a")) == [(2.0, 2.3, "a")]


def test_blank_segments_make_no_cue() -> None:
    assert cues((0.0, 1.0, " "), (1.0, 2.0, " b ")) == [(1.0, 2.0, "b")]


# --- SRT and WebVTT --------------------------------------------------------------------------------------------


def test_srt_as_written() -> None:
    assert render_srt([Cue(0.0, 1.5, "Hi."), Cue(3661.25, 360_000.0, "Bye.")]) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHi.\n\n2\n01:01:01,250 --> 100:00:00,000\nBye.\n"
    )


def test_vtt_as_written() -> None:
    assert render_vtt([Cue(0.0, 1.5, "A & B"), Cue(2.0, 3.0, "<i> --> &amp;")]) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nA &amp; B\n\n"
        "00:00:02.000 --> 00:00:03.000\n&lt;i&gt; --&gt; &amp;amp;\n"
    )


def test_no_cues() -> None:
    assert (render_srt([]), render_vtt([])) == ("", "WEBVTT\n")
    assert (render_srt([Cue(0, 1, "\n")]), render_vtt([Cue(0, 1, " ")])) == ("", "WEBVTT\n")


@pytest.mark.parametrize(
    ("seconds", "clock"), [(0.9996, "00:00:01,000"), (59.9999, "00:01:00,000"), (3599.9995, "01:00:00,000")]
)
def test_milliseconds_never_round_to_1000(seconds: float, clock: str) -> None:
    assert render_srt([Cue(seconds, seconds, "a")]).splitlines()[1] == f"{clock} --> {clock}"


def test_blank_lines_in_a_cue_do_not_end_it() -> None:
    assert render_srt([Cue(0.0, 1.0, "a\n\nb\u2028\r\n c")]).splitlines()[2:] == ["a b c"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("x" * 42, ["x" * 42]),
        (
            "It was the best of times, it was the worst of times.",
            ["It was the best of times,", "it was the worst of times."],
        ),
        ("https://example.org/" + "x" * 40 + " is it", ["https://example.org/" + "x" * 40, "is it"]),
        ("好" * 22, ["好" * 11, "好" * 11]),
    ],
)
def test_lines_are_few_even_and_at_most_42_wide(text: str, lines: list[str]) -> None:
    assert wrap(text).split("\n") == lines


def test_punctuation_stays_with_its_text() -> None:
    assert wrap("好好好。好好", 6).split("\n") == ["好好", "好。", "好好"]
    assert wrap("好好好「吗」", 8).split("\n") == ["好好好", "「吗」"]
    assert wrap("カード", 2).split("\n") == ["カー", "ド"]


def test_width_counts_columns() -> None:
    assert [width(text) for text in ("", "abc", "好", "ｶﾅ", "한", "e\u0301", "นี้")] == [0, 3, 2, 2, 2, 1, 1]


# --- whatever the words ----------------------------------------------------------------------------------------

STEPS = st.sampled_from([0.0, 0.0, 0.0004, 0.001, 0.0777, 0.3, 1.2, 7.0])
PIECES = st.sampled_from(
    ["a", "I", "U.S.A", "3.14", "Mr", "well", "internationalisation", "好", "吗", "안녕", "été", "x" * 50]
)
BETWEEN = st.sampled_from(
    [" ", " ", " ", ", ", ". ", "? ", "... ", " (", '" ', ' "', "。", "，", "「", " - ", "", "\n", " « "]
)


@st.composite
def transcripts(draw: st.DrawFn) -> tuple[str, list[Word], float]:
    """Text and its words; times never run backwards, but often stand still."""
    text, words, now = draw(st.sampled_from(["", "¿", '"', "… "])), [], draw(STEPS)
    for piece in draw(st.lists(PIECES, min_size=1, max_size=40)):
        start = now + draw(STEPS)
        now = start + draw(STEPS)
        words.append(Word(piece, start, now, (len(text), len(text) + len(piece))))
        text += piece + draw(BETWEEN)
    return text, words, now + draw(STEPS)


def parse_srt(srt: str) -> list[tuple[int, int, str]]:
    parsed = []
    for number, block in enumerate(srt.strip().split("\n\n"), start=1):
        head, times, *lines = block.split("\n")
        assert head == str(number)
        h1, m1, s1, t1, h2, m2, s2, t2 = map(int, re.split(r"[:,]| --> ", times))
        start, end = ((h1 * 60 + m1) * 60 + s1) * 1000 + t1, ((h2 * 60 + m2) * 60 + s2) * 1000 + t2
        assert lines
        assert all(line.strip() for line in lines)
        parsed.append((start, end, "".join(lines)))
    return parsed


@settings(deadline=None)
@given(transcripts(), st.booleans())
@example(("a. b", [Word("a", 0.0, 0.0, (0, 1)), Word("b", 0.0, 0.0, (3, 4))], 0.0), True)
def test_srt_is_in_order_without_overlap_and_whole(made: tuple[str, list[Word], float], bounded: bool) -> None:
    text, words, duration = made
    parsed = parse_srt(render_srt(make_cues(text, words, duration=duration if bounded else None)))
    assert squeeze("".join(line for _, _, line in parsed)) == squeeze(text)
    least = min(300, max(1, round(duration * 1000))) if bounded else 300
    assert all(end - start >= least for start, end, _ in parsed)
    assert all(end <= start for (_, end, _), (start, _, _) in pairwise(parsed))
    if bounded:
        assert parsed[-1][1] <= max(1, round(duration * 1000))


@settings(deadline=None)
@given(transcripts())
def test_cues_keep_to_the_time_of_their_first_word(made: tuple[str, list[Word], float]) -> None:
    text, words, duration = made
    first_at = {len(squeeze(text[: word.span[0]])): word for word in reversed(words)}
    at = 0
    for cue in make_cues(text, words, duration=duration):
        first = min(offset for offset in first_at if offset >= at)
        assert abs(cue.start - first_at[first].start) <= 0.302
        at += len(squeeze(cue.text))


@settings(deadline=None)
@given(transcripts(), st.integers(10, 84), st.sampled_from([1.0, 6.0]))
def test_segments_keep_the_limits_and_every_word(
    made: tuple[str, list[Word], float], max_chars: int, max_seconds: float
) -> None:
    text, words, duration = made
    segments = segments_of(text, words, duration, max_chars=max_chars, max_seconds=max_seconds)
    assert [word for segment in segments for word in segment.words] == words
    for segment in segments:
        if len(segment.words) > 1:
            assert width(segment.text) <= max_chars
            assert segment.end - segment.start <= max_seconds
            assert len(wrap(segment.text).split("\n")) <= 2
        assert segment.start == segment.words[0].start
        assert all(word.text in segment.text for word in segment.words)


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 60))
def test_wrapping_loses_nothing(text: str, columns: int) -> None:
    wrapped = wrap(text, columns)
    assert squeeze(wrapped) == squeeze(text)
    assert "\n\n" not in wrapped
