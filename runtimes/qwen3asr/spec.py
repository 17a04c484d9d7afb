"""What config.json says of a model's shape: the one place that reads it, for export and runtime alike.

Class defaults of the public code bases are wrong for the released models, so nothing that shapes a tensor is
defaulted here: a key that is not there is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from qwen3asr.errors import ConfigInvalid
from qwen3asr.features import MEL_BINS, WindowSpec, conv_length

Kind: TypeAlias = Literal["asr", "aligner"]
T = TypeVar("T", int, float)


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Audio encoder: ``width`` is the transformer's, ``conv_channels`` the convolutions'."""

    layers: int
    width: int
    heads: int
    ffn: int
    conv_channels: int

    @property
    def conv_bands(self) -> int:
        """Frequency bands left after the convolutions (16 of 128)."""
        return conv_length(MEL_BINS)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes and special ids of a recogniser or an aligner.

    Attributes:
        kind: ``asr`` or ``aligner``.
        hidden: decoder width, also that of an audio embedding row.
        classes: rows of the output head: the vocabulary, or the aligner's time classes.
        tied: the head is the embedding matrix.
    """

    kind: Kind
    encoder: EncoderSpec
    windows: WindowSpec
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    classes: int
    tied: bool
    rope_theta: float
    norm_eps: float
    max_positions: int
    audio_pad: int
    timestamp: int
    eos: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelSpec:
        """Read a flattened (``-hf`` layout) config.json.

        Raises:
            ConfigInvalid: a key is missing, or asks for something that Qwen3-ASR does not have.
        """
        _expect(config, "model_type", "qwen3_asr")
        audio, text = _Section(config, "audio_config"), _Section(config, "text_config")
        _expect(audio.values, "activation_function", "gelu")
        _expect(text.values, "hidden_act", "silu")
        kind: Kind = "aligner" if _is_aligner(config) else "asr"
        rope = text.values.get("rope_parameters") or text.values
        if not isinstance(rope, Mapping):
            raise ConfigInvalid("text_config.rope_parameters", "it is no object")
        if rope.get("rope_type", "default") != "default":
            raise ConfigInvalid("text_config.rope_parameters.rope_type", "only the default rotary embedding is known")
        eos = config.get("eos_token_id")
        if eos is None:
            raise ConfigInvalid("eos_token_id")
        ends = eos if isinstance(eos, list | tuple) else [eos]
        windows = WindowSpec(2 * audio.integer("n_window"), audio.integer("n_window_infer"))
        if windows.window_frames % windows.chunk_frames:
            raise ConfigInvalid("audio_config.n_window_infer", "it must be a multiple of 2 * n_window")
        if audio.integer("output_dim") != text.integer("hidden_size"):
            raise ConfigInvalid("audio_config.output_dim", "it must equal text_config.hidden_size")
        if audio.integer("num_mel_bins") != MEL_BINS:
            raise ConfigInvalid("audio_config.num_mel_bins", f"only {MEL_BINS} are known")
        vocab = text.integer("vocab_size")
        return cls(
            kind=kind,
            encoder=EncoderSpec(
                layers=audio.integer("encoder_layers"),
                width=audio.integer("d_model"),
                heads=audio.integer("encoder_attention_heads"),
                ffn=audio.integer("encoder_ffn_dim"),
                conv_channels=audio.integer("downsample_hidden_size"),
            ),
            windows=windows,
            hidden=text.integer("hidden_size"),
            layers=text.integer("num_hidden_layers"),
            heads=text.integer("num_attention_heads"),
            kv_heads=text.integer("num_key_value_heads"),
            head_dim=text.integer("head_dim"),
            ffn=text.integer("intermediate_size"),
            vocab=vocab,
            classes=_label_count(config) if kind == "aligner" else vocab,
            tied=kind == "asr" and bool(config.get("tie_word_embeddings", True)),
            rope_theta=_positive(float, rope, "text_config.rope_parameters.rope_theta", "rope_theta"),
            norm_eps=_positive(float, text.values, "text_config.rms_norm_eps", "rms_norm_eps"),
            max_positions=text.integer("max_position_embeddings"),
            audio_pad=_number(int, _need(config, "audio_token_id"), "audio_token_id"),
            timestamp=_number(int, _need(config, "timestamp_token_id"), "timestamp_token_id"),
            eos=tuple(_number(int, token, "eos_token_id") for token in ends),
        )


def _is_aligner(config: Mapping[str, Any]) -> bool:
    names = _need(config, "architectures")
    if not isinstance(names, list | tuple):
        raise ConfigInvalid("architectures", "it is no list")
    return any("TokenClassification" in str(name) for name in names)


def _label_count(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, Mapping) and labels else _positive(int, config, "num_labels")


class _Section:
    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        values = config.get(name)
        if not isinstance(values, Mapping):
            raise ConfigInvalid(name)
        self.name, self.values = name, values

    def integer(self, key: str) -> int:
        return _positive(int, self.values, f"{self.name}.{key}", key)


def _positive(kind: type[T], values: Mapping[str, Any], label: str, key: str | None = None) -> T:
    number = _number(kind, _need(values, label, key), label)
    if not 0 < number < math.inf:
        raise ConfigInvalid(label, f"it is {number}, and must be above 0")
    return number


def _number(kind: type[T], value: Any, label: str) -> T:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigInvalid(label, f"it is {value!r}, no number") from error


def _need(values: Mapping[str, Any], label: str, key: str | None = None) -> Any:
    value = values.get(key or label)
    if value is None:
        raise ConfigInvalid(label)
    return value


def _expect(values: Mapping[str, Any], key: str, wanted: str) -> None:
    found = values.get(key)
    if found != wanted:
        raise ConfigInvalid(key, f"it is {found!r}, not {wanted!r}")
