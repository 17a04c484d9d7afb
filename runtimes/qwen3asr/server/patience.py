"""How long a request is worked on: until its client leaves, or its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from qwen3asr.errors import DeadlineExceeded

T = TypeVar("T")


@asynccontextmanager
async def time_limit(seconds: float, since: float) -> AsyncIterator[None]:
    """Give up ``seconds`` after ``since``, in the event loop's time.

    Raises:
        DeadlineExceeded: they are over.
    """
    try:
        async with asyncio.timeout_at(since + seconds) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceeded(seconds) from error


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, but cancel it when the client leaves; the request's body must have been read.

    Raises:
        ClientDisconnect: the client left.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait((task, gone))  # whoever closes what they use must find them ended


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
