"""An OpenAI-compatible HTTP server over one recogniser; needs ``pip install 'qwen3asr[serve]'``.

    import asyncio
    import qwen3asr
    from qwen3asr.server import ServerSettings, serve

    model = qwen3asr.load("out/qwen3-asr-0.6b", aligner="out/forced-aligner")
    asyncio.run(serve(model, ServerSettings(model_name="qwen3-asr-0.6b"), port=8000))

:func:`create_app` gives the application alone, for any ASGI server.
"""

from qwen3asr.errors import ExtraMissing

try:
    from qwen3asr.server.app import create_app
    from qwen3asr.server.running import serve
except ModuleNotFoundError as missing:
    if missing.name not in ("fastapi", "uvicorn", "python_multipart", "websockets"):
        raise
    raise ExtraMissing("the HTTP server", missing.name, "serve") from missing
from qwen3asr.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "serve"]
