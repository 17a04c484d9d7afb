"""What each precision costs on the trained tiny models: exact utterances and word boundaries on voices never heard.

python benchmarks/tiny_precisions.py benchmarks/results/tiny_precisions.json      (needs espeak-ng)

Twice: as trained, and with loud channels: one channel in forty of every norm made 30 times louder and the weights
behind it as much smaller. In exact arithmetic that is the same model, and it is what large trained models look like
inside; coarse blocks lose their way on it. Half-precision graphs run as qwen3asr_export.emulation says.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from safetensors.torch import load_file, save_file

from qwen3asr.aligner import Aligner, AlignerLimits
from qwen3asr.bundle import Bundle, open_bundle
from qwen3asr.decoder import Decoder
from qwen3asr.encoder import Encoder
from qwen3asr.engine import Engine
from qwen3asr.prompt import PromptBuilder
from qwen3asr.recognizer import Recognizer
from qwen3asr.sessions.onnxruntime import OrtDecoder, OrtEncoder
from qwen3asr.tokenizer import open_tokenizer
from qwen3asr_export import export
from qwen3asr_export.emulation import checkable
from qwen3asr_export.precision import PRECISIONS

TINY = Path(__file__).resolve().parent.parent / "examples" / "tiny"
sys.path.insert(0, str(TINY))
from scoring import test_set  # noqa: E402
from speech import HELD_OUT, Lexicon, Utterance  # noqa: E402

LOUDER = 30.0


def loud(source: Path, target: Path) -> Path:
    """The same checkpoint with loud channels."""
    shutil.copytree(source, target)
    tensors = {name: tensor.float() for name, tensor in load_file(target / "model.safetensors").items()}
    chance = torch.Generator().manual_seed(0)

    def shift(rows: list[str], columns: list[str]) -> None:
        size = len(tensors[rows[0]])
        picked = torch.randperm(size, generator=chance)[: max(1, size // 40)]
        for name in rows:
            tensors[name][picked] *= LOUDER
        for name in columns:
            tensors[name][:, picked] /= LOUDER

    attention, mlp = [f"self_attn.{part}_proj.weight" for part in "qkv"], ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    behind = {"input_layernorm": attention, "post_attention_layernorm": mlp, "self_attn_layer_norm": attention,
              "final_layer_norm": ["fc1.weight"]}  # fmt: skip
    for name in list(tensors):
        layer, _, norm = name.removesuffix(".weight").rpartition(".")
        if ".layers." in name and norm in behind:
            biases = [f"{layer}.{norm}.bias"] if f"{layer}.{norm}.bias" in tensors else []
            shift([name, *biases], [f"{layer}.{part}" for part in behind[norm]])
        if name.endswith("mlp.up_proj.weight"):
            shift([name], [name.replace("up_proj", "down_proj")])
    save_file(tensors, target / "model.safetensors")
    return target


def parts(bundle: Bundle, capacity: int) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of any precision on the CPU."""
    graphs = {name: bundle.component(name) for name in ("encoder", "decoder")}
    weights, spec = graphs["encoder"].parent, bundle.spec
    decoder = OrtDecoder(checkable(graphs["decoder"]), spec, slots=1, capacity=capacity, weights=weights)
    encoder = OrtEncoder(checkable(graphs["encoder"]), weights)
    return Encoder(encoder, spec.windows), Decoder(decoder, spec.audio_pad, spec.hidden)


def score(checkpoints: Path, precision: str, utterances: list[Utterance]) -> dict[str, float]:
    """Share of exact utterances, mean boundary error in ms, share of boundaries within 80 ms."""
    with tempfile.TemporaryDirectory() as folder:
        asr, aligner = (
            export(checkpoints / kind, Path(folder) / kind, precision=precision, check=False)
            for kind in ("asr", "aligner")
        )
        prompts = PromptBuilder(open_tokenizer(aligner.folder, aligner.spec))
        align = Aligner(*parts(open_bundle(aligner.folder), 2048), prompts, AlignerLimits(aligner.spec.classes, 80.0))
        recogniser = Recognizer(asr, open_tokenizer(asr.folder, asr.spec), Engine(*parts(asr, 1024), asr.spec.eos))
        exact, errors = 0, []
        for utterance in utterances:
            clip = (utterance.samples, 16_000)
            result = recogniser.transcribe(clip, context=utterance.context)
            language = None if utterance.language == "None" else utterance.language
            exact += (result.text, result.language) == (utterance.text, language)
            if utterance.words:
                words = align.align(clip, utterance.text, language=language)
                true = np.array([[word.start, word.end] for word in utterance.words])
                errors.append(np.abs(np.array([[word.start, word.end] for word in words]) - true).ravel())
    flat = np.concatenate(errors)
    return {
        "exact": round(exact / len(utterances), 4),
        "boundary_mean_ms": round(float(flat.mean() * 1000), 1),
        "boundary_within_80_ms": round(float((flat <= 0.08).mean()), 4),
    }


def main() -> None:
    """Score every precision on both, and write the table."""
    utterances = test_set(Lexicon(HELD_OUT, 2, seed=11), 21, 600, 1, 9)
    report: dict[str, Any] = {"command": "python benchmarks/tiny_precisions.py OUT.json", "machine": machine()}
    report |= {"utterances": len(utterances), "louder": LOUDER, "as_trained": {}, "loud_channels": {}}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("asr", "aligner"):
            loud(TINY / kind, Path(folder) / kind)
        for name, checkpoints in (("as_trained", TINY), ("loud_channels", Path(folder))):
            for precision in PRECISIONS:
                report[name][precision] = score(checkpoints, precision, utterances)
                print(name, precision, report[name][precision], file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
