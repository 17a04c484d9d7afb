"""Forms with a file, taken in without trusting what they say about their size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO

from fastapi import HTTPException, Request
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from qwen3asr.errors import ParameterInvalid, UploadTooLarge


@asynccontextmanager
async def receive_form(request: Request, limit: int) -> AsyncIterator[FormData]:
    """The multipart form of a request; beyond 1 MB its file is on disk. Closed when the context ends.

    Args:
        request: whose body was not read yet.
        limit: bytes that the body may have, counted as they arrive.

    Raises:
        UploadTooLarge: it has more; the rest is not read.
        HTTPException: it is no multipart form (415), or not a well-formed one (400).
        ClientDisconnect: the client left.
    """
    if not request.headers.get("Content-Type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send the file and its parameters as multipart/form-data")
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise UploadTooLarge(limit)
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise UploadTooLarge(limit)
        return message

    form = await _parsed(Request(request.scope, counted))
    try:
        yield form
    finally:
        await form.close()


async def _parsed(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=100)
    except UnicodeError as error:  # of codecs that do not say which character they mean
        raise HTTPException(400, "the form's charset does not hold its text; send UTF-8") from error


def file_of(form: FormData) -> BinaryIO:
    """The uploaded file.

    Raises:
        ParameterInvalid: there is none.
    """
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise ParameterInvalid("file", "there is none; send the audio as a form part with a file name")
    return upload.file
