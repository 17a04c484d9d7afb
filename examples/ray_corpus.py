"""Transcribe many files on a Ray cluster, or on this machine where there is none; run it again after a stop.

python examples/ray_corpus.py BUNDLE OUT_FOLDER AUDIO [AUDIO ...]
"""

import os
import sys

import pyarrow.parquet as pq

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # as Ray starts, it reads whether it may report its use

import ray

from qwen3asr_plugins.ray import Corpus, transcribe_corpus


def show(corpus: Corpus) -> None:
    """A line for each batch."""
    print(f"{corpus.skipped + corpus.done + corpus.failed} of {corpus.total}, {corpus.seconds:.0f} s", file=sys.stderr)


bundle, folder, *paths = sys.argv[1:]
ray.init(log_to_driver=False)  # joins the cluster that RAY_ADDRESS names
done = transcribe_corpus(paths, folder, bundle, retry_failed=True, progress=show)
for row in sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["path"]):
    print(f"{row['path']}  {row['error'] or row['text']}")
sys.exit(1 if done.failed else 0)
