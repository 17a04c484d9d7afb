"""Metrics of loaded models for Prometheus; needs ``pip install 'qwen3asr[metrics]'``.

    from prometheus_client import start_http_server
    from qwen3asr.prometheus import collector

    collector({"0.6b": model.metrics})
    start_http_server(9000)

Names follow https://prometheus.io/docs/practices/naming: base units, ``_total`` for what only rises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from qwen3asr.errors import ExtraMissing
from qwen3asr.metrics import Distribution, MetricsSnapshot

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as missing:
    raise ExtraMissing("exporting metrics to Prometheus", "prometheus_client", "metrics") from missing

_LABELS = ("model",)
_COUNTERS = {
    "submitted": ("requests_submitted", "Requests taken."),
    "refused": ("requests_refused", "Requests turned away because the queue was full."),
    "no_speech": ("no_speech", "Clips, or pieces of them, without speech, decoded or not."),
    "steps": ("decoder_steps", "Decoder steps, each of one token for every active row."),
    "step_rows": ("decoder_step_rows", "Rows of all decoder steps together."),
    "windows": ("encoder_windows", "Audio windows encoded."),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens prefilled, audio included."),
    "tokens": ("text_tokens", "Text tokens of the requests that ended."),
    "audio_seconds": ("audio_seconds", "Audio of the requests that ended."),
}
_GAUGES = {
    "queue_depth": ("queue_depth", "Requests that wait for a slot."),
    "active_rows": ("active_rows", "Requests that are decoded."),
    "kv_used": ("kv_cache_used_tokens", "Tokens of requests and streams in the KV cache."),
    "kv_capacity": ("kv_cache_capacity_tokens", "Tokens that the KV cache takes."),
}
_DISTRIBUTIONS = {
    "waiting": ("queue_wait_seconds", "From submission to the first work."),
    "time_to_first_token": ("time_to_first_token_seconds", "From submission to the first token."),
    "inter_token": ("inter_token_seconds", "From a request's token to its next one."),
    "latency": ("request_latency_seconds", "From submission to the end."),
    "real_time_factor": ("real_time_factor_ratio", "Latency over the duration of the audio."),
}


class Source(Protocol):
    """What can be exported: :class:`qwen3asr.metrics.Metrics`."""

    def snapshot(self) -> MetricsSnapshot:
        """Everything counted so far."""


def collector(models: Mapping[str, Source], registry: CollectorRegistry | None = REGISTRY) -> ModelCollector:
    """Export the metrics of models; one call for all of a process, since a registry takes each name once.

    Args:
        models: metrics by the value of the label ``model``; read at every scrape, so models may be added to the
            mapping and taken from it later.
        registry: where to register; by default prometheus_client's own, ``None`` for nowhere.

    Returns:
        The collector, for ``registry.unregister``.
    """
    exporter = ModelCollector(models)
    if registry is not None:
        registry.register(exporter)
    return exporter


class ModelCollector(Collector):
    """Reads the metrics when Prometheus asks for them. Made by :func:`collector`."""

    def __init__(self, models: Mapping[str, Source]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """Every metric family, with one sample or histogram a model."""
        snapshots = {model: source.snapshot() for model, source in dict(self._models).items()}
        yield from _numbers(snapshots)
        yield from _endings(snapshots)
        for field, (name, text) in _DISTRIBUTIONS.items():
            histogram = HistogramMetricFamily(f"qwen3asr_{name}", text, labels=_LABELS)
            for model, snapshot in snapshots.items():
                values: Distribution = getattr(snapshot, field)
                histogram.add_metric([model], _buckets(values), values.total)
            yield histogram


def _numbers(snapshots: Mapping[str, MetricsSnapshot]) -> Iterator[Metric]:
    for kind, fields in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
        for field, (name, text) in fields.items():
            family = kind(f"qwen3asr_{name}", text, labels=_LABELS)
            for model, snapshot in snapshots.items():
                family.add_metric([model], getattr(snapshot, field))
            yield family


def _endings(snapshots: Mapping[str, MetricsSnapshot]) -> Iterator[Metric]:
    finished = CounterMetricFamily(
        "qwen3asr_requests_finished", "Requests that ended, by their finish reason.", labels=(*_LABELS, "reason")
    )
    failed = CounterMetricFamily(
        "qwen3asr_requests_failed", "Requests that ended with an error, by its class.", labels=(*_LABELS, "error")
    )
    for model, snapshot in snapshots.items():
        for reason, count in snapshot.finished.items():
            finished.add_metric([model, reason], count)
        for error, count in snapshot.failed.items():
            failed.add_metric([model, error], count)
    yield finished
    yield failed


def _buckets(values: Distribution) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, as the exposition format writes them."""
    return [*((f"{bound:.4g}", float(count)) for bound, count in values.cumulative()), ("+Inf", float(values.count))]
