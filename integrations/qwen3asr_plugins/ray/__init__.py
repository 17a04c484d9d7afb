"""Ray: recordings through the actors of Ray Data, and the HTTP server on the replicas of Ray Serve.

    rows = ray.data.read_binary_files("corpus", include_paths=True).map_batches(
        Transcribe,
        fn_constructor_kwargs={"bundle": "/models/qwen3-asr-0.6b"},
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=8),
        num_cpus=4,
    )
    transcribe_corpus("corpus.jsonl", "transcripts", "/models/qwen3-asr-0.6b", actors=(1, 8), cpus=4)
    serve.run(build("/models/qwen3-asr-0.6b", replicas=(1, 4), cpus=4))

Checked with Ray 2.60. Bundles lie at the same path on every node, or on a file system that the nodes share.
"""

from qwen3asr.errors import ExtraMissing

try:
    from qwen3asr_plugins.ray.corpus import Corpus, transcribe_corpus
    from qwen3asr_plugins.ray.data import Transcribe
    from qwen3asr_plugins.ray.serving import Server, build
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("ray", "pyarrow", "fastapi"):
        raise
    raise ExtraMissing("the Ray plugin", "ray", "ray") from error

__all__ = ["Corpus", "Server", "Transcribe", "build", "transcribe_corpus"]
