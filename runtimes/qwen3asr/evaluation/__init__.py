"""How good a bundle is on recordings whose truth is known: what ``qwen3asr eval`` runs.

    from qwen3asr.evaluation import evaluate, read_clips, summarise
    done = evaluate(qwen3asr.load("out/qwen3-asr-0.6b"), read_clips(Path("recordings.jsonl")))
    print(summarise(done).overall.edits.rate)

Needs the extra ``eval`` (jiwer), which is imported when the first text is scored.
"""

from qwen3asr.evaluation.clips import Clip, TrueWord, read_clips
from qwen3asr.evaluation.report import Side, as_dict, as_text
from qwen3asr.evaluation.run import Alignment, Evaluation, Failure, LeftOut, Result, evaluate
from qwen3asr.evaluation.scoring import Edits, check_available, normalise
from qwen3asr.evaluation.summary import Summary, paired, summarise

__all__ = [
    "Alignment",
    "Clip",
    "Edits",
    "Evaluation",
    "Failure",
    "LeftOut",
    "Result",
    "Side",
    "Summary",
    "TrueWord",
    "as_dict",
    "as_text",
    "check_available",
    "evaluate",
    "normalise",
    "paired",
    "read_clips",
    "summarise",
]
