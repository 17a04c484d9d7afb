"""The demo page: record, or choose a file, and read. Plain HTML and JavaScript that load nothing from elsewhere."""

from __future__ import annotations

import json
from importlib import resources

from fastapi import FastAPI, Response

from qwen3asr.languages import ALIGNER_LANGUAGES, LANGUAGES

_FILES = {
    "index.html": "text/html",
    "app.js": "text/javascript",
    "live.js": "text/javascript",
    "reader.js": "text/javascript",
    "recorder.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; media-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # it goes with the server's version
}


def add_page(app: FastAPI) -> None:
    """Add ``/``, and what it loads under ``/page``. It needs no key: what it asks of ``/v1`` does."""
    folder = resources.files(__package__)
    for name, kind in _FILES.items():
        _add_file(app, "/" if name == "index.html" else f"/page/{name}", (folder / name).read_bytes(), kind)
    known = {"names": LANGUAGES, "aligned": ALIGNER_LANGUAGES}
    _add_file(app, "/page/languages.json", json.dumps(known).encode(), "application/json")


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)
