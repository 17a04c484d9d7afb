"""Who may call."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen3asr.errors import KeyRefused
from qwen3asr.server.problems import error_response


def permits(keys: Iterable[str], authorization: str | None) -> bool:
    """Whether a call may pass.

    Every key is compared, each in a time that does not depend on where they differ.

    Args:
        keys: those that open the server; none: everybody may pass.
        authorization: the ``Authorization`` header, ``Bearer KEY``; ``None`` if there is none.
    """
    known = [key.encode() for key in keys]
    scheme, _, text = (authorization or "").partition(" ")
    given = text.strip().encode("latin-1", "backslashreplace")  # the bytes that were sent
    equal = [hmac.compare_digest(given, key) for key in known]
    return not known or (scheme.lower() == "bearer" and any(equal))


class KeyCheck:
    """ASGI middleware: HTTP requests under ``/v1`` need a key, before their body is read.

    WebSockets check for themselves, since browsers send the key elsewhere.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))  # a server may offer all under a prefix
        guarded = scope["type"] == "http" and path.startswith("/v1/")
        if guarded and not permits(self._keys, Headers(scope=scope).get("Authorization")):
            await error_response(KeyRefused(), scope["state"]["request_id"])(scope, receive, send)
            return
        await self._app(scope, receive, send)
