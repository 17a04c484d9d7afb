"""What the server is and how it does: its model, its health, its metrics."""

from __future__ import annotations

import time

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from qwen3asr.errors import ModelUnknown, ServerDraining
from qwen3asr.prometheus import collector
from qwen3asr.recognizer import Recognizer
from qwen3asr.server.answers import Model, ModelList, Status, json_of
from qwen3asr.server.lifecycle import Lifecycle
from qwen3asr.server.openapi import refusals


def model_routes(served: str) -> APIRouter:
    """OpenAI's list of models, which has one; and the refusal of what that model does not do."""
    router = APIRouter(prefix="/v1")
    entry = Model(id=served, created=int(time.time()))

    @router.get("/models", responses={200: {"model": ModelList}, **refusals(401)})
    async def models() -> Response:
        return json_of(ModelList(data=[entry]))

    @router.get("/models/{name:path}", responses={200: {"model": Model}, **refusals(401, 404)})
    async def one_model(name: str) -> Response:
        if name != served:
            raise ModelUnknown(name, served)
        return json_of(entry)

    @router.post("/audio/translations", include_in_schema=False)
    async def translations() -> Response:
        raise HTTPException(404, "this model does not translate; transcribe with POST /v1/audio/transcriptions")

    return router


def operator_routes(model: Recognizer, name: str, lifecycle: Lifecycle) -> APIRouter:
    """What load balancers and Prometheus ask for, without a key: it tells of no request."""
    router, registry = APIRouter(), CollectorRegistry()
    collector({name: model.metrics}, registry)
    running = Gauge("qwen3asr_server_requests", "Requests and sessions under way, uploads too.", registry=registry)
    running.set_function(lambda: lifecycle.running)

    @router.get("/health", responses={200: {"model": Status}, **refusals()})
    async def health() -> Response:
        """Whether the process answers."""
        return json_of(Status(status="alive"))

    @router.get("/ready", responses={200: {"model": Status}, **refusals(503)})
    async def ready() -> Response:
        """Whether it takes work."""
        if lifecycle.draining.is_set():
            raise ServerDraining
        model.check()
        return json_of(Status(status="ready"))

    @router.get("/metrics", response_class=PlainTextResponse, responses=refusals())
    async def metrics() -> Response:
        """Counters, gauges and histograms of the model."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
