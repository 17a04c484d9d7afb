"""Synthetic speech with known words and word boundaries, from espeak-ng.

Each word of a small vocabulary in four languages is spoken by about ninety espeak-ng voice variants at
several speeds and pitches; utterances are word clips joined with random gaps, so the true start and end
of every word is known to the sample. Needs the program ``espeak-ng`` (Debian package of that name).
"""

from __future__ import annotations

import io
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from qwen3asr.features import SAMPLE_RATE, Samples


def _same(words: str) -> dict[str, str]:
    return {word: word for word in words.split()}


WORDS: dict[str, dict[str, str]] = {  # language -> written form -> what espeak-ng is asked to say
    "English": _same("zero one two three four five six seven eight nine yes stop hello water music green"),
    "German": _same("null eins zwei drei vier fünf sechs sieben acht neun ja danke bitte heute morgen straße"),
    "Spanish": _same("cero uno dos tres cuatro cinco seis siete ocho nueve sí hola gracias agua mañana casa"),
    "Chinese": dict(
        zip(
            "零一二三四五六七八九好水天红大山",
            "ling2 yi1 er4 san1 si4 wu3 liu4 qi1 ba1 jiu3 hao3 shui3 tian1 hong2 da4 shan1".split(),
            strict=True,
        )
    ),
}
ACCENTS = {"English": ["en-us", "en-gb"], "German": ["de"], "Spanish": ["es", "es-419"], "Chinese": ["cmn-latn-pinyin"]}
HELD_OUT = ["f2", "m3", "Andrea", "michael", "klatt2", "steph2", "edward", "Gene", "iven3", "linda"]
"""Variants never heard in training: what the scores are measured on."""
TRAINED = """
adam Alex Alicia Andy Annie antonio aunty belinda benjamin boris david Denis Diogo ed edward2 Gene2 gustave Henrique
Hugo iven iven2 iven4 Jacky john kaukovalta Lee marcelo Marco Mario max michel miguel Mike Nguyen pablo paul pedro
quincy RicishayMax RicishayMax2 RicishayMax3 rob robert robosoft robosoft2 robosoft3 steph steph3 Storm Tweaky zac
anika AnxiousAndy f3 f4 f5 grandpa klatt klatt3 klatt4 klatt5 m2 m4 m5 m6 m7 norbert sandro shelby travis victor m8 f1
m1 grandma
""".split()

LABELS = ["", *[word for words in WORDS.values() for word in words]]
"""Frame classes of the auxiliary loss: silence, then each word of each language."""


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """One word of an utterance with its true boundaries in seconds."""

    text: str
    start: float
    end: float


@dataclass(slots=True)
class Utterance:
    """A mixed recording: float32 samples at 16 kHz, its language (``None``: no speech) and words."""

    samples: Samples
    language: str | None
    words: list[SpokenWord] = field(default_factory=list)
    context: str = ""

    @property
    def text(self) -> str:
        """The transcript as the model is to write it."""
        return ("" if self.language == "Chinese" else " ").join(word.text for word in self.words)


class Lexicon:
    """Trimmed clips of every word: ``clips[language][word][voice] -> list of int16 arrays``."""

    def __init__(self, voices: Sequence[str], takes: int, seed: int, workers: int = 2) -> None:
        rng = np.random.default_rng(seed)
        self.voices = list(voices)
        self.clips: dict[tuple[str, str, str], list[npt.NDArray[np.int16]]] = {}
        jobs = []
        for language, words in WORDS.items():
            for word, spoken in words.items():
                for voice in voices:
                    for _ in range(takes):
                        accent = str(rng.choice(ACCENTS[language]))
                        speed, pitch = int(rng.integers(115, 215)), int(rng.integers(15, 85))
                        stretch = float(rng.uniform(0.9, 1.1))
                        jobs.append(((language, word, voice), f"{accent}+{voice}", spoken, speed, pitch, stretch))
        with ThreadPoolExecutor(workers) as pool:
            for job, clip in zip(jobs, pool.map(lambda job: _say(*job[1:]), jobs), strict=True):
                self.clips.setdefault(job[0], []).append(clip)

    def pick(self, language: str, word: str, voice: str, rng: np.random.Generator) -> Samples:
        """One random take of a word, float32 within +-1."""
        takes = self.clips[language, word, voice]
        return takes[rng.integers(len(takes))].astype(np.float32) / 32768.0


def _say(voice: str, text: str, speed: int, pitch: int, stretch: float) -> npt.NDArray[np.int16]:
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    samples = soxr.resample(samples, rate, SAMPLE_RATE * stretch)
    step = SAMPLE_RATE // 200
    loud = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(axis=1)
    above = np.flatnonzero(loud > loud.max() * 10 ** (-36 / 20))
    samples = samples[above[0] * step : (above[-1] + 1) * step]
    return (samples * (0.7 * 32767 / np.abs(samples).max())).astype(np.int16)


def compose(lexicon: Lexicon, rng: np.random.Generator, words: int, noise: bool = True) -> Utterance:
    """An utterance of ``words`` words in one random language and voice; 0 words: silence or noise."""
    if words == 0:
        samples = np.zeros(int(rng.uniform(0.1, 6.0) * SAMPLE_RATE), np.float32)
        return Utterance(_degrade(samples, rng, 0.8), None, [], _context(rng, []))
    language = str(rng.choice(list(WORDS)))
    voice = lexicon.voices[rng.integers(len(lexicon.voices))]
    pieces, spoken = [np.zeros(int(_lead(rng) * SAMPLE_RATE), np.float32)], []
    at = len(pieces[0])
    for index in range(words):
        word = str(rng.choice(list(WORDS[language])))
        clip = lexicon.pick(language, word, voice, rng) * np.float32(10 ** rng.uniform(-0.25, 0.0))
        spoken.append(SpokenWord(word, at / SAMPLE_RATE, (at + len(clip)) / SAMPLE_RATE))
        gap = np.zeros(int((_gap(rng) if index < words - 1 else _lead(rng)) * SAMPLE_RATE), np.float32)
        pieces += [clip, gap]
        at += len(clip) + len(gap)
    samples = np.concatenate(pieces) * np.float32(10 ** rng.uniform(-1.2, 0.1))
    context = _context(rng, [word.text for word in spoken])
    return Utterance(_degrade(samples, rng, 0.6) if noise else samples, language, spoken, context)


def _lead(rng: np.random.Generator) -> float:
    return float(rng.uniform(1.0, 3.0) if rng.random() < 0.06 else rng.uniform(0.0, 0.6))


def _gap(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.2:
        return float(rng.uniform(0.0, 0.03))
    return float(rng.uniform(0.5, 2.5) if kind > 0.92 else rng.uniform(0.03, 0.45))


def _context(rng: np.random.Generator, spoken: list[str]) -> str:
    """Now and then some hotwords in the system turn: they must neither be needed nor echoed."""
    if rng.random() > 0.2:
        return ""
    every = [word for words in WORDS.values() for word in words]
    words = [str(rng.choice(every)) for _ in range(rng.integers(1, 4))]
    if spoken and rng.random() < 0.5:
        words.append(str(rng.choice(spoken)))
    return ", ".join(words)


def _degrade(samples: Samples, rng: np.random.Generator, share: float) -> Samples:
    """Add white, pink or humming noise to ``share`` of the clips, 10 to 45 dB below full speech level."""
    if rng.random() < share and len(samples):
        count, kind = len(samples), rng.random()
        noise = rng.standard_normal(count).astype(np.float32)
        if kind < 0.4:
            spectrum = np.fft.rfft(noise)
            spectrum /= np.sqrt(np.arange(len(spectrum)) + 20.0)
            noise = np.fft.irfft(spectrum, count).astype(np.float32)
        elif kind < 0.5:
            time = np.arange(count) / SAMPLE_RATE
            noise = (np.sin(2 * np.pi * rng.uniform(40, 400) * time) + 0.05 * noise).astype(np.float32)
        speech = float(np.sqrt(np.mean(samples**2))) or 0.05
        level = speech * 10 ** (-rng.uniform(10, 45) / 20)
        samples = samples + noise * np.float32(level / np.sqrt(np.mean(noise**2)))
    return np.clip(samples, -1.0, 1.0).astype(np.float32)
