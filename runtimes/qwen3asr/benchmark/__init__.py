"""How fast a bundle is on this machine: what ``qwen3asr bench`` runs.

    from qwen3asr.benchmark import Settings, as_dict, benchmark
    report = benchmark("out/qwen3-asr-0.6b", Settings(concurrency=(1, 8)))
    report.levels[0].first_token.p95, report.levels[0].throughput.p50

Everything is measured several times; beside each figure stands what this machine's memory and cores would allow.
"""

from qwen3asr.benchmark.levels import Level
from qwen3asr.benchmark.plot import FORMATS, check_available, plot
from qwen3asr.benchmark.report import as_dict, as_tables
from qwen3asr.benchmark.run import SCHEMA, Report, benchmark
from qwen3asr.benchmark.settings import Settings
from qwen3asr.benchmark.spread import Spread

__all__ = [
    "FORMATS",
    "SCHEMA",
    "Level",
    "Report",
    "Settings",
    "Spread",
    "as_dict",
    "as_tables",
    "benchmark",
    "check_available",
    "plot",
]
