"""The tables of benchmarks/README.md from the results beside it.

python benchmarks/tables.py        (prints Markdown; a test holds the README against it)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def load(name: str) -> dict[str, Any]:
    """One results file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return content


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def graphs() -> str:
    """Sizes, memory and times of the graphs."""
    rows = []
    for model, of_model in load("graphs")["models"].items():
        for precision, row in of_model.items():
            if precision == "checkpoint_mb":
                continue
            cells = [
                model,
                precision,
                f"{row['bundle_mb']}",
                f"{row['export_s']:g}",
                f"{row['export_peak_mb'] / 1000:.1f}",
            ]
            if "load_ms" not in row:
                rows.append([*cells, *["-"] * 8])
                continue
            memory, encoder = row["memory_mb_one_clip"], row["encoder_ms"]
            cells += [f"{row['load_ms'] / 1000:.1f}", f"{memory['resident']} ({memory['private']})"]
            cells += [
                " / ".join(f"{encoder[s]:.0f}" for s in ("1 s", "8 s", "30 s")),
                f"{row['prefill_ms']['145 tokens']:.0f}",
            ]
            if "step_ms" in row:
                steps, floors = row["step_ms"], row["step_over_floor"]
                cells += [f"{steps[past]:.1f} ({floors[past]:.2f})" for past in ("150 past", "1900 past")]
                cells += [f"{row['far_over_near']:.2f}", f"{row['clip_ms'] / 1000:.2f}"]
            else:
                cells += ["-"] * 4
            rows.append(cells)
    head = ["model", "precision", "bundle MB", "export s", "export peak GB", "load s", "resident MB (own)",
            "encoder ms, 1 / 8 / 30 s", "prefill of 145, ms", "step at 150, ms (x floor)", "step at 1900, ms (x floor)",
            "1900 / 150", "10 s clip, s"]  # fmt: skip
    return table(head, rows)


def agreement() -> str:
    """Verification's figures."""
    rows = []
    for model, of_model in load("agreement")["models"].items():
        for precision, figures in of_model.items():
            share = next(
                value for name, value in figures.items() if name.endswith("that differ") and "damage" not in name
            )
            damage = next(
                (f"{value:.3g}" for name, value in figures.items() if name.startswith("damage") and "differ" in name),
                "-",
            )
            cells = [f"{figures[name]:.2g}" for name in ("encoder embeddings", "decoder logits", "log probabilities")]
            rows.append([model, precision, *cells, f"{share:.3g}", f"{figures['NaN and infinite values']:g}", damage])
    head = ["model", "precision", "embeddings", "logits", "log probability", "answers that differ", "NaN/Inf",
            "answers that differ from the unquantised weights'"]  # fmt: skip
    return table(head, rows)


def tiny() -> str:
    """Exact utterances and word boundaries of the trained models."""
    measured = load("tiny_precisions")
    rows = [
        [precision, *(cell for part in ("as_trained", "loud_channels") for cell in _score(measured[part][precision]))]
        for precision in measured["as_trained"]
    ]
    head = ["precision", "exact", "boundaries off by, ms", "within 80 ms", "exact, loud channels", "ms", "within 80 ms"]
    return table(head, rows)


def _score(row: dict[str, float]) -> list[str]:
    return [f"{row['exact']:.1%}", f"{row['boundary_mean_ms']:g}", f"{row['boundary_within_80_ms']:.1%}"]


def kernels() -> str:
    """One operator at a time."""
    measured = load("kernels")
    rows = [
        [name, f"{measured['prompt'][name]['gflop_per_s']}", f"{measured['step'][name]['gb_per_s']:g}"]
        for name in measured["prompt"]
    ]
    products = table(["weights", "143 rows, GFLOP/s", "one row, GB/s of weights"], rows)
    places = list(measured["attention_ms"]["32-bit cache"])
    rows = [[name, *(f"{of[place]:.2f}" for place in places)] for name, of in measured["attention_ms"].items()]
    return products + "\n\n" + table(["attention, ms", *(f"{place} past tokens" for place in places)], rows)


def against() -> str:
    """Whole clips against transformers."""
    measured = load("against_transformers")
    rows = []
    for name, seconds in measured["seconds"].items():
        cells = [name, f"{measured['first_token_seconds'][name]:.2f}", f"{seconds:.2f}"]
        for peer in ("transformers fp32", "transformers bf16"):
            ratio = measured["ratios"].get(f"{peer} / {name}")
            cells.append(f"{ratio['median']} ({ratio['min']}-{ratio['max']})" if ratio else "-")
        rows.append(cells)
    return table(["", "first token, s", "all 35 tokens, s", "times faster than fp32", "than bf16"], rows)


TABLES = (graphs, kernels, agreement, tiny, against)

if __name__ == "__main__":
    print("\n\n".join(make() for make in TABLES))
