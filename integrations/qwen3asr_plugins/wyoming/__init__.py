"""Wyoming, the protocol of Home Assistant's voice services: a server of speech to text.

    server = await run(model, "tcp://0.0.0.0:10300")
    ...
    await server.stop()

Checked with wyoming 1.10. The transcript is computed while the audio comes in, and what will not change any more is
sent at once, in chunks that put together are the transcript; those who do not know chunks ignore them. Any number of
connections share one model.

Wrong requests (an unknown language or model, audio that cannot be) are answered with an ``Error`` whose code is the
name of the exception, and the connection goes on. Where the model fails (``EngineBusy``, say) the connection is closed
behind the ``Error``: Home Assistant waits for a transcript or the end of the connection, and for nothing else. The
protocol cannot tell that a transcript is cut: that is logged as a warning.
"""

from __future__ import annotations

from qwen3asr.errors import ExtraMissing

try:
    import wyoming  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "wyoming":
        raise
    raise ExtraMissing("the Wyoming server", "wyoming", "wyoming") from error

from .handler import Qwen3ASREventHandler, ServerSettings
from .info import info_of
from .server import DEFAULT_URI, WyomingServer, run

__all__ = ["DEFAULT_URI", "Qwen3ASREventHandler", "ServerSettings", "WyomingServer", "info_of", "run"]
