"""What the reference says of a set of clips: computed first, so that reference and bundle never share the memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qwen3asr.features import SAMPLE_RATE, Mel, Samples
from qwen3asr.prompt import PromptBuilder
from qwen3asr.sessions.base import Embeddings, Ids
from qwen3asr.tokenizer import Tokenizer
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.precision import Precision
from qwen3asr_export.reference import Logits, Reference

CLIP_SECONDS = (0.3, 0.5, 1.0, 1.01, 3.0, 7.99, 8.0, 8.01, 16.0, 23.7, 60.0)
"""Around the lengths where things change: half a second, whole seconds (chunks), 8 s (windows)."""
GREEDY = 24
"""Tokens decoded freely."""
_FORCED = 48  # text tokens of a clip whose answers are compared: over 500 in all
_UNITS = 24  # words given to the aligner, two time stamps each: likewise over 500
_TEXTS = (  # damage by quantisation depends on the language: English alone hides it
    ("English", "The train to the coast leaves at twenty past nine, and it is never late on a Monday."),
    ("Chinese", "开往海边的火车九点二十分出发，星期一从来不会晚点。请您提前到达车站，谢谢。"),
    ("German", "Der Zug an die Küste fährt um zwanzig nach neun ab und ist montags nie verspätet."),
    ("Korean", "바닷가로 가는 기차는 아홉 시 이십 분에 출발하며 월요일에는 절대 늦지 않습니다."),
    ("Arabic", "يغادر القطار المتجه إلى الساحل في التاسعة والثلث ولا يتأخر أبدا يوم الاثنين."),
    ("Japanese", "海岸行きの列車は九時二十分に発車し、月曜日に遅れることは決してありません。"),
    ("Russian", "Поезд к побережью отправляется в двадцать минут десятого и никогда не опаздывает."),
    ("French", "Le train pour la côte part à neuf heures vingt et n'est jamais en retard le lundi."),
    ("Hindi", "तट की ओर जाने वाली रेलगाड़ी नौ बजकर बीस मिनट पर चलती है और कभी देर नहीं करती।"),
    ("Spanish", "El tren a la costa sale a las nueve y veinte y los lunes nunca llega con retraso."),
    ("Thai", "รถไฟไปชายทะเลออกเวลาเก้าโมงยี่สิบนาที และไม่เคยสายในวันจันทร์เลยสักครั้งเดียว"),
)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the reference makes of one clip.

    Attributes:
        samples, mel, embeddings: the clip and the reference's first two stages.
        ids: int64 ``[n]``, a whole input: prompt and forced text, or the aligner's.
        keep: int64 ``[k]``, positions of ``ids`` whose answers are compared.
        logits: float32 ``[k, classes]`` there.
        prompt: how many of ``ids`` are the prompt alone.
        greedy: what it writes after the prompt, without the end token; only where ids are to be equal.
    """

    samples: Samples
    mel: Mel
    embeddings: Embeddings
    ids: Ids
    keep: Ids
    logits: Logits
    prompt: int
    greedy: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the reference makes of each clip.

    Attributes:
        reference: its name.
        stored: with the weights that the bundle stores.
        original: with the checkpoint's own; the same object where storing changes nothing that is judged apart.
    """

    reference: str
    stored: Mapping[str, Expectation]
    original: Mapping[str, Expectation]


def expect(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    precision: Precision,
    clips: Mapping[str, Samples],
    progress: Callable[[], None],
) -> Expectations:
    """Run the reference over the clips; for integer weights twice, see :class:`Expectations`."""
    runner = _Runner(checkpoint, tokenizer, GREEDY if precision.bounds.answers == 0 else 0)

    def of_all() -> dict[str, Expectation]:
        expected = {}
        for index, (name, samples) in enumerate(clips.items()):
            expected[name] = runner.clip(samples, *_TEXTS[index % len(_TEXTS)])
            progress()
        return expected

    original = of_all()
    if not precision.quantised:
        return Expectations(runner.reference.name, original, original)
    runner.reference.replace(precision.stands_for(checkpoint.tensors))
    return Expectations(runner.reference.name, of_all(), original)


class _Runner:
    """The reference, fed as the runtime feeds its own graphs; ``budget`` tokens are decoded freely."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Tokenizer, budget: int) -> None:
        self.reference, self._prompts = Reference(checkpoint), PromptBuilder(tokenizer)
        self._tokenizer, self._spec, self._budget = tokenizer, checkpoint.spec, budget

    def clip(self, samples: Samples, language: str, text: str) -> Expectation:
        mel = self.reference.mel(samples)
        embeddings = self.reference.embeddings(mel)
        run = self._aligned if self._spec.kind == "aligner" else self._recognised
        return run(samples, mel, embeddings, language, text)

    def _recognised(self, samples: Samples, mel: Mel, embeddings: Embeddings, language: str, text: str) -> Expectation:
        prompt = self._prompts.transcription(embeddings).ids
        written = self._tokenizer.encode(f"language {language}<asr_text>{text}")
        ids = np.concatenate([prompt, np.resize(np.array(written, np.int64), _FORCED)])
        keep = np.arange(len(prompt) - 1, len(ids) - 1)  # what it would have written in place of each forced token
        free = self.reference.greedy(prompt, mel, self._budget) if self._budget else []
        greedy = tuple(token for token in free if token not in self._spec.eos)
        logits = self.reference.logits(ids, mel, keep)
        return Expectation(samples, mel, embeddings, ids, keep, logits, len(prompt), greedy)

    def _aligned(self, samples: Samples, mel: Mel, embeddings: Embeddings, _: str, text: str) -> Expectation:
        prompt, marks = self._prompts.alignment(embeddings, np.resize(np.array(text.split()), _UNITS).tolist())
        logits = self.reference.logits(prompt.ids, mel, marks)
        return Expectation(samples, mel, embeddings, prompt.ids, marks, logits, len(prompt.ids), ())


def synthetic(seconds: float) -> Samples:
    """A clip with speech's rhythm: gliding harmonics in syllables, pauses, and noise; the same every time."""
    rng = np.random.default_rng(int(seconds * 1000))
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * time) + 15 * np.sin(2 * np.pi * 3.1 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) * (1 + np.sin(2 * np.pi * (0.3 + 0.17 * k) * time)) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * time) + 0.5 * np.sin(2 * np.pi * 0.4 * time), 0, 1)
    mixed = 0.12 * syllables * voice + 0.01 * rng.standard_normal(len(time))
    clip: Samples = mixed.astype(np.float32)
    return clip
