"""Pipecat: speech to text for voice agents, a segment at a time or while it is spoken, and word times for any service.

    model = qwen3asr.load("out/qwen3-asr-0.6b")
    pipeline = Pipeline([
        transport.input(),
        VADProcessor(vad_analyzer=SileroVADAnalyzer()),
        Qwen3ASRStreamingSTTService(model=model),
        ...
    ])

Checked with pipecat-ai 1.14. Any number of services, in any number of pipelines, share one model. The VAD in front of a
service says where the user's turns begin and end. The pipeline may run at any sample rate: nothing is to be resampled.

Word times count from the first sample of a turn's audio, which begins up to a second before the VAD heard the user;
``start_time`` in each result says when that was: a word was said at ``result["start_time"] + word["start"]`` of
``time.time()``.

**Latency.** Pipecat's turn strategies want ``ttfs_p99_latency``, the 99th percentile of the seconds from the end of
speech to the final transcript. It depends on the model, the machine and the number of calls: run calls as they will be,
with ``PipelineParams(enable_metrics=True)``, ``VADParams(stop_secs=0.2)`` and ``stt_ttfb_timeout=30``, as Pipecat else
measures no final that comes later than 2 s; collect ``value`` of each ``TTFBMetricsData`` of the service in
``MetricsFrame``s, and give their 99th percentile. Pipecat assumes 1 s else.
"""

from __future__ import annotations

from qwen3asr.errors import ExtraMissing

try:
    import pipecat  # noqa: F401
except ModuleNotFoundError as error:
    raise ExtraMissing("the Pipecat plugin", "pipecat-ai", "pipecat") from error

from .alignment import Qwen3AlignmentProcessor, Qwen3CaptionFrame
from .service import Qwen3ASRSTTService
from .settings import Qwen3ASRStreamingSTTSettings, Qwen3ASRSTTSettings
from .streaming import Qwen3ASRStreamingSTTService

__all__ = [
    "Qwen3ASRSTTService",
    "Qwen3ASRSTTSettings",
    "Qwen3ASRStreamingSTTService",
    "Qwen3ASRStreamingSTTSettings",
    "Qwen3AlignmentProcessor",
    "Qwen3CaptionFrame",
]
