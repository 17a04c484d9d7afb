"""A model that is held in the middle of its work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from qwen3asr import Recognizer
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder


class Gate:
    """Stops a session's runs from the ``first`` on until it is opened, and then does what ``act`` does."""

    def __init__(self, session: Any, first: int = 1, act: Callable[[Any], Any] = lambda result: result) -> None:
        self.open, self.reached, self.calls = threading.Event(), threading.Event(), 0
        run = session.run

        def held(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls < first:
                return run(*arguments)
            self.reached.set()
            if not self.open.wait(20):
                raise TimeoutError("the gate was not opened")
            return act(run(*arguments))

        session.run = held


def decoder_of(model: Recognizer) -> OrtDecoder:
    session: OrtDecoder = model.engine.decoder._session  # type: ignore[assignment]
    return session


def encoder_of(model: Recognizer) -> OrtEncoder:
    session: OrtEncoder = model.engine.encoder._session  # type: ignore[assignment]
    return session
