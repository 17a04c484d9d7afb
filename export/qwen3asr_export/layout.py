"""The layout of the original repositories, read as transformers' ``-hf`` layout: configuration, names, tokenizer.

The original nests everything under ``thinker_config``, calls tensors otherwise, and may ship the tokenizer as
``vocab.json`` and ``merges.txt``. Keys come from QwenLM's configuration classes and transformers' converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3asr.errors import CheckpointInvalid, ConfigInvalid
from qwen3asr.features import conv_length
from qwen3asr.spec import Kind
from qwen3asr_export.files import read_json

TOKENIZER_PARTS = ("vocab.json", "merges.txt", "tokenizer_config.json")
"""What tokenizer.json can be built from."""

_AUDIO_KEYS = ("num_mel_bins", "encoder_layers", "d_model", "encoder_attention_heads", "encoder_ffn_dim",
               "downsample_hidden_size", "output_dim", "n_window", "n_window_infer", "activation_function")  # fmt: skip
_TEXT_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
_END_TOKENS = ("<|endoftext|>", "<|im_end|>")  # the original package names them in its code
_ARCHITECTURES: dict[Kind, str] = {
    "asr": "Qwen3ASRForConditionalGeneration",
    "aligner": "Qwen3ASRForTokenClassification",
}


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json has the original layout."""
    return "thinker_config" in config


def flatten_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What an original config.json says, as the ``-hf`` layout says it.

    The special ids that the original may keep elsewhere are left out where they are not there:
    :func:`complete_config` adds them.

    Raises:
        ConfigInvalid: a key is missing (named as the original has it), or the rotary embedding is not the plain one.
    """
    top = _Section(config)
    if top.get("model_type") != "qwen3_asr":
        raise ConfigInvalid("model_type", f"it is {top.get('model_type')!r}, not 'qwen3_asr'")
    thinker = top.section("thinker_config")
    audio, text = thinker.section("audio_config"), thinker.section("text_config")
    aligner = "forced_aligner" in str(thinker.get("model_type")) or thinker.get("classify_num") is not None
    tied = not aligner and _tied(thinker, text)
    flat = {
        "model_type": "qwen3_asr",
        "architectures": [_ARCHITECTURES["aligner" if aligner else "asr"]],
        "audio_config": _audio_config(audio),
        "text_config": _text_config(text, tied),
        "tie_word_embeddings": tied,
        "audio_token_id": thinker.need("audio_token_id"),
    }
    if aligner:
        flat["num_labels"] = thinker.need("classify_num")
    outside = {
        "timestamp_token_id": top.either(thinker, "timestamp_token_id"),
        "eos_token_id": thinker.either(text, "eos_token_id"),
        "pad_token_id": thinker.either(text, "pad_token_id"),
    }
    return flat | {key: value for key, value in outside.items() if value is not None}


def complete_config(
    flat: Mapping[str, Any], generation: Mapping[str, Any], added_tokens: Mapping[str, int]
) -> dict[str, Any]:
    """Add the special ids to a flattened config.

    Args:
        flat: of :func:`flatten_config`.
        generation: generation_config.json, whose end tokens count before those of config.json.
        added_tokens: the tokenizer's added tokens and their ids.

    Raises:
        ConfigInvalid: the end tokens or ``<timestamp>`` are nowhere.
    """
    config = dict(flat)
    named = [added_tokens[text] for text in _END_TOKENS if text in added_tokens]
    given = (generation.get("eos_token_id"), config.get("eos_token_id"), named)
    end = next((ids for ids in given if ids is not None and ids != []), None)
    if end is None:
        raise ConfigInvalid(
            "thinker_config.eos_token_id",
            f"it is not there, nor in generation_config.json, and the tokenizer lacks {' and '.join(_END_TOKENS)}",
        )
    config["eos_token_id"] = end
    config.setdefault("pad_token_id", end[0] if isinstance(end, list) else end)
    config.setdefault("timestamp_token_id", added_tokens.get("<timestamp>"))
    if config["timestamp_token_id"] is None:
        raise ConfigInvalid("timestamp_token_id", "it is not there, and the tokenizer has no <timestamp>")
    return config


def segment_milliseconds(config: Mapping[str, Any]) -> float:
    """Length of an aligner's time class; the ``-hf`` layout has it in processor_config.json.

    Raises:
        ConfigInvalid: it is not there.
    """
    top = _Section(config)
    value = top.either(top.section("thinker_config"), "timestamp_segment_time")
    if value is None:
        raise ConfigInvalid("timestamp_segment_time")
    return float(value)


def renames(kind: Kind) -> dict[str, str]:
    """How tensor names begin in the original layout, and how in ``-hf``; the first that fits counts."""
    return {
        "thinker.model.": "model.language_model.",
        "thinker.lm_head.": "score." if kind == "aligner" else "lm_head.",
        "thinker.audio_tower.proj1.": "model.multi_modal_projector.linear_1.",
        "thinker.audio_tower.proj2.": "model.multi_modal_projector.linear_2.",
        "thinker.audio_tower.": "model.audio_tower.",
    }


def hf_name(original: str, kind: Kind) -> str:
    """The ``-hf`` name of a tensor; one that the original layout does not have stays as it is."""
    for old, new in renames(kind).items():
        if original.startswith(old):
            return new + original.removeprefix(old)
    return original


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder without tokenizer.json or what it can be built from.

    Raises:
        CheckpointInvalid: naming the files that are missing.
    """
    missing = [name for name in TOKENIZER_PARTS if not (folder / name).is_file()]
    if missing and not (folder / "tokenizer.json").is_file():
        raise CheckpointInvalid(
            f"tokenizer.json is not in {folder}, and cannot be built without {', '.join(missing)}; "
            "download the checkpoint again, whole"
        )


def added_tokens(folder: Path) -> dict[str, int]:
    """The tokenizer's added tokens and their ids, without building it.

    Raises:
        CheckpointInvalid: the file that lists them is damaged.
    """
    name = "tokenizer.json" if (folder / "tokenizer.json").is_file() else "tokenizer_config.json"
    content = read_json(folder, name)
    try:
        if name == "tokenizer.json":
            return {token["content"]: int(token["id"]) for token in content["added_tokens"]}
        return {token["content"]: int(index) for index, token in content["added_tokens_decoder"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointInvalid(f"{name} in {folder} lists no added tokens ({error!r}); download it again") from error


def build_tokenizer(folder: Path) -> bytes:
    """tokenizer.json from vocabulary, merges and tokenizer_config.json, as transformers builds it.

    Raises:
        CheckpointInvalid: a file is damaged, or added tokens would get other ids than tokenizer_config.json says.
    """
    from transformers import Qwen2Tokenizer  # noqa: PLC0415 (slow to import, and most checkpoints need none of it)

    wanted = added_tokens(folder)
    try:
        built = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointInvalid(
            f"no tokenizer can be built from {', '.join(TOKENIZER_PARTS)} in {folder} ({error}); download them again"
        ) from error
    moved = [text for text, index in wanted.items() if built.token_to_id(text) != index]
    if moved:
        raise CheckpointInvalid(
            f"{moved[0]} has the id {wanted[moved[0]]} in tokenizer_config.json and {built.token_to_id(moved[0])} "
            f"beside the vocab.json in {folder}: they belong to different models; download the checkpoint again, whole"
        )
    return str(built.to_str()).encode()


def _audio_config(audio: _Section) -> dict[str, Any]:
    config = {"model_type": "qwen3_asr_encoder"} | {key: audio.need(key) for key in _AUDIO_KEYS}
    # the original says 1500, Whisper's value: a chunk has 13 positions
    return config | {"max_position_embeddings": conv_length(2 * int(config["n_window"]))}


def _text_config(text: _Section, tied: bool) -> dict[str, Any]:
    config = {"model_type": "qwen3"} | {key: text.need(key) for key in _TEXT_KEYS}
    return config | {"rope_parameters": _rope(text), "tie_word_embeddings": tied}


def _rope(text: _Section) -> dict[str, Any]:
    """Interleaved MRoPE turns by three positions that are always equal here: exactly the plain embedding."""
    settings = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kinds = {settings.get("type"), settings.get("rope_type")} - {None, "default", "mrope"}
    if kinds:
        raise ConfigInvalid(
            f"{text.path}rope_scaling.rope_type",
            f"it is {kinds.pop()!r}, and only the default rotary embedding is known",
        )
    theta = settings.get("rope_theta")
    return {"rope_type": "default", "rope_theta": text.need("rope_theta") if theta is None else theta}


def _tied(thinker: _Section, text: _Section) -> bool:
    """As the released recognisers are where nothing is said: a head of its own would then be an unexpected tensor."""
    value = text.either(thinker, "tie_word_embeddings")
    return True if value is None else bool(value)


class _Section:
    """A mapping in config.json that knows where it is; null is as good as missing."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self.path = values, path

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise ConfigInvalid(self.path + key)
        return value

    def section(self, key: str) -> _Section:
        if not isinstance(value := self.get(key), Mapping):
            raise ConfigInvalid(self.path + key)
        return _Section(value, f"{self.path}{key}.")

    def either(self, other: _Section, key: str) -> Any:
        """The value here, or there where it is not here."""
        value = self.get(key)
        return other.get(key) if value is None else value
