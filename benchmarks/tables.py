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


def _mb(mebibytes: float) -> float:
    """The system counts memory in units of 1024; files are counted in those of 1000, and so is everything here."""
    return mebibytes * 1.048576


def graphs(name: str = "graphs") -> str:
    """Sizes, memory and times of the graphs."""
    rows = []
    for model, of_model in load(name)["models"].items():
        for precision, row in of_model.items():
            if precision == "checkpoint_mb":
                continue
            cells = [
                model,
                precision,
                f"{row['bundle_mb']}",
                f"{row['export_s']:g}",
                f"{_mb(row['export_peak_mib']) / 1000:.1f}",
            ]
            if "load_ms" not in row:
                rows.append([*cells, *["-"] * 8])
                continue
            memory, encoder = row["memory_mib_one_clip"], row["encoder_ms"]
            resident, own = (_mb(memory[name]) for name in ("resident", "private"))
            cells += [f"{row['load_ms'] / 1000:.1f}", f"{resident:.0f} ({own:.0f})"]
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


def graphs_avx2() -> str:
    """Those of a machine without AVX-512."""
    return graphs("graphs_avx2")


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
    """One operator at a time, on three machines."""
    machines = {"AVX2": load("kernels_avx2"), "AVX-512": load("kernels"), "AMX": load("kernels_intel")}
    read = [f"{measured['read_gb_per_s']:.0f}" for measured in machines.values()]
    rows = [
        [weights, *(f"{of['prompt'][weights]['gflop_per_s']}" for of in machines.values()),
         *(f"{of['step'][weights]['gb_per_s']:.0f}" for of in machines.values())]
        for weights in machines["AVX2"]["prompt"]
    ]  # fmt: skip
    rows.append(["read bandwidth", *["-"] * len(machines), *read])
    head = ["weights", *(f"143 rows, GFLOP/s: {name}" for name in machines)]
    products = table([*head, *(f"one row, GB/s of weights: {name}" for name in machines)], rows)
    places = list(machines["AVX2"]["attention_ms"]["32-bit cache"])
    rows = [
        [f"{cache}, {name}", *(f"{of['attention_ms'][cache][place]:.2f}" for place in places)]
        for cache in ("32-bit cache", "8-bit cache")
        for name, of in machines.items()
    ]
    return products + "\n\n" + table(["attention, ms", *(f"{place} past tokens" for place in places)], rows)


def against() -> str:
    """Whole clips against transformers, on two machines."""
    rows = []
    for measured in map(load, ("against_transformers", "against_transformers_avx2")):
        for name, seconds in measured["seconds"].items():
            first = measured["first_token_seconds"][name]
            step = (seconds - first) / (measured["tokens"] - 1)
            cells = [measured["machine"], name, f"{first:.2f}", f"{seconds:.2f}", f"{step * 1000:.0f}"]
            for peer in ("transformers fp32", "transformers bf16"):
                ratio = measured["ratios"].get(f"{peer} / {name}")
                cells.append(f"{ratio['median']} ({ratio['min']}-{ratio['max']})" if ratio else "-")
            rows.append(cells)
    head = ["machine", "", "first token, s", "all 35 tokens, s", "a step, ms (derived)", "times faster than fp32",
            "than bf16"]  # fmt: skip
    return table(head, rows)


def concurrency() -> str:
    """Continuous batching."""
    rows = []
    for precision, measured in load("concurrency")["0.6b"].items():
        for row in measured["rows"]:
            low, high = row["throughput_ratio_spread"]
            rows.append([
                precision, str(row["clips_at_a_time"]), row["policy"] if row["clips_at_a_time"] > 1 else "-",
                f"{row['throughput_ratio']:.2f} ({low:.2f}-{high:.2f})", f"{row['first_token_s']:.2f}",
                f"{row['inter_token_ms']:.0f}", f"{row['inter_token_p99_ms']:.0f}", f"{row['rows_per_step']:.1f}",
            ])  # fmt: skip
    head = ["precision", "clips at a time", "admission", "throughput, times one by one", "first token, s",
            "between tokens, ms", "99th percentile", "rows a step"]  # fmt: skip
    return table(head, rows)


def streaming() -> str:
    """Steps of one stream."""
    measured = load("streaming")
    again = measured["decoding_all_again_s"]
    rows = [
        [str(row["minute"]), f"{row['seconds']:.2f}", f"{row['most_seconds']:.2f}", f"{row['windows']:.2f}",
         f"{row['tokens']:.0f}", f"{again['minute ' + str(row['minute'])]:.1f}"]
        for row in measured["steps"]
    ]  # fmt: skip
    head = ["minute", "a step, s", "longest", "windows encoded", "tokens fed", "decoding all again, first token, s"]
    return table(head, rows)


def three_hours() -> str:
    """Hours of audio: time and memory."""
    hours = load("long_audio")["hours"]
    rows = [
        ["seconds taken", f"{hours['seconds']:g}"],
        ["real-time factor", f"{hours['real_time_factor']:g}"],
        ["resident MB, loaded", f"{_mb(hours['resident_mib_loaded']):.0f}"],
        *([f"resident MB after {hour}", f"{_mb(mib):.0f}"] for hour, mib in hours["resident_mib_by_hour"].items()),
        ["peak MB above loaded", f"{_mb(hours['peak_mib_above_loaded']):.0f}"],
    ]
    return table([f"{hours['audio_hours']} hours, {hours['pieces']} pieces", ""], rows)


def many_streams() -> str:
    """Streams side by side, in real time."""
    streams = load("long_audio")["streams"]
    names = {"p50": "median", "p90": "90 %", "p99": "99 %"}
    rows = [
        [label, *(f"{streams[key][name]:g}" for name in names)]
        for label, key in (
            ("a step in the engine, ms", "step_ms"),
            ("event behind the audio that it is of, ms", "event_behind_its_audio_ms"),
            ("20 ms chunk taken late by the event loop, ms", "chunk_taken_late_ms"),
        )
    ]
    return table([f"{streams['streams']} streams", *names.values()], rows)


def pipecat_latency() -> str:
    """From the end of speech to the final transcript."""
    measured = load("pipecat_latency")
    rows = [
        [model, service, str(found["turns"]), *(f"{found[service][key]:.2f}" for key in ("p50", "p90", "p99"))]
        for model, found in measured.items()
        if isinstance(found, dict)
        for service in ("segmented", "streaming")
    ]
    return table(["model", "service", "turns", "median, s", "90 %", "99 %"], rows)


def peers() -> str:
    """The same clip through everybody, in turn."""
    from peers import table as of_peers  # noqa: PLC0415 (needs torch)

    measured = load("peers")
    return of_peers(measured, list(dict.fromkeys(name.split(" / ")[0] for name in measured["ratios"])))


def under_load() -> str:
    """What a server answered to thousands of clients, and what it then held."""
    measured = load("load")
    statuses: dict[str, int] = {}
    for outcome, count in measured["outcomes"].items():
        status = outcome.split(": ")[1]
        statuses[status] = statuses.get(status, 0) + count
    first, *_, last = measured["held_after_warm_up_and_each_round"]
    rows = [
        ["requests, at a time, seconds", f"{measured['requests']}, {measured['at_a_time']}, {measured['seconds']:g}"],
        ["answered 200", str(statuses.pop("200"))],
        ["refused: " + ", ".join(sorted(statuses.keys() - {"left"})), str(sum(statuses.values()) - statuses["left"])],
        ["clients that left", str(statuses["left"])],
        ["answers wrong, missing or another's", str(measured["wrong"])],
        ["tracebacks in the log", str(measured["tracebacks"])],
        *(
            [label, f"{first[key]:.0f} -> {last[key]:.0f}"]
            for label, key in (("resident MB", "rss_mb"), ("threads", "threads"), ("file handles", "handles"))
        ),
    ]
    return table(["server under load", ""], rows)


TABLES = (
    graphs, graphs_avx2, kernels, agreement, tiny, against, peers, concurrency, streaming, three_hours, many_streams,
    pipecat_latency, under_load,
)  # fmt: skip

if __name__ == "__main__":
    print("\n\n".join(make() for make in TABLES))
