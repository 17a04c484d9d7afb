"""Qwen3-ASR behind Triton: the ``model.py`` that :func:`qwen3asr_export.triton.write_repository` puts beside a bundle.

Requests are handed to one engine, which decodes them together, and each is answered when it is done: ``execute``
returns at once. So one instance serves many requests; with a decoupled model from Triton 23.10 on, without from 24.06.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import triton_python_backend_utils as pb_utils

import qwen3asr
from qwen3asr.errors import (
    AudioError,
    DeadlineExceeded,
    EngineBusy,
    EngineClosed,
    Qwen3AsrError,
    RequestInvalid,
    UsageError,
)

_POLL_SECONDS = 0.1  # Triton tells of a cancelled request when asked
_END_SECONDS = 0.1  # how far a header may be off: what ends so near is the whole
_CODES = (
    (UsageError, pb_utils.TritonError.INVALID_ARG),
    (AudioError, pb_utils.TritonError.INVALID_ARG),
    (EngineBusy, pb_utils.TritonError.UNAVAILABLE),
    (EngineClosed, pb_utils.TritonError.UNAVAILABLE),
    (DeadlineExceeded, pb_utils.TritonError.UNAVAILABLE),  # as Triton's own timeout
)
Words: TypeAlias = Sequence[qwen3asr.Word]


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What a request asks; a copy, since Triton takes its tensors back when ``execute`` returns."""

    audio: qwen3asr.AudioInput
    language: str | None
    context: str
    timestamps: Literal["word"] | None
    timeout: float | None


class TritonPythonModel:
    """One instance of the model, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside this file.

        Args:
            args: of Triton: ``model_config`` as JSON, ``model_instance_kind`` and ``model_instance_device_id``.

        Raises:
            Qwen3AsrError: the bundle cannot be loaded; Triton then shows the message and no model.
        """
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        folder = Path(__file__).parent
        aligner = folder / "aligner"
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
        self._model = qwen3asr.load(
            folder / "bundle",
            aligner=aligner if aligner.is_dir() else None,
            device=_device(args["model_instance_kind"], args["model_instance_device_id"]),
            threads=int(parameters.get("threads", 0)),
            slots=int(parameters["slots"]) if "slots" in parameters else None,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qwen3asr-triton", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Take requests; each is answered through its own sender."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                call = _call(request)
            except Qwen3AsrError as error:
                sender.send(_refusal(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                asyncio.run_coroutine_threadsafe(self._answer(call, sender), self._loop)

    def finalize(self) -> None:
        """Answer what was begun, and end."""
        self._model.close(drain=True)
        asyncio.run_coroutine_threadsafe(_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _answer(self, call: _Call, sender: Any) -> None:
        work = asyncio.ensure_future(self._transcribe(call, sender))
        while not work.done():
            await asyncio.wait([work], timeout=_POLL_SECONDS)
            if not work.done() and sender.is_cancelled():
                work.cancel()
        try:
            transcript = work.result()
        except asyncio.CancelledError:
            response = _failure("the request was cancelled", pb_utils.TritonError.CANCELLED)
        except Qwen3AsrError as error:
            response = _refusal(error)
        except Exception as error:  # noqa: BLE001 (a request that gets no answer would hang)
            pb_utils.Logger.log_error(f"a request failed: {type(error).__name__}: {error}")
            response = _failure("the model failed; the server's log says why", pb_utils.TritonError.INTERNAL)
        else:
            response = _response(transcript.text, transcript.language, transcript.finish_reason, transcript.words)
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _transcribe(self, call: _Call, sender: Any) -> qwen3asr.Transcript:
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        segments: list[qwen3asr.Segment] = []

        def send(progress: qwen3asr.Progress) -> None:
            segments.extend(progress.segments)
            whole = progress.total is not None and progress.done > progress.total - _END_SECONDS
            if not (whole or me is None or me.done() or me.cancelling()):
                text = qwen3asr.join_texts([segment.text for segment in segments])
                words = [word for segment in segments for word in segment.words]
                sender.send(_response(text, segments[-1].language if segments else None, None, words))

        def report(progress: qwen3asr.Progress) -> None:
            loop.call_soon_threadsafe(send, progress)  # on the loop nothing comes behind the answer

        return await self._model.transcribe_async(
            call.audio,
            language=call.language,
            context=call.context,
            timestamps=call.timestamps,
            timeout=call.timeout,
            progress=report if self._decoupled else None,
        )


def _device(kind: str, number: str) -> str:
    if kind == "CPU":
        return "cpu"
    return "cuda" if number == "0" else f"cuda:{number}"


# --- requests --------------------------------------------------------------------------------------------------


def _call(request: Any) -> _Call:
    timeout = request.timeout()  # microseconds, 0 for none
    return _Call(
        _audio(request),
        _text(request, "language") or None,
        _text(request, "context"),
        cast(Literal["word"] | None, _text(request, "timestamps") or None),  # the model checks it
        timeout / 1e6 if timeout else None,
    )


def _audio(request: Any) -> qwen3asr.AudioInput:
    file, samples, rate = (_array(request, name) for name in ("audio", "samples", "sample_rate"))
    if (file is None) == (samples is None):
        raise RequestInvalid("give the audio as a file's bytes in audio, or as numbers in samples, and not as both")
    if file is not None:
        return bytes(file.tobytes())
    if rate is None or rate.size != 1:
        raise RequestInvalid("samples need their rate in Hz in sample_rate, one number")
    return np.array(samples), int(rate.flat[0])


def _array(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _text(request: Any, name: str) -> str:
    array = _array(request, name)
    if array is None or not array.size:
        return ""
    try:
        return str(array.flat[0].decode())
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"{name} is not UTF-8: {error}") from error


# --- responses -------------------------------------------------------------------------------------------------


def _response(text: str, language: str | None, finish_reason: str | None, words: Words) -> Any:
    """Of a partial text there is no finish reason; what is unknown is an empty string."""
    times = [
        {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3), "confidence": word.confidence}
        for word in words
    ]
    values = {"text": text, "language": language or "", "finish_reason": finish_reason or "",
              "words": json.dumps(times, ensure_ascii=False)}  # fmt: skip
    tensors = [pb_utils.Tensor(name, np.array([value.encode()], np.object_)) for name, value in values.items()]
    partial = pb_utils.Tensor("partial", np.array([finish_reason is None]))
    return pb_utils.InferenceResponse(output_tensors=[*tensors, partial])


def _refusal(error: Qwen3AsrError) -> Any:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), pb_utils.TritonError.INTERNAL)
    return _failure(f"{type(error).__name__}: {error}", code)


def _failure(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


async def _others() -> None:
    """Wait for the other tasks of this loop."""
    me = asyncio.current_task()
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not me), return_exceptions=True)
