"""How much memory this process may still take, and how many KV-cache slots that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qwen3asr.errors import KvMemoryShort, RequestInvalid


def free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take: the machine's, or what its control groups leave, if that is less.

    Caches that the kernel gives up when asked count as free. A group's limit is ``memory.max``, or ``memory.high``
    from which the kernel slows a process down; groups further up limit it too. See Linux's documentation of cgroup-v1
    (memory.rst) and cgroup-v2.

    Args:
        root: where ``proc`` and the mounts lie.

    Returns:
        Bytes, at least 0; ``None`` where there is no ``/proc/meminfo``, as outside of Linux.
    """
    meminfo = _read(root / "proc/meminfo")
    free = None if meminfo is None else available_bytes(meminfo)
    if free is None:
        return None
    return max(0, min([free, *_group_room(root)]))


def choose_slots(
    slot_bytes: int, free: int | None, wanted: int | None = None, *, most: int = 8, share: float = 0.5
) -> int:
    """Rows of the KV cache.

    Args:
        slot_bytes: of one row, every layer's keys and values at full capacity.
        free: what :func:`free_bytes` gave.
        wanted: what the user asked for; may fill all that is free.
        most: default where memory is plenty: more rows make each one's steps slower.
        share: of the free memory that the default may fill. The rest is for the work, and for others.

    Returns:
        ``wanted``; by default as many as fit in that share, between 1 and ``most``, and 1 where ``free`` is unknown.
        One row is always granted: its pages take memory only as they are written.

    Raises:
        RequestInvalid: ``wanted`` is below 1.
        KvMemoryShort: ``wanted`` rows do not fit.
    """
    if wanted is None:
        return 1 if free is None else max(1, min(most, int(free * share) // slot_bytes))
    if wanted < 1:
        raise RequestInvalid(f"slots={wanted} leaves no room for a request; give at least 1")
    if free is not None and wanted > max(1, free // slot_bytes):
        raise KvMemoryShort(wanted, slot_bytes, free)
    return wanted


# --- what the kernel writes ------------------------------------------------------------------------------------


def available_bytes(meminfo: str) -> int | None:
    """``MemAvailable`` of ``/proc/meminfo``; ``None`` if it is not there (before Linux 3.14)."""
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024  # "kB" are kibibytes
    return None


def group_paths(cgroup: str) -> dict[str, PurePosixPath]:
    """Paths of ``/proc/self/cgroup`` that bear on memory, by file system: ``cgroup2``, and ``cgroup`` (v1)."""
    paths = {}
    for line in cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    return paths


def group_mounts(mountinfo: str) -> dict[str, tuple[PurePosixPath, PurePosixPath]]:
    """Mounts of ``/proc/self/mountinfo`` where memory groups lie, by file system: the group mounted, and where."""
    mounts = {}
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            group, place = fields.split()[3:5]
            mounts[kind] = (PurePosixPath(group), PurePosixPath(_unescaped(place)))
    return mounts


def _unescaped(path: str) -> str:
    return path.encode().decode("unicode_escape") if "\\" in path else path


# --- control groups --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """What a version of control groups calls its files, and the line of memory.stat that tells what it can give up."""

    limits: tuple[str, ...]
    used: str
    reclaimable: str


_FILES = {
    "cgroup": _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    "cgroup2": _Files(("memory.max", "memory.high"), "memory.current", "inactive_file"),
}


def _group_room(root: Path) -> Iterator[int]:
    """What is left of each limit on this process: its own group's, and those of the groups above."""
    paths = group_paths(_read(root / "proc/self/cgroup") or "")
    mounts = group_mounts(_read(root / "proc/self/mountinfo") or "")
    for kind in paths.keys() & mounts.keys():
        group, place = mounts[kind]
        inside = paths[kind].parts[len(group.parts) :] if paths[kind].is_relative_to(group) else ()
        if ".." in inside:  # a group outside of what this namespace shows
            inside = ()
        for depth in range(len(inside) + 1):
            yield from _room(root.joinpath(*place.parts[1:], *inside[:depth]), _FILES[kind])


def _room(folder: Path, files: _Files) -> Iterator[int]:
    used = _number(_read(folder / files.used))
    limits = [limit for name in files.limits if (limit := _number(_read(folder / name))) is not None]
    if used is not None and limits:
        yield min(limits) - used + _reclaimable(_read(folder / "memory.stat") or "", files.reclaimable)


def _reclaimable(stat: str, name: str) -> int:
    values = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    return _number(values.get(name)) or 0


def _number(text: str | None) -> int | None:
    """A size in bytes; ``None`` for no file, and for ``max``, no limit (v1: a number past all memory, as good)."""
    return int(text) if text is not None and text.strip().isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:  # not Linux, not that version, or hidden by the container
        return None
