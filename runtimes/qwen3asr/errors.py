"""Every error that qwen3asr raises: one class a cause, each also a standard exception.

The message says what is wrong with what, and the cure. Catch :class:`Qwen3AsrError` for all of them, or
the standard class (``FileNotFoundError``, ``ValueError`` ...) as with any other library.
"""

from __future__ import annotations

import difflib
import queue
from collections.abc import Callable, Iterable
from pathlib import Path


class Qwen3AsrError(Exception):
    """Base of every error of this library. Errors can be pickled: processes hand them to each other."""

    def __reduce__(self) -> tuple[Callable[..., Qwen3AsrError], tuple[object, ...]]:
        """By its message: the constructors make that of other arguments."""
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[Qwen3AsrError], args: tuple[object, ...], attributes: dict[str, object]) -> Qwen3AsrError:
    error = kind.__new__(kind, *args)  # which OSError takes its errno from
    error.args = args
    vars(error).update(attributes)
    return error


class AudioError(Qwen3AsrError):
    """Base of what one clip can have: the next one may be good."""


class UsageError(Qwen3AsrError):
    """Base of what was asked wrongly, whatever the audio and the model."""


# --- audio -----------------------------------------------------------------------------------------------------


class AudioNotFound(AudioError, FileNotFoundError):
    """The path names no file."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(f"there is no audio file at {path}; check the path")


class AudioUnreadable(AudioError, ValueError):
    """The bytes are not audio that libsndfile or ffmpeg can read."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be read as audio: {reason}")


class AudioEmpty(AudioError, ValueError):
    """The file has no bytes, or the audio no samples."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} holds no audio samples; give at least one sample of sound")


class AudioNotFinite(AudioError, ValueError):
    """Samples are NaN or infinite."""

    def __init__(self, name: str, count: int, first: float) -> None:
        super().__init__(
            f"{name} has {count} NaN or infinite samples, the first at {first:.3f} s; "
            "repair the source, or silence them with numpy.nan_to_num(samples, posinf=0, neginf=0)"
        )


class AudioFormatInvalid(AudioError, TypeError):
    """An array whose type, shape or rate cannot be audio."""


class AudioTooLong(AudioError, ValueError):
    """The clip does not fit the KV cache, or one pass of the aligner."""

    def __init__(self, seconds: float, limit: float, what: str = "KV cache") -> None:
        cure = (
            "load the model with a larger capacity="
            if what == "KV cache"
            else "align it through a recogniser, which splits it: qwen3asr.load(..., aligner=...)"
        )
        super().__init__(
            f"{seconds:.1f} s of audio do not fit the {what}, which takes {limit:.1f} s; {cure}, "
            "or cut the audio at a silence"
        )


class AudioPastLimit(AudioError, ValueError):
    """The clip is longer than the caller allows."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the audio is longer than the {seconds:g} s that are allowed; cut it at a silence")


# --- requests --------------------------------------------------------------------------------------------------


class LanguageUnknown(UsageError, ValueError):
    """Not one of the languages that the model knows."""

    def __init__(self, language: str, known: Iterable[str], what: str = "the recogniser") -> None:
        names = list(known)
        by_case = {name.casefold(): name for name in names}
        near = difflib.get_close_matches(language.strip().casefold(), by_case, n=1, cutoff=0.5)
        hint = f"did you mean {by_case[near[0]]!r}? " if near else ""
        super().__init__(f"{what} does not know the language {language!r}; {hint}it knows {', '.join(names)}")


class ContextInvalid(UsageError, ValueError):
    """The context holds text that would change the prompt's structure."""


class RequestInvalid(UsageError, ValueError):
    """An argument that does not fit the others."""


class AlignerMissing(UsageError, ValueError):
    """Word times were asked of a model that was loaded without an aligner."""

    def __init__(self) -> None:
        super().__init__('word times need a forced aligner; load the model with aligner="path/to/aligner-bundle"')


class ExtraMissing(Qwen3AsrError, ImportError):
    """A feature needs an optional dependency."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(f"{feature} needs the package {package}; install it with: pip install 'qwen3asr[{extra}]'")


class ManifestInvalid(UsageError, ValueError):
    """The manifest of an evaluation cannot be used; all its problems are named."""

    def __init__(self, manifest: Path, problems: list[str]) -> None:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        super().__init__("\n  ".join([f"{manifest} cannot be used:", *problems[:10], *more]))


# --- bundles ---------------------------------------------------------------------------------------------------


class BundleInvalid(Qwen3AsrError, ValueError):
    """The folder is no bundle, or its bundle.json makes no sense."""


class BundleNotFound(Qwen3AsrError, FileNotFoundError):
    """There is no folder at the path."""

    def __init__(self, folder: Path) -> None:
        cure = f"make one with: qwen3asr export CHECKPOINT {folder}"
        if folder.parent == Path("Qwen"):  # a checkpoint's name on the hub
            target = Path("out") / folder.name
            cure = f"make one with: qwen3asr export {folder.as_posix()} {target}, and load {target}"
        super().__init__(f"there is no bundle at {folder}; {cure}")


class BundleFileMissing(Qwen3AsrError, FileNotFoundError):
    """A file that bundle.json lists is not there."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(f"{name} is not in {folder}; run `qwen3asr export` again")


class BundleFileDamaged(Qwen3AsrError, ValueError):
    """A file differs from what export wrote."""

    def __init__(self, name: str, folder: Path, difference: str) -> None:
        super().__init__(f"{name} in {folder} is not what export wrote ({difference}); run `qwen3asr export` again")


class BundleTooNew(Qwen3AsrError, ValueError):
    """Written by a newer qwen3asr."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"this bundle has format version {found}, this qwen3asr reads up to {known}; "
            "upgrade with: pip install -U qwen3asr"
        )


class BundleKindWrong(Qwen3AsrError, ValueError):
    """An aligner was given where a recogniser is needed, or the reverse."""

    def __init__(self, folder: Path, found: str, wanted: str) -> None:
        place = "as the aligner= argument" if found == "aligner" else "as the first argument of load()"
        super().__init__(f"{folder} is a bundle of kind {found!r}, not {wanted!r}; give it {place}")


# --- running ---------------------------------------------------------------------------------------------------


class DeviceUnavailable(Qwen3AsrError, RuntimeError):
    """The device asked for cannot be used here."""


class NodesMisplaced(Qwen3AsrError, RuntimeError):
    """Nodes of a graph would run on the CPU, and their data travel there and back in every run."""

    def __init__(self, graph: str, provider: str, nodes: list[tuple[str, str]]) -> None:
        named = ", ".join(f"{kind} {name}".strip() for kind, name in nodes[:6])
        more = f" and {len(nodes) - 6} more" if len(nodes) > 6 else ""
        super().__init__(
            f"{provider} does not run {len(nodes)} nodes of {graph} ({named}{more}); export the checkpoint again with "
            "this version, or with --dialect standard, or load with device='cpu'"
        )


class BackendFailed(Qwen3AsrError, RuntimeError):
    """The backend stopped within a run: out of memory, or a graph that does not fit its inputs."""

    def __init__(self, backend: str, error: Exception) -> None:
        super().__init__(
            f"{backend} failed: {error}; if memory is short, give less audio at a time or a smaller capacity=, "
            "otherwise check the bundle with `qwen3asr verify`"
        )


class KvMemoryShort(Qwen3AsrError, MemoryError):
    """More rows of the KV cache were asked for than the free memory holds."""

    def __init__(self, wanted: int, slot_bytes: int, free: int) -> None:
        fit, mb = max(1, free // slot_bytes), 1_000_000
        super().__init__(
            f"slots={wanted} need {wanted * slot_bytes / mb:.0f} MB of KV cache, and {free / mb:.0f} MB are free: "
            f"{fit} would fit; give slots={fit}, or a capacity= {wanted * slot_bytes / max(free, 1):.1f} times smaller"
        )


class DetectorMissing(Qwen3AsrError, FileNotFoundError):
    """The model file of a speech detector is not there."""


class DetectorInvalid(Qwen3AsrError, ValueError):
    """A file is no model of a speech detector that can be run here."""


class EngineBusy(Qwen3AsrError, queue.Full):
    """As many requests are waiting, or streams open, as the model was loaded for.

    Attributes:
        retry_after: seconds until there should be room.
    """

    def __init__(self, what: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(
            f"{what} already; come again in about {retry_after:.1f} s, or load the model with a longer queue="
        )


class EngineClosed(Qwen3AsrError, RuntimeError):
    """The model was closed."""

    def __init__(self) -> None:
        super().__init__("the model was closed; load it again")


class EngineFailed(Qwen3AsrError, RuntimeError):
    """The engine itself failed, not a request; it starts anew with the next one."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the engine failed ({type(error).__name__}: {error}) and starts anew; send the request again")


class DeadlineExceeded(Qwen3AsrError, TimeoutError):
    """A request took longer than it was given."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not done within its {seconds:.1f} s; give more time, shorter audio, or fewer requests")


class StreamEnded(UsageError, ValueError):
    """Audio was given to a stream that was finished, aborted or closed, or that an error ended."""

    def __init__(self) -> None:
        super().__init__("the stream has ended; open a new one for more audio")


class StepCancelled(Qwen3AsrError, RuntimeError):
    """The model gave up a step of a stream."""

    def __init__(self) -> None:
        super().__init__("the model cancelled a step of the stream, as when it is closed; open a new stream")


class StreamBehind(Qwen3AsrError, BufferError):
    """A stream is given audio faster than the model takes it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"{seconds:.0f} s of audio wait for the model already; give it in real time, give recordings to run(), "
            "or open fewer streams at a time"
        )


class OutputNotFinite(Qwen3AsrError, ArithmeticError):
    """The model computed NaN or infinity: the precision overflows, or the bundle is broken."""


class ConfigInvalid(Qwen3AsrError, ValueError):
    """config.json lacks a key, or asks for what Qwen3-ASR does not have."""

    def __init__(self, key: str, reason: str = "it is not there") -> None:
        super().__init__(f"config.json, {key}: {reason}; is this the config.json of a Qwen3-ASR model?")


# --- server ----------------------------------------------------------------------------------------------------


class ParameterInvalid(UsageError, ValueError):
    """A parameter of a request to the server has a value that it cannot have.

    Attributes:
        parameter: its name.
    """

    def __init__(self, parameter: str, problem: str) -> None:
        self.parameter = parameter
        super().__init__(f"{parameter}: {problem}")


class ModelUnknown(UsageError, LookupError):
    """A request names a model that the server does not have."""

    def __init__(self, name: str, known: str) -> None:
        super().__init__(f"there is no model {name!r} here; name {known!r}")


class KeyRefused(Qwen3AsrError, PermissionError):
    """A request brings no API key of the server's."""

    def __init__(self) -> None:
        super().__init__("this server needs one of its API keys; send it in the header Authorization: Bearer KEY")


class UploadTooLarge(Qwen3AsrError, ValueError):
    """The body of a request is longer than the server takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the request is larger than the {limit / 1e6:g} MB that this server takes; send a compressed format such "
            "as FLAC, MP3 or Opus, or cut the audio at a silence"
        )


class OriginRefused(Qwen3AsrError, PermissionError):
    """A page of another web origin wants to open a session."""

    def __init__(self, origin: str) -> None:
        super().__init__(f"pages of {origin} may not connect; start the server with it in cors_origins")


class EventInvalid(UsageError, ValueError):
    """An event that a realtime client sent cannot be used; its session goes on.

    Attributes:
        code: of OpenAI's kind, such as ``invalid_value``.
        parameter: the field that is wrong, if it is one.
        event_id: the client's name of the event, if it could be read.
    """

    def __init__(self, message: str, code: str, parameter: str | None = None, event_id: str | None = None) -> None:
        self.code, self.parameter, self.event_id = code, parameter, event_id
        super().__init__(message)


class ServerDraining(Qwen3AsrError, ConnectionError):
    """The server is about to stop."""

    def __init__(self) -> None:
        super().__init__("the server is about to stop and takes no more work; send the request again, or to another")


# --- export ----------------------------------------------------------------------------------------------------


class CheckpointInvalid(Qwen3AsrError, ValueError):
    """The folder is no Qwen3-ASR checkpoint that can be exported."""


class CheckpointNotFound(CheckpointInvalid, FileNotFoundError):
    """The hub has no such repository or revision, or its copy on this machine is not whole."""


class CheckpointForbidden(CheckpointInvalid, PermissionError):
    """The hub gives the repository only to those who agreed to its terms, or are named."""


class HubUnreachable(Qwen3AsrError, ConnectionError):
    """The hub does not answer, or the connection broke."""


class CheckpointKeysWrong(Qwen3AsrError, ValueError):
    """Tensors are missing, unknown, or of another shape than config.json says."""

    def __init__(self, folder: Path, missing: list[str], unexpected: list[str], misshaped: list[str]) -> None:
        parts = []
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped)):
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                parts.append(f"{len(names)} {label}: {', '.join(names[:4])}{more}")
        super().__init__(
            f"the weights in {folder} do not match its config.json ({'; '.join(parts)}); "
            "download the checkpoint again, whole"
        )


class TargetExists(UsageError, FileExistsError):
    """The export target is already there."""

    def __init__(self, target: Path, is_bundle: bool) -> None:
        cure = "choose another folder, or replace it with --force" if is_bundle else "it is no bundle: choose another"
        super().__init__(f"{target} exists already; {cure}")


class DiskFull(Qwen3AsrError, OSError):
    """The disk has no room for the bundle."""


class VerificationFailed(Qwen3AsrError, RuntimeError):
    """The exported graphs do not do what the checkpoint does in PyTorch."""


# --- TensorRT --------------------------------------------------------------------------------------------------


class EnginesInvalid(Qwen3AsrError, ValueError):
    """The folder holds no TensorRT engines, or its engine.json makes no sense."""


class EnginesTooNew(EnginesInvalid):
    """Written by a newer qwen3asr."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"these engines have format version {found}, this qwen3asr reads up to {known}; "
            "upgrade with: pip install -U qwen3asr"
        )


class EngineFileMissing(EnginesInvalid, FileNotFoundError):
    """A file that engine.json lists is not there."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(f"{name} is not in {folder}; build the engines again, with --force")


class EngineFileDamaged(EnginesInvalid):
    """A file differs from what was built."""

    def __init__(self, name: str, folder: Path, difference: str) -> None:
        super().__init__(f"{name} in {folder} is not what was built ({difference}); build again, with --force")


class EnginesStale(EnginesInvalid):
    """The engines were built from other graphs than those beside them."""

    def __init__(self, folder: Path, graph: str) -> None:
        super().__init__(f"{folder} was built from another {graph} than the bundle's; build again, with --force")


class EnginesMissing(EnginesInvalid, FileNotFoundError):
    """A bundle has no TensorRT engines, or none that run here.

    Attributes:
        reasons: why each folder of engines in it does not.
    """

    def __init__(self, bundle: Path, reasons: list[str]) -> None:
        self.reasons = reasons
        what = "no TensorRT engines" if not reasons else f"no TensorRT engines that run here ({'; '.join(reasons)})"
        super().__init__(
            f"{bundle} has {what}; build them on this machine with: qwen3asr export --engine tensorrt {bundle}, "
            "or load with build_engines=True"
        )


class EngineRefused(EnginesInvalid):
    """TensorRT does not take an engine that it built, or finds other tensors in it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"TensorRT does not take {path}: {reason}; build the engines again, with --force")


class EnginesForeign(DeviceUnavailable):
    """The engines were built for another TensorRT or another GPU."""

    def __init__(self, folder: Path, what: str, built: str, here: str) -> None:
        super().__init__(
            f"{folder} was built for {what} {built}, and here is {here}; build engines here with: "
            "qwen3asr export --engine tensorrt BUNDLE"
        )


class PackageTooOld(Qwen3AsrError, ImportError):
    """An optional dependency is there, in a version that lacks what is needed."""

    def __init__(self, package: str, found: str, needed: str) -> None:
        super().__init__(f"{package} {found} is too old; install {needed} or newer: pip install -U {package}")


class GraphRefused(Qwen3AsrError, ValueError):
    """The engine's parser does not take a node of the graph."""

    def __init__(self, graph: str, node: str, operator: str, reason: str) -> None:
        super().__init__(
            f"TensorRT's parser refuses {graph} at the node {node!r} ({operator}): {reason}; "
            "install a newer TensorRT, or run the bundle with ONNX Runtime"
        )


class EngineBuildFailed(Qwen3AsrError, RuntimeError):
    """TensorRT built no engine."""


class EngineUnexpected(Qwen3AsrError, RuntimeError):
    """The network or engine is not what was meant: layers are missing, unfused, or of another type."""


class GpuMemoryShort(Qwen3AsrError, MemoryError):
    """Weights, KV cache and activations do not fit the GPU."""
