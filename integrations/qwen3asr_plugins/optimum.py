"""Qwen3-ASR as an Optimum model: load a bundle, or export a checkpoint on the way.

    from qwen3asr_plugins.optimum import ORTModelForQwen3ASR
    model = ORTModelForQwen3ASR.from_pretrained("Qwen/Qwen3-ASR-0.6B", export=True, precision="int8")
    model.save_pretrained("out/qwen3-asr-0.6b")
    model.transcribe("call.wav").text

It goes into the pipeline of :mod:`qwen3asr_plugins.transformers` as it is, and its ``generate`` takes what the
processor of transformers makes, in place of the torch model:

    inputs = processor.apply_transcription_request("call.wav")
    ids = model.generate(**inputs)
    processor.decode(ids[:, inputs["input_ids"].shape[1] :], return_format="transcription_only")

Only ``forward`` is not offered: the graphs give the chosen token, never a vocabulary of logits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from qwen3asr import AudioInput, Generation, Recognizer, Transcript
from qwen3asr.errors import ExtraMissing, RequestInvalid
from qwen3asr_plugins.transformers import Qwen3ASRModel

try:
    from optimum.modeling_base import OptimizedModel
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "optimum":
        raise
    raise ExtraMissing("an Optimum model", "optimum", "optimum") from error

__all__ = ["ORTModelForQwen3ASR"]

_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "return_dict_in_generate": False,
}
"""Options of transformers' ``generate`` that say what is done here anyhow; others are refused."""


class ORTModelForQwen3ASR(Qwen3ASRModel, OptimizedModel):  # type: ignore[misc]
    """A recogniser on ONNX Runtime.

    Args:
        recognizer: from :func:`qwen3asr.load`.

    Attributes:
        recognizer: everything that it can do: streams, batches, word times, metrics.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        Qwen3ASRModel.__init__(self, recognizer)
        OptimizedModel.__init__(self, recognizer, self.config)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike[str],
        config: object = None,
        export: bool = False,
        *,
        precision: str = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        check: bool = True,
        **options: Any,
    ) -> Self:
        """Load a bundle, or export a checkpoint and load that.

        Optimum's own ``from_pretrained`` asks the hub about whatever it is given; a bundle is a folder.

        Args:
            model_id: folder of a bundle; with ``export``, a checkpoint: its folder or hub id.
            config: not used; a model brings its own.
            export: export ``model_id`` first, into a temporary folder that is removed when the model is deleted, or
                Python ends. :meth:`save_pretrained` keeps it.
            precision: of the export, as for ``qwen3asr export``; a bundle has its own.
            revision: of the checkpoint on the hub.
            local_files_only: take the checkpoint from the local cache only.
            check: verify the export against transformers' own model.
            options: those of :func:`qwen3asr.load`, such as ``aligner`` and ``slots``.

        Raises:
            ExtraMissing: to export without the extra ``export``.
            RequestInvalid: a precision or revision for a bundle.
            Qwen3AsrError: as :func:`qwen3asr.load` and ``qwen3asr_export.export``.
        """
        if not export:
            if precision != "auto" or revision is not None:
                raise RequestInvalid("precision and revision are chosen at export; give them with export=True")
            return super().from_pretrained(model_id, **options)
        folder = Path(tempfile.mkdtemp(prefix="qwen3asr-"))
        try:
            bundle = _export(model_id, folder / "bundle", precision, revision, local_files_only, check)
            model = super().from_pretrained(bundle, **options)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(model.recognizer, shutil.rmtree, folder, ignore_errors=True)
        return model

    def transcribe(
        self, audio: AudioInput, *, language: str | None = None, prompt: str = "", max_new_tokens: int | None = None
    ) -> Transcript:
        """Speech to text; :attr:`recognizer` and the pipeline do more.

        Args:
            audio: path, bytes, binary file, array, ``(array, rate)`` or a ``datasets`` dict, of any length.
            language: name or ISO code to force; ``None`` detects it.
            prompt: background text or hot words.
            max_new_tokens: budget of a pass.

        Raises:
            Qwen3AsrError: as :meth:`qwen3asr.Recognizer.transcribe`.
        """
        return self.recognizer.transcribe(audio, language=language, context=prompt, max_new_tokens=max_new_tokens)

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered: the graphs give the chosen token, not logits.

        Raises:
            RequestInvalid: always; it names what to call.
        """
        raise RequestInvalid(
            "an exported Qwen3-ASR has no forward(): its graphs give the chosen token, not logits; "
            "call transcribe(audio) or generate(**inputs), or run Qwen3ASRForConditionalGeneration for logits"
        )

    def can_generate(self) -> bool:
        """Yes, greedily."""
        return True

    def generate(
        self,
        *,
        input_ids: Any,
        input_features: Any,
        attention_mask: Any = None,
        input_features_mask: Any = None,
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        """Token ids, as the torch model's ``generate`` gives them for the same inputs.

        The rows are decoded together with other requests. One pass a row, without guards: :meth:`transcribe` and the
        pipeline take audio of any length, and know silence and loops.

        Args:
            input_ids: int64 ``[rows, prompt]``, a torch tensor or an array; padded on the left.
            input_features: float ``[rows, 128, frames]``; padded on the right.
            attention_mask: ``[rows, prompt]``, 0 where ``input_ids`` are padding; none: nothing is.
            input_features_mask: ``[rows, frames]``, likewise.
            max_new_tokens: by default far more than the audio can hold.
            options: those of transformers that ask for greedy decoding.

        Returns:
            int64 ``[rows, prompt + new]``, a tensor where ``input_ids`` is one: the prompt, the text, its end token,
            then padding.

        Raises:
            RequestInvalid: another option, or inputs that do not belong together.
            Qwen3AsrError: as :meth:`qwen3asr.Recognizer.generate`.
        """
        for name, value in options.items():
            if name not in _GREEDY or value != _GREEDY[name]:
                raise RequestInvalid(
                    f"generate() has no {name}={value!r}: it decodes greedily, and takes max_new_tokens only"
                )
        ids, mel = _array(input_ids, np.int64), _array(input_features, np.float32)
        shapes = ids.shape, (len(mel), mel.shape[-1])
        real = [
            np.ones(shape, bool) if mask is None else _array(mask, np.int64).astype(bool)
            for mask, shape in zip((attention_mask, input_features_mask), shapes, strict=True)
        ]
        if ids.ndim != 2 or mel.ndim != 3 or len(ids) != len(mel) or (real[0].shape, real[1].shape) != shapes:
            raise RequestInvalid(
                f"rows, prompt and frames of the inputs differ: input_ids {list(ids.shape)} with a mask of "
                f"{list(real[0].shape)}, input_features {list(mel.shape)} with a mask of {list(real[1].shape)}"
            )
        futures = list[Future[Generation]]()
        try:
            for row, prompt, features, frames in zip(ids, real[0], mel, real[1], strict=True):
                asked = self.recognizer.generate(features[:, frames], row[prompt], max_new_tokens=max_new_tokens)
                futures.append(asked)
            written = [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # those behind one that failed
        texts = [[*each.tokens, *([] if each.end is None else [each.end])] for each in written]
        spec = self.recognizer.bundle.spec
        padding = self.recognizer.bundle.config("generation_config.json").get("pad_token_id", min(spec.eos))
        new = np.full((len(ids), max(map(len, texts), default=0)), padding, np.int64)
        for row, text in zip(new, texts, strict=True):
            row[: len(text)] = text
        whole = np.concatenate([ids, new], axis=1)
        return input_ids.new_tensor(whole) if hasattr(input_ids, "new_tensor") else whole

    def _save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        self.save_pretrained(save_directory)

    def push_to_hub(self, *args: object, **kwargs: object) -> NoReturn:
        """Not offered: Optimum's would put all files into one folder, which is no bundle.

        Raises:
            RequestInvalid: always; it names the command.
        """
        raise RequestInvalid(
            "a bundle is uploaded with its folders; call save_pretrained(FOLDER), then: hf upload REPOSITORY FOLDER"
        )


def _array(value: Any, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Of a tensor of any kind and place."""
    if hasattr(value, "detach"):  # torch; numpy knows no bfloat16
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    return np.ascontiguousarray(value, dtype)


def _export(
    checkpoint: str | os.PathLike[str], target: Path, precision: str, revision: str | None, offline: bool, check: bool
) -> Path:
    try:
        from qwen3asr_export import export  # noqa: PLC0415 (an optional dependency, and slow to import)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("qwen3asr"):
            raise
        raise ExtraMissing("exporting a checkpoint", error.name, "export") from error
    source = os.fspath(checkpoint)
    return export(source, target, precision=precision, revision=revision, offline=offline, check=check).folder
