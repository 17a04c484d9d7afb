"""``qwen3asr serve``: the HTTP server, and beside it a Wyoming server."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

import qwen3asr
from qwen3asr import console
from qwen3asr.cli.common import Capacity, Device, Engine, Model, Slots, Threads

if TYPE_CHECKING:
    from qwen3asr.server import ServerSettings


def serve(
    model: Model,
    aligner: Annotated[Path | None, typer.Option(help="Forced aligner's bundle: adds word times.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="QWEN3ASR_API_KEY", help="Key that opens /v1; several: repeat, or spaces between them."),
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="What requests call the model. Default: the folder.")] = None,
    slots: Slots = None,
    capacity: Capacity = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; one more gets status 429.")] = 64,
    threads: Threads = 0,
    device: Device = "auto",
    engine: Engine = None,
    max_upload_mb: Annotated[float, typer.Option(help="Longest request in MB.")] = 200.0,
    max_seconds: Annotated[float, typer.Option(help="Longest audio of a request.")] = 4 * 3600.0,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    drain_seconds: Annotated[float, typer.Option(help="Seconds to finish requests in after SIGTERM.")] = 30.0,
    cors_origin: Annotated[list[str] | None, typer.Option(help="Web origin whose pages may call; repeat.")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the demo page at /.")] = True,
    wyoming: Annotated[str | None, typer.Option(help="Also serve Wyoming there: tcp://HOST:PORT.")] = None,
) -> None:
    r"""Serve the model over HTTP as OpenAI's API does, until SIGTERM or Ctrl-C.

    Needs: pip install 'qwen3asr\[cpu,serve]'. Then requests that were begun are finished, and the exit code is 0; a
    second signal ends at once.
    """
    from qwen3asr.server import ServerSettings  # noqa: PLC0415 (an optional dependency)

    settings = ServerSettings(
        model_name=model_name,
        api_keys=tuple(api_key or ()),
        max_upload_bytes=int(max_upload_mb * 1e6),
        max_audio_seconds=max_seconds,
        request_seconds=timeout,
        drain_seconds=drain_seconds,
        page=page,
        cors_origins=tuple(cors_origin or ()),
    )
    if not settings.api_keys and not _loopback(host):
        console.warn(f"{host} may be reached from other machines, and anybody may call: give an --api-key")
    if wyoming is not None and not _loopback(urlsplit(wyoming).hostname or "localhost"):
        console.warn(f"{wyoming} may be reached from other machines, and Wyoming knows no keys: anybody may call")
    _log_to_stderr()
    with qwen3asr.load(
        model, aligner=aligner, device=device, engine=engine, threads=threads, slots=slots, capacity=capacity,
        queue=queue,
    ) as recogniser:  # fmt: skip
        asyncio.run(_serve(recogniser, settings, host, port, wyoming))


async def _serve(
    model: qwen3asr.Recognizer, settings: ServerSettings, host: str, port: int, wyoming: str | None
) -> None:
    from qwen3asr.server import serve as serve_http  # noqa: PLC0415

    if wyoming is None:
        await serve_http(model, settings, host=host, port=port)
        return
    from qwen3asr_plugins.wyoming import run  # noqa: PLC0415

    beside = await run(model, wyoming)
    try:
        await serve_http(model, settings, host=host, port=port, stop_beside=beside.stop)
    finally:
        await beside.stop(0)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log_to_stderr() -> None:
    """Lines with their time, of all libraries; a server's log is not read at a terminal."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("qwen3asr").handlers = []
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
