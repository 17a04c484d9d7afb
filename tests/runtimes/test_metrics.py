"""Counts and distributions of an engine: right under threads, whole in a snapshot, and as Prometheus reads them."""

from __future__ import annotations

import sys
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from qwen3asr.errors import ExtraMissing
from qwen3asr.metrics import BOUNDS, Distribution, Metrics
from qwen3asr.prometheus import collector

steady = settings(deadline=None, derandomize=True, database=None, max_examples=200)


def distribution(values: list[float]) -> Distribution:
    metrics = Metrics()
    for value in values:
        metrics.next_token(value)
    return metrics.snapshot().inter_token


# --- distributions ---------------------------------------------------------------------------------------------


@steady
@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_within_one_bucket_of_the_exact_ones(values: list[float], share: float) -> None:
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert exact / 1.1221 <= distribution(values).quantile(share) <= exact * 1.1221


@steady
@given(st.floats(0, 1e6), st.integers(1, 50))
def test_of_equal_values_every_quantile_is_that_value(value: float, count: int) -> None:
    found = distribution([value] * count)
    assert found.p50 == found.p90 == found.p99 == found.least == found.most == value
    assert found.mean == pytest.approx(value)


def test_known_values() -> None:
    found = distribution([n / 1000 for n in range(1, 101)])
    assert found.count == 100
    assert found.total == pytest.approx(5.05)
    assert found.mean == pytest.approx(0.0505)
    assert found.p50 == pytest.approx(0.050, rel=0.03)
    assert found.p90 == pytest.approx(0.090, rel=0.03)
    assert found.p99 == pytest.approx(0.099, rel=0.03)
    assert (found.least, found.most) == (0.001, 0.1)


def test_without_values_everything_is_zero() -> None:
    found = distribution([])
    assert (found.count, found.mean, found.p50, found.p99, found.least, found.most) == (0, 0, 0, 0, 0, 0)
    assert sum(found.buckets) == 0


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-4, 1.0, 10.0, 1e4, 1e7])
def test_every_value_has_a_bucket_whose_bound_it_does_not_pass(value: float) -> None:
    found = distribution([value])
    index = found.buckets.index(1)
    assert index == len(BOUNDS) or value <= BOUNDS[index]
    assert index == 0 or value > BOUNDS[index - 1]
    assert found.p50 == value


def test_time_that_runs_backwards_counts_as_none() -> None:
    found = distribution([-1.0])
    assert found.least == found.most == found.total == 0.0


def test_cumulative_counts_are_those_at_or_below_each_bound() -> None:
    values = [0.0005, 0.001, 0.002, 0.5, 50_000.0]
    rows = distribution(values).cumulative()
    bounds = [bound for bound, _ in rows]
    assert bounds == pytest.approx([10 ** (n / 4) for n in range(-16, 17)])
    assert [count for _, count in rows] == [sum(value <= bound * 1.000001 for value in values) for bound in bounds]


# --- counting --------------------------------------------------------------------------------------------------


def test_a_snapshot_has_what_was_counted() -> None:
    now = [100.0]
    metrics = Metrics(kv_capacity=4096, clock=lambda: now[0])
    for _ in range(3):
        metrics.submitted()
    metrics.refused()
    metrics.admitted(0.25)
    metrics.encoded(4)
    metrics.prefilled(120)
    metrics.first_token(0.5)
    metrics.next_token(0.02)
    metrics.next_token(0.03)
    metrics.stepped(3)
    metrics.stepped(2)
    metrics.finished("stop", tokens=12, audio_seconds=8.0, seconds=2.0)
    metrics.finished("stop", tokens=1, audio_seconds=2.0, seconds=1.0)
    metrics.finished("cancelled")
    metrics.failed("BackendFailed")
    metrics.state(5, 2, 777)
    now[0] = 105.0
    found = metrics.snapshot()
    assert (found.submitted, found.refused) == (3, 1)
    assert (found.finished, found.failed) == ({"stop": 2, "cancelled": 1}, {"BackendFailed": 1})
    assert (found.windows, found.prompt_tokens, found.tokens, found.audio_seconds) == (4, 120, 13, 10.0)
    assert (found.steps, found.step_rows, found.rows_per_step) == (2, 5, 2.5)
    assert (found.queue_depth, found.active_rows, found.kv_used, found.kv_capacity) == (5, 2, 777, 4096)
    assert (found.waiting.total, found.time_to_first_token.total, found.inter_token.total) == (0.25, 0.5, 0.05)
    assert (found.latency.count, found.latency.total) == (2, 3.0)
    assert (found.real_time_factor.least, found.real_time_factor.most) == (0.25, 0.5)
    assert (found.uptime, found.throughput) == (5.0, 2.0)


def test_a_new_engine_has_done_nothing() -> None:
    found = Metrics(clock=lambda: 1.0).snapshot()
    assert (found.throughput, found.rows_per_step, found.uptime) == (0.0, 0.0, 0.0)
    assert found.finished == found.failed == {}


def test_requests_without_audio_or_time_do_not_count_as_infinitely_fast() -> None:
    metrics = Metrics()
    metrics.finished("stop", tokens=3, audio_seconds=0.0, seconds=1.0)
    metrics.finished("cancelled", audio_seconds=5.0)
    assert metrics.snapshot().real_time_factor.count == 0
    assert metrics.snapshot().latency.count == 1


def test_service_time_leaves_the_wait_out() -> None:
    metrics = Metrics()
    assert metrics.mean_service_seconds() == 1.0
    metrics.finished("stop", seconds=3.0)
    assert metrics.mean_service_seconds() == 3.0
    metrics.admitted(1.0)
    metrics.admitted(2.0)
    assert metrics.mean_service_seconds() == 1.5
    metrics.admitted(90.0)
    assert metrics.mean_service_seconds() == 0.0


def test_a_snapshot_does_not_change_afterwards() -> None:
    metrics = Metrics()
    metrics.finished("stop", seconds=1.0)
    before = metrics.snapshot()
    metrics.finished("stop", seconds=1.0)
    assert before.finished == {"stop": 1}
    assert before.latency.count == sum(before.latency.buckets) == 1


def test_threads_lose_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for _ in range(2_000):
            metrics.submitted()
            metrics.next_token(0.01)
            metrics.finished("stop", tokens=1)

    threads = [Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            found = metrics.snapshot()
            assert found.inter_token.count == sum(found.inter_token.buckets)
            assert found.finished.get("stop", 0) == found.tokens
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    found = metrics.snapshot()
    assert (found.submitted, found.tokens, found.inter_token.count) == (8_000, 8_000, 8_000)
    assert found.finished == {"stop": 8_000}


# --- Prometheus ------------------------------------------------------------------------------------------------


def _scraped(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Values by name, model and further label values."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, sample.labels.pop("model"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _used() -> Metrics:
    metrics = Metrics(kv_capacity=100)
    metrics.submitted()
    metrics.state(3, 2, 40)
    metrics.first_token(0.2)
    metrics.first_token(2_000_000.0)
    metrics.finished("stop", tokens=7, audio_seconds=4.0, seconds=1.0)
    metrics.failed("BackendFailed")
    return metrics


def test_a_scrape_has_each_models_figures() -> None:
    registry = CollectorRegistry()
    models = {"small": _used()}
    collector(models, registry)
    models["large"] = Metrics()  # added later
    found = _scraped(registry)
    assert found["qwen3asr_requests_submitted_total", "small"] == 1
    assert found["qwen3asr_requests_submitted_total", "large"] == 0
    assert found["qwen3asr_requests_finished_total", "small", "stop"] == 1
    assert found["qwen3asr_requests_failed_total", "small", "BackendFailed"] == 1
    assert found["qwen3asr_text_tokens_total", "small"] == 7
    assert found["qwen3asr_audio_seconds_total", "small"] == 4
    assert found["qwen3asr_queue_depth", "small"] == 3
    assert found["qwen3asr_kv_cache_used_tokens", "small"] == 40
    assert found["qwen3asr_kv_cache_capacity_tokens", "small"] == 100


def test_histograms_have_cumulative_buckets_sum_and_count() -> None:
    registry = CollectorRegistry()
    collector({"small": _used()}, registry)
    found = _scraped(registry)
    name = "qwen3asr_time_to_first_token_seconds"
    buckets = {labels[2]: value for labels, value in found.items() if labels[0] == f"{name}_bucket"}
    assert buckets["0.1778"] == 0
    assert buckets["0.3162"] == 1
    assert buckets["1e+04"] == 1
    assert buckets["+Inf"] == found[f"{name}_count", "small"] == 2
    assert found[f"{name}_sum", "small"] == pytest.approx(2_000_000.2)
    assert len(buckets) == 34


def test_names_have_the_types_that_dashboards_rely_on() -> None:
    registry = CollectorRegistry()
    collector({"small": _used()}, registry)
    text = generate_latest(registry).decode()
    types = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    counters = "requests_submitted requests_refused requests_finished requests_failed decoder_steps decoder_step_rows"
    counters += " encoder_windows prompt_tokens text_tokens audio_seconds no_speech"
    gauges = "queue_depth active_rows kv_cache_used_tokens kv_cache_capacity_tokens"
    histograms = "queue_wait_seconds time_to_first_token_seconds inter_token_seconds request_latency_seconds"
    histograms += " real_time_factor_ratio"
    assert types == {
        **{f"qwen3asr_{name}_total": "counter" for name in counters.split()},
        **{f"qwen3asr_{name}": "gauge" for name in gauges.split()},
        **{f"qwen3asr_{name}": "histogram" for name in histograms.split()},
    }


def test_a_collector_can_be_unregistered_and_belongs_to_no_registry_unasked() -> None:
    registry = CollectorRegistry()
    mine = collector({"small": _used()}, registry)
    registry.unregister(mine)
    assert _scraped(registry) == {}
    assert len(list(collector({}, None).collect())) == 20


def test_without_prometheus_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "qwen3asr.prometheus")
    for module in [name for name in sys.modules if name.split(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'qwen3asr\[metrics\]'") as caught:
        __import__("qwen3asr.prometheus")
    assert isinstance(caught.value, ImportError)
