"""Every error that qwen3asr raises: one class a cause, each also a standard exception.

The message says what is wrong with what, and the cure. Catch :class:`Qwen3AsrError` for all of them, or
the standard class (``FileNotFoundError``, ``ValueError`` ...) as with any other library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class Qwen3AsrError(Exception):
    """Base of every error of this library."""


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
    """The clip does not fit the KV cache, or the aligner's time classes."""

    def __init__(self, seconds: float, limit: float, what: str = "KV cache") -> None:
        cure = "load the model with a larger capacity=, or cut" if what == "KV cache" else "cut"
        super().__init__(
            f"{seconds:.1f} s of audio do not fit the {what}, which takes {limit:.1f} s; {cure} the audio at a silence"
        )


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
        super().__init__(f"there is no bundle at {folder}; make one with: qwen3asr export CHECKPOINT {folder}")


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


class BackendFailed(Qwen3AsrError, RuntimeError):
    """The backend stopped within a run: out of memory, or a graph that does not fit its inputs."""

    def __init__(self, backend: str, error: Exception) -> None:
        super().__init__(
            f"{backend} failed: {error}; if memory is short, give less audio at a time or a smaller capacity=, "
            "otherwise check the bundle with `qwen3asr verify`"
        )


class OutputNotFinite(Qwen3AsrError, ArithmeticError):
    """The model computed NaN or infinity: the precision overflows, or the bundle is broken."""


class ConfigInvalid(Qwen3AsrError, ValueError):
    """config.json lacks a key, or asks for what Qwen3-ASR does not have."""

    def __init__(self, key: str, reason: str = "it is not there") -> None:
        super().__init__(f"config.json, {key}: {reason}; is this the config.json of a Qwen3-ASR model?")


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
