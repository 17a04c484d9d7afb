"""What an operator decides about the server."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3asr.errors import RequestInvalid


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the server is to behave.

    Attributes:
        model_name: the ``model`` that requests name; ``None``: the name of the bundle's folder.
        api_keys: bearer keys, any of which opens ``/v1``; none lets everybody in.
        max_upload_bytes: the longest body of a request; a longer one is refused as soon as it is.
        max_audio_seconds: the longest audio of a request.
        request_seconds: time that a request may take, its upload included.
        drain_seconds: time that a stopping server gives to what it has begun.
        page: serve the demo page at ``/``.
        cors_origins: web origins, such as ``https://example.org``, whose pages may call; ``*`` for all.

    Raises:
        RequestInvalid: a value makes no sense.
    """

    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    max_upload_bytes: int = 200_000_000
    max_audio_seconds: float = 4 * 3600.0
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
    page: bool = True
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_upload_bytes", "max_audio_seconds", "request_seconds"):
            if not getattr(self, name) > 0:
                raise RequestInvalid(f"{name}={getattr(self, name)} lets nothing through; give more than 0")
        if not self.drain_seconds >= 0:
            raise RequestInvalid(f"drain_seconds={self.drain_seconds} makes no sense; give 0 or more")
        if self.model_name == "":
            raise RequestInvalid("model_name is empty; give the name that requests are to use")
        if not all(key.strip() == key != "" for key in self.api_keys):
            raise RequestInvalid("an API key is empty, or has spaces around it; give keys of visible characters")
