"""What the server is and how it does: its model, its health, its metrics."""

from __future__ import annotations

import time

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from qwen3asr.errors import ModelUnknown, ServerDraining
from qwen3asr.prometheus import collector
from qwen3asr.recognizer import Recognizer
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.settings import ServerSettings


def model_routes(settings: ServerSettings) -> APIRouter:
    """OpenAI's list of models, which has one; and the refusal of what that model does not do."""
    router = APIRouter(prefix="/v1")
    entry = {"id": settings.model_name, "object": "model", "created": int(time.time()), "owned_by": "qwen3asr"}

    @router.get("/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [entry]})

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name != settings.model_name:
            raise ModelUnknown(name, settings.model_name)
        return JSONResponse(entry)

    @router.post("/audio/translations")
    async def translations() -> Response:
        raise HTTPException(404, "this model does not translate; transcribe with POST /v1/audio/transcriptions")

    return router


def operator_routes(model: Recognizer, settings: ServerSettings, lifecycle: Lifecycle) -> APIRouter:
    """What load balancers and Prometheus ask for, without a key: it tells of no request."""
    router, registry = APIRouter(), CollectorRegistry()
    collector({settings.model_name: model.metrics}, registry)
    running = Gauge("qwen3asr_server_requests", "Requests and sessions under way, uploads too.", registry=registry)
    running.set_function(lambda: lifecycle.running)

    @router.get("/health")
    async def health() -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "alive"})

    @router.get("/ready")
    async def ready() -> Response:
        """Whether it takes work."""
        if lifecycle.draining.is_set():
            raise ServerDraining
        model.check()
        return JSONResponse({"status": "ready"})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counters, gauges and histograms of the model."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
