"""A model repository for Triton's Python backend: bundle, configuration, and the code between them.

    tritonserver --model-repository OUT

serves it where ``qwen3asr`` is installed beside Triton (``pip install 'qwen3asr[cpu]'`` in its image, whose Python must
be 3.11 or later). Checked here: the configuration with Triton's own schema, and the code over a stand-in for
``triton_python_backend_utils``. It was not run on Triton.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from qwen3asr.bundle import Bundle, new_folder, open_bundle
from qwen3asr.errors import DeviceUnavailable, RequestInvalid
from qwen3asr.precisions import PRECISIONS

_INPUTS = {  # type and dimensions of each; all optional, since there are two ways to give audio
    "audio": ("TYPE_UINT8", -1),
    "samples": ("TYPE_FP32", -1),
    "sample_rate": ("TYPE_INT32", 1),
    "language": ("TYPE_STRING", 1),
    "context": ("TYPE_STRING", 1),
    "timestamps": ("TYPE_STRING", 1),
}
_OUTPUTS = {
    "text": ("TYPE_STRING", 1),
    "language": ("TYPE_STRING", 1),
    "finish_reason": ("TYPE_STRING", 1),
    "words": ("TYPE_STRING", 1),
    "partial": ("TYPE_BOOL", 1),
}


def write_repository(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    aligner: str | os.PathLike[str] | None = None,
    name: str = "qwen3_asr",
    instances: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    gpus: Sequence[int] = (0,),
    slots: int | None = None,
    threads: int = 0,
    streaming: bool = True,
) -> Path:
    """Write a model into a Triton model repository; it appears whole or not at all.

    Inputs of a request: ``audio`` (uint8 ``[n]``, the bytes of a file), or ``samples`` (float32 ``[n]``) with
    ``sample_rate`` (int32, Hz); if wanted ``language``, ``context`` and ``timestamps`` (``"word"``), strings.
    Outputs: ``text``, ``language``, ``finish_reason`` and ``words`` (JSON: text, start and end in seconds, confidence),
    strings, and ``partial`` (bool).

    Args:
        bundle: folder of the recogniser. Its files are linked where the file system allows, else copied.
        out: the repository, which may hold other models.
        aligner: folder of the aligner, for word times.
        name: of the model.
        instances: processes, each with a model of its own (on each GPU); one serves many requests at a time.
        device: where it runs.
        gpus: numbers of the GPUs, for ``"cuda"``.
        slots: requests that an instance decodes at a time; by default as for :func:`qwen3asr.load`.
        threads: of one operator; 0: one a core.
        streaming: a decoupled model: long audio is answered piece by piece, each time with all text so far, until
            ``partial`` is false; clients then need gRPC streaming, or HTTP's ``generate_stream``. Without, each
            request has one answer.

    Returns:
        The model's folder, ``out/name``.

    Raises:
        BundleInvalid: one of the folders is no bundle of its kind; and what else :func:`qwen3asr.load` may say of one.
        DeviceUnavailable: the device does not run the bundle's precision.
        RequestInvalid: a setting makes no sense.
        TargetExists: the repository has a model of that name.
        DiskFull: there is no room for it.
    """
    _check(name, instances, device, gpus, slots, threads)
    opened = {"bundle": open_bundle(Path(bundle), kind="asr")}
    if aligner is not None:
        opened["aligner"] = open_bundle(Path(aligner), kind="aligner")
    for one in opened.values():
        _check_precision(one, device)
    target = Path(out) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    room = target.parent.stat().st_dev
    needed = sum(one.bytes for one in opened.values() if one.folder.stat().st_dev != room)
    with new_folder(target, needed) as folder:
        config = _config(name, instances, gpus if device == "cuda" else None, slots, threads, streaming)
        (folder / "config.pbtxt").write_text(config, "utf-8")
        version = folder / "1"
        version.mkdir()
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), version / "model.py")
        for place, one in opened.items():
            shutil.copytree(one.folder, version / place, copy_function=_link)
    return target


def _check(
    name: str, instances: int, device: str, gpus: Sequence[int], slots: int | None, threads: int
) -> None:  # fmt: skip
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise RequestInvalid(f"name={name!r} cannot be a model's; give letters, digits, dots, dashes and underscores")
    if device not in ("cpu", "cuda"):
        raise RequestInvalid(f"device={device!r} is not known; give 'cpu' or 'cuda'")
    if not gpus or min(gpus) < 0:
        raise RequestInvalid(f"gpus={tuple(gpus)!r} names no GPU; give their numbers from 0")
    if instances < 1 or threads < 0 or (slots is not None and slots < 1):
        raise RequestInvalid(
            f"instances={instances}, slots={slots}, threads={threads}: give at least 1 instance, 1 slot and 0 threads"
        )


def _check_precision(bundle: Bundle, device: str) -> None:
    precision = bundle.manifest.precision
    if precision in PRECISIONS and device not in PRECISIONS[precision].devices:
        runs_on = " and ".join(PRECISIONS[precision].devices)
        raise DeviceUnavailable(
            f"{bundle.folder} has the precision {precision}, which runs on {runs_on}, not on {device}; "
            "export the checkpoint in another precision, or give another device="
        )


def _link(source: str, target: str) -> None:
    """A bundle's files do not change, so a second name is as good as a copy."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _config(
    name: str, instances: int, gpus: Sequence[int] | None, slots: int | None, threads: int, streaming: bool
) -> str:  # fmt: skip
    """The text of ``config.pbtxt``; see Triton's ``model_config.proto``."""
    where = "kind: KIND_CPU" if gpus is None else f"kind: KIND_GPU, gpus: [ {', '.join(map(str, gpus))} ]"
    parameters = {"threads": threads} | ({} if slots is None else {"slots": slots})
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        "max_batch_size: 0  # the engine puts requests together itself, and lets them join and leave",
        f"model_transaction_policy {{ decoupled: {str(streaming).lower()} }}",
        f"instance_group [ {{ count: {instances}, {where} }} ]",
    ]
    for kind, tensors, more in (("input", _INPUTS, ", optional: true"), ("output", _OUTPUTS, "")):
        for tensor, (dtype, size) in tensors.items():
            lines.append(f'{kind} [ {{ name: "{tensor}", data_type: {dtype}, dims: [ {size} ]{more} }} ]')
    for key, value in parameters.items():
        lines.append(f'parameters {{ key: "{key}", value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"
