"""Evaluation: figures worked out by hand, manifests with mistakes, and the tiny models on the recordings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import ROOT

from qwen3asr import Recognizer, Transcript, Word
from qwen3asr.errors import AudioUnreadable, BackendFailed, ExtraMissing, ManifestInvalid, Qwen3AsrError
from qwen3asr.evaluation import (
    Alignment,
    Clip,
    Edits,
    Evaluation,
    Failure,
    LeftOut,
    Result,
    Side,
    TrueWord,
    as_dict,
    as_text,
    evaluate,
    normalise,
    paired,
    read_clips,
    summarise,
)
from qwen3asr.evaluation.scoring import has_loop, score, unit_of

# --- normalisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  Hello,\tWORLD!\n", "hello world"),
        ("Don’t say 'tis the dogs' — rock 'n' roll", "don't say tis the dogs rock n roll"),
        ("it''s", "its"),
        ("and/or well-known… wait...what", "and or well known waitwhat"),
        ("ＡＢＣ １２３ ﬁn ㌔", "abc 123 fin キロ"),
        ("STRASSE Straße", "strasse strasse"),
        ("3.14 €5 50%", "314 5 50"),
        ("你好，世界。", "你好世界"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),  # marks are part of the words
        ("cafe\u0301", "caf\u00e9"),
        ("می\u200cخواهم soft\u00adhyphen", "میخواهم softhyphen"),
        ("‘quoted’ “text”", "quoted text"),
        ("?! … '", ""),
        ("", ""),
    ],
)
def test_normalised_texts(text: str, wanted: str) -> None:
    assert normalise(text) == wanted


@settings(deadline=None)
@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


# --- edits -----------------------------------------------------------------------------------------------------


def test_word_and_character_edits_by_hand() -> None:
    got = score("One two, three four five six.", "one too three five six seven", "English")
    assert got.words == Edits(substitutions=1, deletions=1, insertions=1, units=6)
    assert (got.unit, got.edits.rate, got.exact) == ("words", 0.5, False)
    got = score("A kitten", "a sitting", "English")
    assert got.characters == Edits(substitutions=2, deletions=0, insertions=1, units=7)


def test_chinese_is_scored_by_characters_without_punctuation() -> None:
    got = score("今天天气很好，我们走吧。", "今天天汽很好我们 走", "Chinese")
    assert got.edits == Edits(substitutions=1, deletions=1, insertions=0, units=10)
    assert got.edits.rate == 0.2
    assert score("今天，天气。", "今天 天气", "Chinese").exact
    assert not score("good morning", "goodmorning", "English").exact


def test_an_empty_reference_counts_insertions() -> None:
    assert score("", "Thank you for watching!").edits == Edits(insertions=4)
    assert score("...", "谢谢观看").edits == Edits(insertions=4)
    assert score("", "").exact
    assert score("", "你").edits.rate is None
    assert score("one two", "").edits == Edits(deletions=2, units=2)


def test_apostrophes_and_case_are_no_errors_but_contractions_are() -> None:
    assert score("I don’t know", "i don't know.", "English").exact
    assert score("I don’t know", "I do not know", "English").edits.errors == 2


@pytest.mark.parametrize(
    ("language", "text", "unit"),
    [
        ("Cantonese", "hello", "characters"),
        ("Thai", "x", "characters"),
        ("Korean", "안녕", "words"),
        (None, "今天 OK", "characters"),
        (None, "สวัสดี", "characters"),
        (None, "the 北京 office", "words"),
        (None, "", "words"),
    ],
)
def test_units_go_by_language_or_script(language: str | None, text: str, unit: str) -> None:
    assert unit_of(language, text) == unit


@settings(deadline=None)
@given(st.text(), st.sampled_from(["English", "Japanese", None]))
def test_a_text_has_no_edits_against_itself(text: str, language: str | None) -> None:
    got = score(text, text, language)
    assert (got.words.errors, got.characters.errors, got.exact) == (0, 0, True)


@settings(deadline=None)
@given(st.text("ab c'", max_size=20), st.text("ab c'", max_size=20))
def test_edits_lie_between_the_difference_and_the_greater_of_the_lengths(one: str, other: str) -> None:
    forth, back = score(one, other, "English").words, score(other, one, "English").words
    assert forth.errors == back.errors
    assert abs(forth.units - back.units) <= forth.errors <= max(forth.units, back.units)
    assert forth.units - forth.deletions == back.units - forth.insertions


def test_loops() -> None:
    assert has_loop("well " + "no, " * 9 + "No,")
    assert has_loop("a" * 10)
    assert has_loop("thank  you\n" * 10)
    assert not has_loop("no, " * 9)
    assert not has_loop("abcdefghijklmnopqrstu" * 10)  # 21 characters


# --- a scripted model ------------------------------------------------------------------------------------------


class Scripted:
    """Answers what is written for a file's name; an exception is raised."""

    def __init__(self, answers: dict[str, Any], words: dict[str, Any] | None = None) -> None:
        self.answers, self.words = answers, words or {}
        self.asked: list[tuple[str, str | None, str]] = []

    def transcribe(self, audio: Any, *, language: str | None = None, context: str = "") -> Transcript:
        if not isinstance(audio, Path):
            return Transcript("", None, 1.0, "no_speech")
        self.asked.append((audio.name, language, context))
        answer = self.answers[audio.name]
        if isinstance(answer, BaseException):
            raise answer
        text, spoken, *finish = answer
        return Transcript(text, spoken, 2.0, *(finish or ["stop"]))

    def align(self, audio: Any, text: str, *, language: str | None = None) -> Sequence[Word]:
        answer = self.words[audio.name]
        if isinstance(answer, BaseException):
            raise answer
        return [Word(word, start, end, (0, 0)) for word, start, end in answer]


def _clip(name: str, text: str, language: str | None = None, words: Any = (), context: str = "") -> Clip:
    return Clip(Path(name), text, language, context, tuple(TrueWord(*word) for word in words), name)


CLIPS = [
    _clip("en", "one two three four", "English"),
    _clip("en2", "five six", "English", context="Tongyi"),
    _clip("zh", "五天九天九六", "Chinese"),
    _clip("silent", ""),
    _clip("quiet", " ... "),
    _clip("nameless", "hello there"),
]
ANSWERS: dict[str, Any] = {
    "en": ("One, two tree four.", "English"),  # 1 substitution of 4
    "en2": ("five six", "German"),
    "zh": ("五天九天六", "Chinese"),  # 1 deletion of 6
    "silent": ("thank you", "English"),  # 2 insertions
    "quiet": ("", None, "no_speech"),
    "nameless": ("hello " * 10, "English", "length"),  # 1 substitution and 8 insertions of 2
}


def test_the_figures_of_a_corpus_by_hand() -> None:
    summary = summarise(evaluate(Scripted(ANSWERS), CLIPS))
    assert summary.overall.edits == Edits(substitutions=2, deletions=1, insertions=10, units=14)
    assert (summary.overall.unit, summary.overall.clips, summary.overall.exact) == ("mixed", 6, 2)
    assert {(group.language, group.unit, group.clips): group.edits.rate for group in summary.languages} == {
        ("Chinese", "characters", 1): 1 / 6,
        ("English", "words", 2): 1 / 6,
        (None, "words", 1): 9 / 2,
    }
    assert summary.languages[1].characters == Edits(deletions=1, units=22)  # three, tree
    assert (summary.no_speech.clips, summary.no_speech.invented) == (2, 1)
    assert summary.no_speech.edits == Edits(insertions=2)
    assert summary.finish == {"stop": 4, "length": 1, "loop": 0, "no_speech": 1}
    assert (summary.loops, summary.failed) == (1, 0)


def test_rates_are_of_sums_and_not_means_of_rates() -> None:
    clips = [_clip("long", "a b c d e f g h i", "English"), _clip("short", "j", "English")]
    evaluation = evaluate(Scripted({"long": ("a b c d e f g h i", "English"), "short": ("k", "English")}), clips)
    assert summarise(evaluation).overall.edits.rate == 0.1  # the mean would be 0.5


def test_a_text_that_was_cut_for_repeating_itself_is_counted_as_such() -> None:
    """It used to be in no row of the endings, which then did not add up to the clips."""
    clips = [_clip("clip", "ha", "English"), _clip("other", "ho", "English")]
    answers = {"clip": ("ha ha ha", "English", "loop"), "other": ("ho", "English")}
    evaluation = evaluate(Scripted(answers), clips)
    summary = summarise(evaluation)
    assert summary.finish == {"stop": 1, "length": 0, "loop": 1, "no_speech": 0}
    assert summary.loops == 1
    row = next(line for line in as_text([Side("out/a", "x", None, evaluation)]).splitlines() if "(loop)" in line)
    assert row.split()[-1] == "1"


def test_a_loop_that_was_spoken_is_none() -> None:
    clip = _clip("clip", "ha " * 12, "English")
    assert summarise(evaluate(Scripted({"clip": ("ha " * 12, "English")}), [clip])).loops == 0


def test_languages_are_detected_or_forced() -> None:
    model = Scripted(ANSWERS)
    found = summarise(evaluate(model, CLIPS)).identification
    assert found is not None
    assert (found.clips, found.right, found.confusions) == (3, 2, (("English", "German", 1),))
    assert model.asked[:2] == [("en", None, ""), ("en2", None, "Tongyi")]
    model = Scripted(ANSWERS)
    assert summarise(evaluate(model, CLIPS, force=True)).identification is None
    assert [language for _, language, _ in model.asked] == ["English", "English", "Chinese", None, None, None]


def test_latency_is_summed_and_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.1, 1.0, 1.2, 2.0, 2.3, 3.0, 4.0, 5.0, 5.2, 6.0, 6.2])
    monkeypatch.setattr("qwen3asr.evaluation.run.perf_counter", lambda: next(ticks))
    speed = summarise(evaluate(Scripted(ANSWERS), CLIPS)).speed
    assert speed.processing_seconds == pytest.approx(2.0)
    assert (speed.audio_seconds, speed.real_time_factor) == (12.0, pytest.approx(1 / 6))
    assert speed.median_seconds == pytest.approx(0.2)
    assert speed.p95_seconds == pytest.approx(0.3 + 0.75 * 0.7)


def test_a_clip_that_fails_is_named_and_the_others_are_done() -> None:
    bad = AudioUnreadable("en2", "no sound")
    seen: list[Result | Failure] = []
    evaluation = evaluate(Scripted({**ANSWERS, "en2": bad, "zh": PermissionError("locked")}), CLIPS, done=seen.append)
    assert [(failure.clip.name, failure.message) for failure in evaluation.failures] == [
        ("en2", str(bad)),
        ("zh", "locked"),
    ]
    assert tuple(seen) == evaluation.outcomes
    summary = summarise(evaluation)
    assert (summary.failed, summary.overall.clips, summary.overall.edits.units) == (2, 4, 6)


def test_a_mistake_in_the_code_is_not_taken_for_a_bad_clip() -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate(Scripted({**ANSWERS, "zh": ZeroDivisionError()}), CLIPS)


def test_nothing_at_all_has_no_rates() -> None:
    summary = summarise(evaluate(Scripted({"en": AudioUnreadable("en", "x")}), CLIPS[:1], align=True))
    assert (summary.overall.edits.rate, summary.speed.real_time_factor, summary.boundaries) == (None, None, None)
    text = as_text([Side("b", "about", None, evaluate(Scripted({"en": AudioUnreadable("en", "x")}), CLIPS[:1]))])
    assert "failed: en: en cannot be read" in text


def test_a_model_that_cannot_even_do_silence_ends_the_run() -> None:
    class Broken(Scripted):
        def transcribe(self, *_: Any, **__: Any) -> Transcript:
            raise BackendFailed("ONNX Runtime", RuntimeError("out of memory"))

    with pytest.raises(BackendFailed):
        evaluate(Broken({}), CLIPS)


def test_without_jiwer_the_extra_is_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    model = Scripted(ANSWERS)
    with pytest.raises(ExtraMissing, match=r"qwen3asr\[eval\]"):
        evaluate(model, CLIPS)
    assert model.asked == []


# --- word times ------------------------------------------------------------------------------------------------

TRUE = [("One,", 0.1, 0.4), ("two", 0.5, 0.9)]
FOUND = [("one", 0.14, 0.4), ("two", 0.58, 1.0)]


def _aligned(words: Any, found: Any, language: str | None = "English") -> Result:
    model = Scripted({"clip": ("", language)}, {"clip": found})
    (result,) = evaluate(model, [_clip("clip", "one two", language, words)], align=True).results
    return result


def test_boundary_shifts_by_hand() -> None:
    model = Scripted({"clip": ("one two", "English")}, {"clip": FOUND})
    shifts = summarise(evaluate(model, [_clip("clip", "one two", "English", TRUE)], align=True)).boundaries
    assert shifts is not None
    assert (shifts.clips, shifts.words, shifts.left_out) == (1, 2, ())
    assert shifts.start_ms == pytest.approx((40 + 80) / 2)
    assert shifts.end_ms == pytest.approx((0 + 100) / 2)
    assert shifts.shift_ms == pytest.approx((40 + 80 + 0 + 100) / 4)
    assert shifts.within_80_ms == 0.75


@pytest.mark.parametrize(
    ("words", "found", "language", "reason"),
    [
        (TRUE, FOUND[:1], "English", "the manifest has 2 words, the text as the aligner splits it 1"),
        (TRUE[:1], FOUND, "English", "the manifest has 1 words, the text as the aligner splits it 2"),
        (TRUE, [("one", 0, 1), ("to", 1, 2)], "English", "word 2 of the manifest is 'two', of the text .* 'to'"),
        (TRUE, FOUND, "Arabic", "the aligner does not know Arabic"),
        ([("one", 0.1, 0.4), ("two", 3.1, 3.2)], FOUND, "English", "reach 3.2 s, the audio 2.0 s"),
    ],
)
def test_clips_whose_words_do_not_fit_are_left_out_with_the_reason(
    words: Any, found: Any, language: str, reason: str
) -> None:
    alignment = _aligned(words, found, language).alignment
    assert isinstance(alignment, LeftOut)
    assert not alignment.failed
    assert re.search(reason, alignment.reason)


def test_an_aligner_that_fails_costs_the_times_and_not_the_text() -> None:
    result = _aligned(TRUE, BackendFailed("ONNX Runtime", RuntimeError("out of memory")))
    assert isinstance(result.alignment, LeftOut)
    assert (result.alignment.failed, "out of memory" in result.alignment.reason) == (True, True)
    assert result.score.words.deletions == 2


def test_nothing_is_aligned_unless_asked_and_known() -> None:
    model = Scripted({"clip": ("one two", "English")})
    assert evaluate(model, [_clip("clip", "one two", "English", TRUE)]).results[0].alignment is None
    assert evaluate(model, [_clip("clip", "one two", "English")], align=True).results[0].alignment is None


# --- two side by side ------------------------------------------------------------------------------------------


def test_two_are_compared_on_the_clips_that_both_can_do() -> None:
    one = evaluate(Scripted({**ANSWERS, "en": AudioUnreadable("en", "x")}), CLIPS)
    other = evaluate(Scripted({**ANSWERS, "zh": AudioUnreadable("zh", "x")}), CLIPS)
    first, second = (summarise(evaluation) for evaluation in paired(one, other))
    assert first.overall == second.overall
    assert (first.overall.clips, first.failed, second.failed) == (4, 2, 2)


def test_word_times_are_compared_on_the_clips_that_both_could_align() -> None:
    clips = [_clip(name, "one two", "English", TRUE) for name in ("a", "b")]
    answers = dict.fromkeys("ab", ("one two", "English"))
    good = evaluate(Scripted(answers, dict.fromkeys("ab", FOUND)), clips, align=True)
    half = evaluate(Scripted(answers, {"a": FOUND, "b": FOUND[:1]}), clips, align=True)
    for evaluation in (*paired(good, half), *paired(half, good)):
        shifts = summarise(evaluation).boundaries
        assert shifts is not None
        assert (shifts.clips, [name for name, _ in shifts.left_out]) == (1, ["b"])
    alone, none = paired(good, evaluate(Scripted(answers), clips))
    assert [isinstance(result.alignment, Alignment) for result in alone.results] == [True, True]
    assert summarise(none).boundaries is None


def _sides() -> list[Side]:
    worse = {**ANSWERS, "en2": ("nine ten", "German"), "silent": ("", None, "no_speech"), "zh": OSError("gone")}
    clips = [replace(CLIPS[0], words=(TrueWord("one", 0, 1),)), *CLIPS[1:]]
    one = evaluate(Scripted(ANSWERS, {"en": [("one", 0, 1), ("two", 1, 2)]}), clips, align=True)
    return [Side("out/a", "x, fp32", "out/t (t, fp32)", one), Side("out/b", "x, int4", None, _evaluated(worse, clips))]


def _evaluated(answers: dict[str, Any], clips: Sequence[Clip]) -> Evaluation:
    return evaluate(Scripted(answers), clips)


def test_the_table_has_both_and_their_difference() -> None:
    lines = as_text(_sides()).splitlines()
    assert lines[:3] == [
        "A  out/a (x, fp32); aligner out/t (t, fp32)",
        "B  out/b (x, int4)",
        "5 clips, 10.0 s of audio; 1 failed and are in no figure",
    ]
    cells = {line[:42].strip(): line[42:].split("  ") for line in lines if "  " in line}
    rows = {label: [cell.strip() for cell in row if cell.strip()] for label, row in cells.items()}
    assert rows["WER, overall"] == ["150.00 %", "150.00 %", "+0.00 pp"]  # 12 of 8: 2 invented less, 2 wrong more
    assert rows["English (2 clips), WER"] == ["16.67 %", "50.00 %", "+33.33 pp"]
    assert rows["no-speech clips with invented text, of 2"] == ["1", "0", "-1"]
    assert rows["clips with words not compared"] == ["1", "-", "-"]
    assert rows["boundary shift (AAS)"] == ["-", "-", "-"]
    text = "\n".join(lines)
    assert "B has fewer errors than A in 1 clips, more in 1, as many in 3" in text
    assert "B, failed: zh: gone" in text
    assert "A, heard: English as German: 1 x" in text
    assert "A, words not compared: en: the manifest has 1 words, the text as the aligner splits it 2" in text
    assert "normalisation: NFKC" in text


def test_one_alone_has_no_letters_and_no_difference() -> None:
    text = as_text(_sides()[:1])
    assert text.startswith("out/a (x, fp32); aligner")
    assert "B - A" not in text
    assert "heard: English as German: 1 x" in text


def test_json_has_every_clip() -> None:
    content = json.loads(json.dumps(as_dict(_sides()), allow_nan=False))
    assert {"label": "texts with a loop", "unit": "count", "A": 1, "B": 1, "difference": 0} in content["figures"]
    first, second = content["models"]
    assert [row["audio"] for row in second["clips"]] == [clip.name for clip in CLIPS]
    assert second["clips"][2] == {
        "audio": "zh",
        "reference": "五天九天九六",
        "language": "Chinese",
        "error": "gone",
    }
    row = first["clips"][5]
    assert row["edits"] == {"substitutions": 1, "deletions": 0, "insertions": 8, "units": 2, "rate": 4.5}
    assert (row["hypothesis"], row["finish_reason"], row["loop"]) == ("hello " * 10, "length", True)
    assert {"seconds", "duration", "detected_language", "unit", "character_edits", "exact", "alignment"} <= row.keys()
    assert first["summary"]["overall"]["edits"]["units"] == 8
    assert first["languages_forced"] is False
    assert "NFKC" in content["definitions"]["normalisation"]


# --- manifests -------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(b"never read here")
    return tmp_path / "list.jsonl"


def test_a_manifest_of_lines(manifest: Path) -> None:
    lines = [
        {"audio": "a.wav", "text": "hello", "language": "de-AT", "context": "Tongyi", "id": 7},
        {"audio": str(manifest.parent / "a.wav"), "text": "", "language": None, "words": None},
        {"audio": "a.wav", "text": "one\u2028two", "words": [{"text": "one", "start": 0, "end": 0.5}]},
    ]
    manifest.write_text("\ufeff" + "\r\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    first, second, third = read_clips(manifest)
    assert first == Clip(manifest.parent / "a.wav", "hello", "German", "Tongyi", (), "a.wav")
    assert (second.audio, second.language, second.words) == (manifest.parent / "a.wav", None, ())
    assert (third.text, third.words) == ("one\u2028two", (TrueWord("one", 0.0, 0.5),))


def test_a_manifest_that_is_an_array() -> None:
    clips = read_clips(ROOT / "examples/recordings/manifest.json")
    assert len(clips) == 7
    assert (clips[3].text, clips[3].language, len(clips[3].words)) == ("五天九天九六", "Chinese", 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{audio: a.wav}", "line 2: column 2 is not JSON: .*; write one object a line"),
        ('"a.wav"', "line 2: it is not an object; write"),
        ('{"text": "x"}', 'line 2: "audio" is missing; give a string'),
        ('{"audio": "a.wav"}', 'line 2: "text" is missing; give a string, "" where nothing is said'),
        ('{"audio": "a.wav", "text": 5}', 'line 2: "text" is 5; give a string'),
        ('{"audio": "a.wav", "text": null}', 'line 2: "text" is null; give a string'),
        ('{"audio": "a.wav", "text": "\\ud800"}', "line 2: .*lone surrogate"),
        ('{"audio": "b.wav", "text": ""}', "line 2: there is no audio file .*b.wav; give its path relative to"),
        ('{"audio": "", "text": ""}', "line 2: there is no audio file"),
        ('{"audio": "' + "x" * 5000 + '", "text": ""}', "line 2: there is no audio file"),
        ('{"audio": "a.wav", "text": "", "language": "Germn"}', "line 2: .*did you mean 'German'"),
        ('{"audio": "a.wav", "text": "", "words": "one"}', 'line 2: "words" is no list; give'),
        ('{"audio": "a.wav", "text": "", "words": ["one"]}', "line 2: word 1: it is not an object; write"),
        ('{"audio": "a.wav", "text": "", "words": [{"text": "x", "start": 1}]}', 'word 1: "end" is null; give seconds'),
        ("0.5, 0.4", "word 1: it ends at 0.4 s, before its start at 0.5 s; swap"),
        ("NaN, 1", 'word 1: "start" is NaN; give seconds'),
        ("-1, 1", 'word 1: "start" is -1; give seconds'),
        ("true, 1", 'word 1: "start" is true; give seconds'),
        ("0, 1" + "0" * 400, 'word 1: "end" is 10+; give seconds'),
        ("74, 649", "word 1: it lasts 575 s; give the times in seconds, not in milliseconds"),
        ("1" + "0" * 5000 + ", 1", "it cannot be read as JSON"),
    ],
)
def test_a_bad_line_is_named_with_the_cure(manifest: Path, line: str, message: str) -> None:
    if not line.startswith(("{", '"')):
        start, end = line.split(", ")
        line = '{"audio": "a.wav", "text": "x", "words": [{"text": "x", "start": START, "end": END}]}'
        line = line.replace("START", start).replace("END", end)
    manifest.write_text('{"audio": "a.wav", "text": "x"}\n' + line + "\n", "utf-8")
    with pytest.raises(ManifestInvalid, match=message):
        read_clips(manifest)


def test_words_must_run_forward(manifest: Path) -> None:
    words = [{"text": "a", "start": 0.5, "end": 0.6}, {"text": "b", "start": 0.4, "end": 0.7}]
    manifest.write_text(json.dumps({"audio": "a.wav", "text": "a b", "words": words}), "utf-8")
    with pytest.raises(ManifestInvalid, match=r"word 2: it starts at 0.4 s, before .* \(0.5 s\); order"):
        read_clips(manifest)


def test_all_bad_lines_are_named_at_once(manifest: Path) -> None:
    manifest.write_text("\n".join(['{"audio": "a.wav", "text": "x"}', *["5"] * 13]), "utf-8")
    with pytest.raises(ManifestInvalid) as caught:
        read_clips(manifest)
    assert [f"line {number}:" in str(caught.value) for number in (1, 2, 11, 12)] == [False, True, True, False]
    assert "and 3 more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no entries"),
        (b" \n\n", "no entries"),
        (b"[]", "no entries"),
        (b"\xff\xfe{", "cannot be read as UTF-8"),
        (b'[{"audio": "a.wav",\n "text": "x"},\n5]', "entry 2: it is not an object"),
        (b'[{"audio": "a.wav",\n "text": }]', "line 2, column 10 is not JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_bad_manifest(manifest: Path, content: bytes, message: str) -> None:
    manifest.write_bytes(content)
    with pytest.raises(ManifestInvalid, match=message):
        read_clips(manifest)


def test_no_manifest(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ManifestInvalid, match=r"cannot be read as UTF-8 text: (No such file|Is a directory)"):
            read_clips(path)
    assert issubclass(ManifestInvalid, Qwen3AsrError)


# --- the tiny models -------------------------------------------------------------------------------------------


def test_the_tiny_models_on_the_recordings(model: Recognizer) -> None:
    clips = read_clips(ROOT / "examples/recordings/manifest.json")
    summary = summarise(evaluate(model, clips, align=True))
    assert (summary.overall.clips, summary.overall.exact, summary.overall.edits.rate) == (7, 7, 0.0)
    assert (summary.no_speech.clips, summary.no_speech.invented, summary.finish["no_speech"]) == (1, 0, 1)
    assert summary.identification is not None
    assert (summary.identification.clips, summary.identification.right) == (6, 6)
    assert summary.boundaries is not None
    assert (summary.boundaries.words, summary.boundaries.left_out) == (40, ())
    short = [clip for clip in clips if len(clip.words) <= 9]  # the tiny aligner loses count in longer texts
    shifts = summarise(evaluate(model, short, align=True)).boundaries
    assert shifts is not None
    assert shifts.shift_ms is not None
    assert 10 < shifts.shift_ms < 60
    assert shifts.within_80_ms is not None
    assert shifts.within_80_ms > 0.9
