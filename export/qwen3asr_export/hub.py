"""Finding a checkpoint: a folder here, or a repository on the Hugging Face hub, fetched into that library's cache."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of httpx, or of its successor
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from qwen3asr.errors import (
    CheckpointForbidden,
    CheckpointInvalid,
    CheckpointNotFound,
    DiskFull,
    HubUnreachable,
    Qwen3AsrError,
    RequestInvalid,
)
from qwen3asr.spec import ModelSpec
from qwen3asr_export.files import read_json
from qwen3asr_export.layout import flatten_config, is_original

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SUFFIXES = (".safetensors", ".json", ".txt", ".jinja")
_TIMEOUT = 30.0  # seconds until the hub has to answer
_SLACK = 64 << 20  # what the disk must keep free
_AGAIN = "run the same again: files that arrived whole are kept"
_CAUSES: tuple[tuple[type[Exception], type[Qwen3AsrError], str], ...] = (  # the first that fits: they overlap
    (GatedRepoError, CheckpointForbidden,
     "{0} is given out after consent to its terms only; consent on its page, and set HF_TOKEN to a token of yours"),
    (RepositoryNotFoundError, CheckpointNotFound,
     "there is neither a folder {0} here nor such a repository on the hub; check the name, or set HF_TOKEN to a token "
     "that may read it"),
    (HFValidationError, CheckpointInvalid, "{0} is neither a folder here nor the name of a repository; check it"),
    (RevisionNotFoundError, CheckpointNotFound, "{0} has no revision {1!r}; leave the revision out for the newest"),
    (RemoteEntryNotFoundError, CheckpointInvalid, "{0} has no config.json, so it is no checkpoint; check the name"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint on this machine.

    Attributes:
        folder: where it is.
        name: the hub's id, or the folder's name.
        revision: the hub's commit; ``None`` for a folder.
    """

    folder: Path
    name: str
    revision: str | None


def find_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
) -> Found:
    """Find a checkpoint, downloading it where it is on the hub and not here yet.

    Progress bars appear on a terminal only. ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` count as everywhere.

    Args:
        source: a folder, or a hub id such as ``Qwen/Qwen3-ASR-0.6B``. What exists here counts as a folder.
        revision: branch, tag or commit on the hub.
        offline: take only what was downloaded before.
        cache_dir: the library's cache, where it is not the usual one.
        endpoint: the hub's address, likewise.

    Raises:
        RequestInvalid: a revision of a folder.
        CheckpointInvalid: neither a folder nor a hub id, or another kind of model (before its weights are fetched).
        ConfigInvalid: the model's config.json asks for what Qwen3-ASR does not have, likewise.
        CheckpointNotFound: no such repository or revision, or, offline, none whole in the cache.
        CheckpointForbidden: the repository needs a token, or consent to its terms.
        DiskFull: too little room, at the start or on the way.
        HubUnreachable: no answer, or the connection broke.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise RequestInvalid(f"{folder} is a folder and has no revision {revision!r}; leave the revision out")
        return Found(folder, folder.resolve().name, None)
    name = source if isinstance(source, str) else source.as_posix()
    if folder.exists() or not _ID.fullmatch(name):
        raise CheckpointInvalid(
            f"there is no checkpoint folder at {name}; give a folder, or a hub id such as Qwen/Qwen3-ASR-0.6B"
        )
    offline = offline or constants.HF_HUB_OFFLINE
    repository = _Repository(name, revision, offline, cache_dir or Path(constants.HF_HUB_CACHE), endpoint)
    with repository.own_errors():
        return repository.cached() if offline else repository.fetched()


def find_config(
    source: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
) -> dict[str, Any]:
    """Only the config.json of a checkpoint, whose weights are left where they are.

    Arguments and errors are those of :func:`find_checkpoint`.
    """
    if Path(source).expanduser().is_dir():
        return read_json(find_checkpoint(source, revision=revision).folder, "config.json")
    if not _ID.fullmatch(str(source)):
        raise CheckpointInvalid(f"there is no checkpoint folder at {source}; give a folder, or a hub id")
    offline = offline or constants.HF_HUB_OFFLINE
    repository = _Repository(str(source), revision, offline, cache_dir or Path(constants.HF_HUB_CACHE), endpoint)
    with repository.own_errors():
        return read_json(repository.config_folder(), "config.json")


@dataclass(frozen=True, slots=True)
class _Repository:
    name: str
    revision: str | None
    offline: bool
    cache_dir: Path
    endpoint: str | None

    @property
    def _where(self) -> dict[str, Any]:
        return {"revision": self.revision, "cache_dir": self.cache_dir, "endpoint": self.endpoint}

    def cached(self) -> Found:
        """The snapshot in the cache."""
        folder = self._snapshot()
        if not any(folder.glob("*.safetensors")):  # only its configuration was looked at
            raise LocalEntryNotFoundError(f"no weights in {folder}")
        self._check_model(folder)
        return Found(folder, self.name, folder.name)

    def fetched(self) -> Found:
        """The snapshot, downloaded as far as it is not in the cache, once its configuration is known to be good."""
        hub = HfApi(endpoint=self.endpoint)
        info = hub.model_info(self.name, revision=self.revision, timeout=_TIMEOUT, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        sizes = {name: size for name, size in files.items() if name.endswith(_SUFFIXES) and "/" not in name}
        self.config_folder()
        if not any(name.endswith(".safetensors") for name in sizes):
            raise CheckpointInvalid(f"{self.name} has no safetensors weights, and only those are read")
        self._check_room(sizes, info.sha)
        folder = self._snapshot()
        missing = [name for name in sizes if not (folder / name).is_file()]
        if missing:  # the library took what was in the cache when the connection broke
            raise HubUnreachable(f"{self.name} came without {', '.join(missing)}; {_AGAIN}")
        return Found(folder, self.name, folder.name)

    def config_folder(self) -> Path:
        """Where config.json is, fetched by itself and known to be a Qwen3-ASR model's."""
        options: dict[str, Any] = {"local_files_only": self.offline, "tqdm_class": _TerminalBar}
        folder = Path(hf_hub_download(self.name, "config.json", **options, **self._where)).parent
        self._check_model(folder)
        return folder

    def _snapshot(self) -> Path:
        options: dict[str, Any] = {"local_files_only": self.offline, "tqdm_class": _TerminalBar}
        options |= {"allow_patterns": [f"*{suffix}" for suffix in _SUFFIXES], "ignore_patterns": ["*/*"]}
        return Path(snapshot_download(self.name, **options, **self._where))

    def _check_model(self, folder: Path) -> None:
        config = read_json(folder, "config.json")
        if config.get("model_type") != "qwen3_asr":
            raise CheckpointInvalid(
                f"{self.name} is a model of type {config.get('model_type')!r}, not Qwen3-ASR or its forced aligner; "
                "give one of those, such as Qwen/Qwen3-ASR-0.6B"
            )
        if is_original(config):
            flatten_config(config)
        else:
            ModelSpec.from_config(config)

    def _check_room(self, sizes: dict[str, int], commit: str | None) -> None:
        here = {n for n in sizes if isinstance(try_to_load_from_cache(self.name, n, self.cache_dir, commit), str)}
        needed = sum(size for name, size in sizes.items() if name not in here)
        place = next(path for path in (self.cache_dir, *self.cache_dir.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(place).free
        if needed and free < needed + _SLACK:
            raise DiskFull(
                errno.ENOSPC,
                f"{self.name} needs {needed / 1e6:.0f} MB more and the cache at {self.cache_dir} has {free / 1e6:.0f} "
                "MB free; free some space, or set HF_HOME to a folder on another disk",
            )

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except Qwen3AsrError:
            raise
        except (HTTPError, OSError, HFValidationError, RuntimeError) as error:  # RuntimeError is what hf_xet raises
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOSPC):
                raise  # of this machine's files, and clear enough
            raise self._own(error) from error

    def _own(self, error: Exception) -> Qwen3AsrError:
        """Our error for one of the library's."""
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return DiskFull(errno.ENOSPC, f"the disk of {self.cache_dir} is full; free some space, then {_AGAIN}")
        for theirs, ours, message in _CAUSES:
            if isinstance(error, theirs):
                return ours(message.format(self.name, self.revision))
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            return CheckpointForbidden(
                f"the hub refuses {self.name} ({reason}); set HF_TOKEN to a token that may read it"
            )
        if isinstance(error, LocalEntryNotFoundError) and self.offline:
            return CheckpointNotFound(
                f"{self.name} is not, or not whole, in the cache at {self.cache_dir}; run once with a connection, and "
                "without offline or HF_HUB_OFFLINE"
            )
        return HubUnreachable(f"{self.name} could not be fetched ({reason}); {_AGAIN}")


class _TerminalBar(tqdm):
    """The library's progress bar, which by itself would show in log files too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"disable": None} | kwargs)  # type: ignore[no-untyped-call]
