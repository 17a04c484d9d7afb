"""The layout of the original repositories: the same models as in the -hf layout, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import TINY
from tests.original import MROPE, make_native, make_original, original_config, write_json
from tokenizers import Tokenizer

from qwen3asr.audio import read_audio
from qwen3asr.errors import CheckpointInvalid, CheckpointKeysWrong, ConfigInvalid
from qwen3asr.features import log_mel
from qwen3asr.prompt import PromptBuilder
from qwen3asr.spec import ModelSpec
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export.checkpoint import Checkpoint
from qwen3asr_export.layout import complete_config, flatten_config, hf_name, is_original
from qwen3asr_export.reference import Reference

Config = dict[str, Any]
Change = Callable[[Config], object]
KINDS = ("asr", "aligner")
ADDED = {"<|endoftext|>": 531, "<|im_end|>": 533, "<timestamp>": 538}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each kind the original and the native folder, with the same values."""
    root = tmp_path_factory.mktemp("layouts")
    return {
        kind: (make_original(root / f"{kind}-original", kind), make_native(root / f"{kind}-hf", kind)) for kind in KINDS
    }


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return make_original(tmp_path / "original", "asr")


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_are_one_model_bit_for_bit(folders: dict[str, tuple[Path, Path]], kind: str) -> None:
    original, native = (Checkpoint(folder) for folder in folders[kind])
    assert (original.layout, native.layout) == ("original", "hf")
    assert original.spec == native.spec
    assert original.repeated == ("thinker.lm_head.weight" if kind == "asr" else None)
    assert original.tensors.names - {"lm_head.weight"} == native.tensors.names
    for name in native.tensors.names:
        one, other = original.tensors[name], native.tensors[name]
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one.view(np.int32), other.view(np.int32), name)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_runs_both_alike(folders: dict[str, tuple[Path, Path]], kind: str, recordings: Any) -> None:
    mel = log_mel(read_audio(recordings["german-short"].path).samples)
    results = []
    for folder in folders[kind]:
        checkpoint = Checkpoint(folder)
        reference = Reference(checkpoint)
        prompts = PromptBuilder(open_tokenizer(TINY / kind, checkpoint.spec))
        embeddings = reference.embeddings(mel)
        prompt = prompts.transcription(embeddings) if kind == "asr" else prompts.alignment(embeddings, ["eins"])[0]
        logits = reference.logits(prompt.ids, mel, np.arange(len(prompt.ids)))
        results.append((embeddings, logits, reference.greedy(prompt.ids, mel, 16) if kind == "asr" else []))
    (embeddings, logits, greedy), (wanted_embeddings, wanted_logits, wanted_greedy) = results
    np.testing.assert_array_equal(embeddings, wanted_embeddings)
    np.testing.assert_array_equal(logits, wanted_logits)
    assert greedy == wanted_greedy
    assert (len(greedy) > 3) == (kind == "asr")


def test_weights_that_transformers_does_not_match_are_an_error(
    folders: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it would warn, and run with random weights."""
    monkeypatch.setattr("qwen3asr_export.reference.renames", lambda kind: {})
    with pytest.raises(CheckpointInvalid, match=r"does not load .*missing_keys.*unexpected_keys"):
        Reference(Checkpoint(folders["aligner"][0]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_gets_small_files_in_the_hf_layout(
    folders: dict[str, tuple[Path, Path]], kind: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(folders[kind][0])
    for name, content in checkpoint.carried().items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert not is_original(config)
    assert ModelSpec.from_config(config) == checkpoint.spec
    built, whole = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path, TINY / kind))
    assert built.get_vocab() == whole.get_vocab()
    assert {i: (t.content, t.special) for i, t in built.get_added_tokens_decoder().items()} == {
        i: (t.content, t.special) for i, t in whole.get_added_tokens_decoder().items()
    }
    text = "<|im_start|>system\n Grüße, it's 12 o'clock\u3000你好<asr_text>one<timestamp>Cafe\u0301\r\n"
    assert built.encode(text).ids == whole.encode(text).ids
    if kind == "aligner":
        assert json.loads((tmp_path / "processor_config.json").read_text("utf-8")) == {"timestamp_segment_time": 80.0}


def test_a_processor_config_keeps_what_else_it_says(folders: dict[str, tuple[Path, Path]]) -> None:
    checkpoint = Checkpoint(folders["aligner"][0])
    write_json(checkpoint.folder / "processor_config.json", {"processor_class": "P", "timestamp_segment_time": 1})
    carried = json.loads(Checkpoint(checkpoint.folder).carried()["processor_config.json"])
    assert carried == {"processor_class": "P", "timestamp_segment_time": 80.0}
    (checkpoint.folder / "processor_config.json").unlink()


def test_the_hf_layout_is_carried_as_it_is() -> None:
    for name, content in Checkpoint(TINY / "asr").carried().items():
        assert content == (TINY / "asr" / name).read_bytes()


def _flat(config: Config, generation: Config | None = None, added: dict[str, int] | None = None) -> ModelSpec:
    return ModelSpec.from_config(
        complete_config(flatten_config(config), generation or {}, ADDED if added is None else added)
    )


def _text(config: Config) -> Any:
    return config["thinker_config"]["text_config"]


AUDIO_KEYS = ("num_mel_bins encoder_layers d_model encoder_attention_heads encoder_ffn_dim downsample_hidden_size "
              "output_dim n_window n_window_infer activation_function")  # fmt: skip
TEXT_KEYS = ("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
             "head_dim hidden_act rms_norm_eps max_position_embeddings rope_theta")  # fmt: skip
NEEDED = [
    *(f"thinker_config.audio_config.{key}" for key in AUDIO_KEYS.split()),
    *(f"thinker_config.text_config.{key}" for key in TEXT_KEYS.split()),
    "thinker_config", "thinker_config.audio_config", "thinker_config.text_config", "thinker_config.audio_token_id",
    "model_type",
]  # fmt: skip


@pytest.mark.parametrize("path", NEEDED)
@pytest.mark.parametrize("null", [False, True])
def test_a_missing_key_is_named_as_the_original_has_it(path: str, null: bool) -> None:
    config = original_config("asr")
    *parents, key = path.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section.pop(key)
    if null:
        section[key] = None
    with pytest.raises(ConfigInvalid, match=rf"config\.json, {path}: it is (not there|None)"):
        _flat(config)


def test_the_aligner_needs_its_classes_and_their_length(tmp_path: Path) -> None:
    config = original_config("aligner")
    assert _flat(config).classes == config["thinker_config"]["classify_num"]
    assert _flat(config).kind == "aligner"
    del config["thinker_config"]["classify_num"]
    with pytest.raises(ConfigInvalid, match=r"thinker_config\.classify_num"):
        _flat(config)
    folder = make_original(tmp_path / "aligner", "aligner")
    config = original_config("aligner")
    del config["timestamp_segment_time"]
    write_json(folder / "config.json", config)
    with pytest.raises(ConfigInvalid, match="timestamp_segment_time"):
        Checkpoint(folder)


@pytest.mark.parametrize("rope", [MROPE, None, {}, {"type": "mrope", "mrope_section": [16, 24, 24]}])
def test_mrope_over_equal_positions_is_the_plain_embedding(rope: Config | None) -> None:
    config = original_config("asr")
    _text(config)["rope_scaling"] = rope
    assert flatten_config(config)["text_config"]["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}
    assert _flat(config) == ModelSpec.from_config(json.loads((TINY / "asr" / "config.json").read_text("utf-8")))


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_another_rotary_embedding_is_refused(kind: str) -> None:
    config = original_config("asr")
    _text(config)["rope_scaling"] = MROPE | {kind: "yarn", "factor": 4.0}
    with pytest.raises(ConfigInvalid, match=r"text_config\.rope_scaling\.rope_type: it is 'yarn'"):
        _flat(config)


def test_another_models_thinker_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="'qwen3_omni_moe', not 'qwen3_asr'"):
        flatten_config(original_config("asr") | {"model_type": "qwen3_omni_moe"})


def test_end_tokens_come_from_the_best_place_there_is() -> None:
    config = original_config("asr")
    assert _flat(config).eos == (531, 533)  # the tokens that the original package names in its code
    _text(config)["eos_token_id"] = 7
    assert _flat(config).eos == (7,)
    config["thinker_config"]["eos_token_id"] = [8, 9]
    assert _flat(config).eos == (8, 9)
    assert _flat(config, {"eos_token_id": [0, 4]}).eos == (0, 4)
    assert _flat(config, {"eos_token_id": 0}).eos == (0,)
    with pytest.raises(ConfigInvalid, match=r"eos_token_id: .* nor in generation_config\.json"):
        _flat(original_config("asr"), {"eos_token_id": []}, {"<timestamp>": 538})


def test_the_timestamp_token_comes_from_the_config_or_the_tokenizer() -> None:
    config = original_config("asr")
    assert _flat(config).timestamp == 538
    config["timestamp_token_id"] = 5
    assert _flat(config).timestamp == 5
    with pytest.raises(ConfigInvalid, match=r"timestamp_token_id: .* the tokenizer has no <timestamp>"):
        _flat(original_config("asr"), added={"<|im_end|>": 533})


def test_only_names_of_the_original_are_renamed() -> None:
    assert hf_name("thinker.lm_head.weight", "asr") == "lm_head.weight"
    assert hf_name("thinker.lm_head.weight", "aligner") == "score.weight"
    assert hf_name("thinker.audio_tower.proj1.bias", "asr") == "model.multi_modal_projector.linear_1.bias"
    for strange in ("model.norm.weight", "talker.thinker.model.norm.weight", "thinker.visual.weight"):
        assert hf_name(strange, "asr") == strange


def _shard(folder: Path, holds: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    return folder / str(index["weight_map"][holds])


def _add(folder: Path, name: str, tensor: torch.Tensor) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text("utf-8"))
    shard = folder / min(index["weight_map"].values())
    save_file(load_file(shard) | {name: tensor}, shard, {"format": "pt"})
    index["weight_map"][name] = shard.name
    write_json(path, index)


def test_two_tensors_of_one_name_are_refused(original: Path) -> None:
    _add(original, "lm_head.weight", torch.zeros(1))
    with pytest.raises(CheckpointKeysWrong, match=r"1 unexpected: (thinker\.)?lm_head\.weight"):
        Checkpoint(original)


def test_an_unknown_tensor_is_named_as_the_file_has_it(original: Path) -> None:
    _add(original, "thinker.visual.weight", torch.zeros(1))
    with pytest.raises(CheckpointKeysWrong, match=r"1 unexpected: thinker\.visual\.weight"):
        Checkpoint(original)


def test_a_head_that_differs_in_one_value_is_no_copy(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3asr_export.files._BLOCK", 1000)  # many blocks
    assert Checkpoint(original).repeated
    shard = _shard(original, "thinker.lm_head.weight")
    tensors = load_file(shard)
    tensors["thinker.lm_head.weight"][-1, -1] += 1
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(CheckpointKeysWrong, match=r"1 unexpected: thinker\.lm_head\.weight"):
        Checkpoint(original)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_missing_part_of_the_tokenizer_is_named(original: Path, name: str) -> None:
    (original / name).unlink()
    with pytest.raises(CheckpointInvalid, match=f"tokenizer.json is not in .* without {name}"):
        Checkpoint(original)


def test_tokenizer_parts_that_do_not_belong_together_are_refused(original: Path) -> None:
    settings = json.loads((original / "tokenizer_config.json").read_text("utf-8"))
    added = settings["added_tokens_decoder"]
    added["900"] = added.pop("538")
    write_json(original / "tokenizer_config.json", settings)
    with pytest.raises(CheckpointInvalid, match=r"<timestamp> has the id 900 .* and 538 beside"):
        Checkpoint(original).carried()
    (original / "merges.txt").write_text("#version: 0.2\nno such\n", "utf-8")
    with pytest.raises(CheckpointInvalid, match=r"no tokenizer can be built from vocab\.json"):
        Checkpoint(original).carried()
    del settings["added_tokens_decoder"]
    write_json(original / "tokenizer_config.json", settings)
    with pytest.raises(CheckpointInvalid, match=r"tokenizer_config\.json in .* lists no added tokens"):
        Checkpoint(original)


def test_a_recogniser_that_does_not_say_so_is_tied_and_its_weights_must_agree(tmp_path: Path) -> None:
    folder = make_original(tmp_path / "original", "asr")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for section in (config["thinker_config"], config["thinker_config"]["text_config"]):
        section.pop("tie_word_embeddings", None)
    write_json(folder / "config.json", config)
    assert Checkpoint(folder).spec.tied
    shard = (
        folder
        / json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))["weight_map"][
            "thinker.lm_head.weight"
        ]
    )
    tensors = load_file(shard)
    tensors["thinker.lm_head.weight"] = tensors["thinker.lm_head.weight"] + 1
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(CheckpointKeysWrong, match="unexpected"):
        Checkpoint(folder)
