"""The OpenAI-compatible server as an application of Ray Serve."""

from __future__ import annotations

import os

from fastapi import FastAPI
from ray import serve

import qwen3asr
from qwen3asr.errors import RequestInvalid
from qwen3asr.server import ServerSettings, create_app
from qwen3asr_plugins.ray.data import assigned_threads


@serve.ingress()  # the application is made where the model is: in the replica
class Server:
    """A replica: a model of its own behind :func:`qwen3asr.server.create_app`. Made by :func:`build`."""

    def __init__(
        self, bundle: str, aligner: str | None, settings: ServerSettings, threads: int | None, slots: int
    ) -> None:
        self._model = qwen3asr.load(bundle, aligner=aligner, threads=assigned_threads(threads), slots=slots)
        self._app = create_app(self._model, settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def check_health(self) -> None:
        """What ``/ready`` asks; a replica whose model takes no more work gets a successor.

        Raises:
            EngineClosed: the model was closed.
        """
        self._model.check()

    def __del__(self) -> None:
        """When Serve has waited for the requests that were begun."""
        self._model.close()


def build(
    bundle: str | os.PathLike[str],
    *,
    aligner: str | os.PathLike[str] | None = None,
    settings: ServerSettings | None = None,
    replicas: int | tuple[int, int] = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    threads: int | None = None,
    slots: int = 4,
    queue: int = 64,
) -> serve.Application:
    """The OpenAI-compatible server as an application for ``serve.run``, or for ``serve run`` and ``serve deploy``.

    A replica is sent twice as many requests as it has slots, so that the next is there when one ends; more wait where
    they came in. A replica that stops finishes what it has begun, within ``settings.drain_seconds``. ``/metrics`` of
    one address shows one replica's figures.

    Args:
        bundle: folder of the recogniser, on every node.
        aligner: folder of the aligner, for word times.
        settings: of the server.
        replicas: how many, each with a model; ``(least, most)`` lets Serve choose, so that each has as many requests as
            it has slots.
        cpus: of a replica.
        gpus: of a replica.
        threads: of one operator; by default as many as the replica has CPUs.
        slots: requests that a replica decodes at a time.
        queue: requests that may wait where they came in; one more is refused with 503.

    Raises:
        RequestInvalid: numbers that make no sense.
    """
    settings = settings or ServerSettings()
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 0 <= least <= most or most < 1:
        raise RequestInvalid(f"replicas={replicas!r} makes no sense; give a number, or (least, most)")
    if slots < 1 or queue < 0:
        raise RequestInvalid(f"slots={slots} with queue={queue} serves nobody; give at least 1 slot and a queue of 0")
    autoscaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": slots}
    deployment = serve.deployment(
        name="Qwen3ASR",
        num_replicas=most if least == most else "auto",
        autoscaling_config=None if least == most else autoscaling,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=2 * slots,
        max_queued_requests=queue,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )(Server)
    aligner = None if aligner is None else os.path.abspath(aligner)  # noqa: PTH100 (replicas work in another folder)
    return deployment.bind(os.path.abspath(bundle), aligner, settings, threads, slots)  # noqa: PTH100
