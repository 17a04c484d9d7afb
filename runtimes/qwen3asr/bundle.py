"""The bundle: the folder that export writes and runtimes read. Nobody else knows its layout.

A bundle is made in a temporary folder beside its target and renamed when it is whole, so an interrupted
export leaves nothing behind. ``bundle.json`` names every file with its size and SHA-256.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from qwen3asr.errors import (
    BundleFileDamaged,
    BundleFileMissing,
    BundleInvalid,
    BundleKindWrong,
    BundleNotFound,
    BundleTooNew,
    DiskFull,
    TargetExists,
)
from qwen3asr.spec import Kind, ModelSpec

FORMAT = 1
MANIFEST = "bundle.json"
CARD = "README.md"
"""The model card: for readers, so it may be edited and is not among the files that are checked."""
COMPONENTS = ("encoder", "decoder")
_ALWAYS_HASHED = 32 << 20  # smaller files are hashed at every load: a swapped graph or tokenizer is found at once


@dataclass(frozen=True, slots=True)
class Manifest:
    """What bundle.json says.

    Attributes:
        kind: ``asr`` or ``aligner``.
        precision: one of :data:`qwen3asr.precisions.PRECISIONS`.
        dialect: which operators the graphs use, ``ort`` or ``standard``.
        opset: ONNX opset of the graphs.
        components: name of each graph to its file.
        limits: ``positions``, the longest sequence that the decoder's tables allow.
        source: checkpoint name, its weights' SHA-256, the versions that exported it, and the hub's ``revision``.
        verified: what ``verify`` measured, or ``None``: ``reference``, ``passed``, and ``checks``, of each ``check``
            (its name), ``worst`` (``None``: not finite), ``bound`` (``None``: not judged), ``unit``, ``comparisons``.
    """

    kind: Kind
    precision: str
    dialect: str
    opset: int
    components: Mapping[str, str]
    limits: Mapping[str, int]
    source: Mapping[str, str]
    verified: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk, checked."""

    folder: Path
    manifest: Manifest
    spec: ModelSpec
    sizes: Mapping[str, int] = field(repr=False)
    hashes: Mapping[str, str] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.sizes.values())

    def component(self, name: str) -> Path:
        """Path of a graph, e.g. ``encoder``."""
        return self.folder / self.manifest.components[name]

    def config(self, name: str) -> dict[str, Any]:
        """A JSON file of the bundle, ``{}`` where it has none of that name.

        Raises:
            BundleFileDamaged: it is no JSON object.
        """
        return _read_json(self.folder, name) if (self.folder / name).is_file() else {}


def open_bundle(folder: str | Path, *, kind: Kind | None = None, check_hashes: bool = False) -> Bundle:
    """Read and check a bundle: format version, presence and size of every file, SHA-256 of the small ones.

    Args:
        folder: the bundle.
        kind: refuse the other kind.
        check_hashes: compare the SHA-256 of every file, weights too (seconds a gigabyte).

    Raises:
        BundleNotFound, BundleInvalid, BundleTooNew, BundleKindWrong, BundleFileMissing, BundleFileDamaged:
            each says what is wrong and the cure.
    """
    folder = Path(folder)
    content = _read_manifest(folder)
    manifest, files = _parse_manifest(folder, content)
    if kind is not None and manifest.kind != kind:
        raise BundleKindWrong(folder, manifest.kind, kind)
    for name, entry in files.items():
        _check_file(folder, name, entry, check_hashes)
    config = _read_json(folder, "config.json")
    sizes, hashes = ({name: entry[key] for name, entry in files.items()} for key in ("size", "sha256"))
    return Bundle(folder, manifest, ModelSpec.from_config(config), sizes, hashes)


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BundleNotFound(folder)
    path = folder / MANIFEST
    if not path.is_file():
        what = "it looks like a checkpoint" if (folder / "config.json").is_file() else "it is another kind of folder"
        raise BundleInvalid(
            f"{folder} has no {MANIFEST}; {what}; make a bundle with: qwen3asr export CHECKPOINT TARGET"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        version = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleInvalid(f"{path} cannot be read ({error!r}); run `qwen3asr export` again") from error
    if not isinstance(version, int) or version < 1:
        raise BundleInvalid(f"{path} has the format version {version!r}, not a number; run `qwen3asr export` again")
    if version > FORMAT:
        raise BundleTooNew(version, FORMAT)
    return cast(dict[str, Any], content)


def _parse_manifest(folder: Path, content: dict[str, Any]) -> tuple[Manifest, dict[str, Any]]:
    names = Manifest.__dataclass_fields__
    try:
        manifest = Manifest(**{name: content[name] for name in names})
        files = {
            str(name): {"size": int(e["size"]), "sha256": str(e["sha256"])} for name, e in content["files"].items()
        }
        _check_types(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleInvalid(f"{MANIFEST} in {folder} is damaged ({error!r}); run `qwen3asr export` again") from error
    outside = [name for name in files if not is_inside(name)]
    if outside:
        raise BundleInvalid(f"{MANIFEST} in {folder} names {outside[0]!r}, outside of it; do not use this bundle")
    if manifest.kind not in ("asr", "aligner"):
        raise BundleInvalid(
            f"{MANIFEST} in {folder} has the unknown kind {manifest.kind!r}; run `qwen3asr export` again"
        )
    unlisted = set(manifest.components.values()) - files.keys()
    if unlisted:
        raise BundleInvalid(f"{MANIFEST} in {folder} does not list {', '.join(unlisted)}; run `qwen3asr export` again")
    return manifest, files


def _check_types(manifest: Manifest) -> None:
    """Raise a KeyError or TypeError where values are of another type than the annotations say, or are missing."""
    positions = manifest.limits["positions"]
    if type(positions) is not int or positions < 1:
        raise TypeError("limits.positions is no number of tokens")
    texts = [manifest.precision, manifest.dialect, *manifest.components.values()]
    texts += [manifest.components[name] for name in COMPONENTS]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("precision, dialect or components of another type")
    _check_source(manifest.source)
    if manifest.verified is not None:
        _check_verified(manifest.verified)


def _check_source(source: Mapping[str, str]) -> None:
    for name in ("name", "weights_sha256", "exported_with"):
        if not isinstance(source[name], str):
            raise TypeError(f"source.{name} is no text")
    if not isinstance(source.get("revision", ""), str):
        raise TypeError("source.revision is no text")


def _check_verified(verified: Mapping[str, Any]) -> None:
    if not isinstance(verified["passed"], bool) or not isinstance(verified["reference"], str):
        raise TypeError("verified.passed or verified.reference of another type")
    for check in verified["checks"]:
        texts, figures = [check["check"], check["unit"]], [check["worst"], check["bound"]]
        numbers = [figure for figure in figures if figure is not None] + [check["comparisons"]]
        if not all(isinstance(text, str) for text in texts) or not all(_is_number(number) for number in numbers):
            raise TypeError("verified.checks of another type")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_inside(name: str) -> bool:
    """Whether a name leads to a place below the folder, on every system; links there are the owner's own."""
    windows = PureWindowsPath(name)
    return not (".." in windows.parts or windows.anchor or PurePosixPath(name).is_absolute() or "\0" in name)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError as error:
        raise BundleFileMissing(name, folder) from error
    except (ValueError, RecursionError) as error:
        raise BundleFileDamaged(name, folder, f"no JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleFileDamaged(name, folder, "no JSON object")
    return content


def _check_file(folder: Path, name: str, entry: Mapping[str, Any], check_hashes: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleFileMissing(name, folder)
    size = path.stat().st_size
    if size != entry["size"]:
        raise BundleFileDamaged(name, folder, f"{size} bytes, not {entry['size']}")
    if (check_hashes or size < _ALWAYS_HASHED) and sha256(path) != entry["sha256"]:
        raise BundleFileDamaged(name, folder, "its SHA-256 differs")


def sha256(*paths: Path) -> str:
    """SHA-256 of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_bundle(
    target: Path, needed: int, *, replace: bool = False
) -> Iterator[tuple[Path, Callable[[Manifest], None]]]:
    """As :func:`new_folder`, for a bundle.

    Yields the temporary folder and a function that writes its manifest (call it again to amend it).
    """
    with new_folder(target, needed, replace=replace) as folder:
        yield folder, lambda manifest: _write_manifest(folder, manifest)


@contextmanager
def new_folder(target: Path, needed: int, *, replace: bool = False, marker: str = MANIFEST) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``target`` when the block ends without an error.

    Args:
        target: where it goes.
        needed: bytes that will be written; checked against the free space first.
        replace: an existing bundle is replaced, once the new one is whole.
        marker: the file by which such a folder is known.

    Raises:
        TargetExists: the target exists and is not to be replaced, or is no bundle.
        DiskFull: too little room, at the start or on the way.
    """
    target = target.absolute()
    check_target(target, replace, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise DiskFull(
            errno.ENOSPC,
            f"{target.name} needs {needed / 1e6:.0f} MB and {target.parent} has {free / 1e6:.0f} MB free; "
            "free some space or choose another disk",
        )
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        _put_in_place(folder, target, replace, marker)
    except OSError as error:
        if error.errno == errno.ENOSPC and not isinstance(error, DiskFull):
            raise DiskFull(errno.ENOSPC, f"the disk of {target.parent} is full; free {needed / 1e6:.0f} MB") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def amend_manifest(bundle: Bundle, verified: Mapping[str, Any]) -> Bundle:
    """Record new verification figures in an existing bundle, whatever state its files are in; the bundle with them."""
    content = json.loads((bundle.folder / MANIFEST).read_text("utf-8"))
    content["verified"] = dict(verified)
    _replace_text(bundle.folder / MANIFEST, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, verified=dict(verified)))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, CARD):
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    content = {"format": FORMAT, **{name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}}
    _replace_text(folder / MANIFEST, json.dumps(content | {"files": files}, indent=2) + "\n")


def _replace_text(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def check_target(target: Path, replace: bool, marker: str = MANIFEST) -> None:
    """Refuse a target that :func:`new_bundle` would refuse.

    Raises:
        TargetExists: it exists and is not to be replaced, or is no bundle.
    """
    if not target.exists():
        return
    is_bundle = (target / marker).is_file()
    if not replace or not is_bundle:
        raise TargetExists(target, is_bundle)


def _put_in_place(folder: Path, target: Path, replace: bool, marker: str) -> None:
    check_target(target, replace, marker)  # it may have appeared meanwhile
    if not target.exists():
        folder.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent)) / target.name
    try:
        target.rename(old)
        folder.rename(target)
    finally:  # whatever happened in between, Ctrl-C too: there is a bundle at the target
        if not target.exists():
            old.rename(target)
        shutil.rmtree(old.parent, ignore_errors=True)
