"""Train the tiny Qwen3-ASR recogniser and forced aligner that the demo and the tests run on.

    python examples/tiny/train.py --work build/tiny            # about two hours on two CPU cores

Both are transformers' native classes at about one million parameters, trained on espeak-ng speech
(speech.py). An auxiliary loss names the word under each encoder token, from the known boundaries: with it
the encoder learns in hundreds of steps what the transcript alone teaches in thousands. The run saves
itself as it goes and continues where it stopped. It ends by writing ``asr/`` and ``aligner/`` beside
this file (fp16 safetensors, ``-hf`` layout) and ``scores.json`` with the scores on held-out voices.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRForTokenClassification,
)

from qwen3asr.features import WindowSpec, log_mel
from scoring import score
from speech import HELD_OUT, LABELS, TRAINED, WORDS, Lexicon, Utterance, compose
from tokens import build, save

HERE = Path(__file__).resolve().parent
SPEC = WindowSpec()
CLASS_SECONDS = 0.08
CLASSES = 400
HEADER = 3
"""Tokens of "language German<asr_text>"; behind them every word is one token."""
POOLS = ((1, 3, 6_000), (1, 9, 14_000), (8, 22, 2_500))
"""Utterances made once: (fewest words, most words, how many). About one in twenty has no speech."""


def config(tokenizer: Tokenizer, aligner: bool) -> Qwen3ASRConfig:
    """The architecture of the real models at about a thousandth of their size."""
    ids = tokenizer.token_to_id
    return Qwen3ASRConfig(
        audio_config={
            "model_type": "qwen3_asr_encoder", "d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 4,
            "encoder_ffn_dim": 512, "downsample_hidden_size": 32, "output_dim": 128,
        },
        text_config={
            "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 4 if aligner else 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 65536, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": not aligner, "pad_token_id": ids("<|endoftext|>"),
            "eos_token_id": ids("<|im_end|>"), "bos_token_id": None,
        },
        audio_token_id=ids("<|audio_pad|>"), timestamp_token_id=ids("<timestamp>"), pad_token_id=ids("<|endoftext|>"),
        eos_token_id=[ids("<|endoftext|>"), ids("<|im_end|>")], tie_word_embeddings=not aligner,
        **({"num_labels": CLASSES} if aligner else {}),
    )  # fmt: skip


@dataclass(slots=True)
class Example:
    """One precomputed training row."""

    mel: np.ndarray  # float16 [128, frames]
    frame_labels: np.ndarray  # int64 [audio tokens], word under each
    ordinals: np.ndarray  # int64 [audio tokens], which word of the utterance that is, from 1; 0: none
    prompt: list[int]
    target: list[int]
    align_ids: list[int]
    align_times: list[float]


def example(utterance: Utterance, tokenizer: Tokenizer) -> Example:
    """Features, frame labels, and both models' token sequences of an utterance."""
    mel = log_mel(utterance.samples).astype(np.float16)
    count = SPEC.tokens(mel.shape[1])
    labels, ordinals = np.zeros(count, np.int64), np.zeros(count, np.int64)
    times = token_times(count) + 0.02
    for number, word in enumerate(utterance.words, start=1):
        under = (times >= word.start) & (times < word.end)
        labels[under], ordinals[under] = LABELS.index(word.text), number
    pads = "<|audio_pad|>" * count
    head = f"<|im_start|>system\n{utterance.context}<|im_end|>\n<|im_start|>user\n<|audio_start|>"
    prompt = f"{head}{pads}<|audio_end|><|im_end|>\n<|im_start|>assistant\n"
    target = f"language {utterance.language}<asr_text>{utterance.text}<|im_end|>"
    stamped = "".join(f"{word.text}<timestamp><timestamp>" for word in utterance.words)
    return Example(
        mel, labels, ordinals, tokenizer.encode(prompt).ids, tokenizer.encode(target).ids,
        tokenizer.encode(f"<|audio_start|>{pads}<|audio_end|>{stamped}").ids,
        [time for word in utterance.words for time in (word.start, word.end)],
    )  # fmt: skip


def token_times(count: int) -> np.ndarray:
    """When each audio token begins, in seconds: 13 tokens to each second, 80 ms apart."""
    tokens = np.arange(count)
    return tokens // SPEC.chunk_tokens + tokens % SPEC.chunk_tokens * 0.08


def make_pools(tokenizer: Tokenizer, takes: int, scale: float, cache: Path) -> list[list[Example]]:
    """All training examples, by pool; deterministic, and kept for the next start."""
    if cache.exists():
        return pickle.loads(cache.read_bytes())
    lexicon = Lexicon(TRAINED, takes, seed=1)
    pools = []
    for index, (low, high, size) in enumerate(POOLS):
        rng = np.random.default_rng((2, index))
        pool = []
        for _ in range(int(size * scale)):
            words = 0 if rng.random() < 0.05 else int(rng.integers(low, high + 1))
            pool.append(example(compose(lexicon, rng, words), tokenizer))
        pools.append(pool)
        print(f"pool {low}-{high} words: {len(pool)} utterances", flush=True)
    cache.write_bytes(pickle.dumps(pools))
    return pools


def batches(pools: list[list[Example]], step: int, first_round: int, aligner: bool) -> list[Example]:
    """The batch of a step: short utterances first, then all; rows of similar length together."""
    rng = np.random.default_rng((3, step, aligner))
    progress = step / first_round
    share = [1.0, 0.0, 0.0] if progress < 0.06 else [0.2, 0.8, 0.0] if progress < 0.3 else [0.12, 0.73, 0.15]
    if aligner and progress >= 3:
        share = [0.05, 0.6, 0.35]  # what is left to learn is counting far
    pool = pools[rng.choice(3, p=share)]
    if aligner:
        pool = [row for row in pool if row.align_times]
    rows = sorted((pool[i] for i in rng.integers(0, len(pool), 96)), key=lambda row: row.mel.shape[1])
    budget, start = 24 * 400, int(rng.integers(0, 72))
    longest = rows[min(start + 23, 95)].mel.shape[1]
    return rows[start : start + max(4, min(32, budget // longest))]


def collate(rows: list[Example], pad: int, aligner: bool, rng: np.random.Generator) -> dict[str, Tensor]:
    """Right-padded tensors; mel zero-filled, with SpecAugment-like masks."""
    frames = [row.mel.shape[1] for row in rows]
    width = SPEC.pad_frames(max(frames))
    mel = np.zeros((len(rows), 128, width), np.float32)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        part = row.mel.astype(np.float32) + np.float32(rng.normal(0, 0.05))
        if rng.random() < 0.5:
            low = int(rng.integers(0, 112))
            part[low : low + int(rng.integers(2, 16))] = part.mean()
        mel[index, :, : frames[index]] = part
        mask[index, : frames[index]] = 1
    sequences = [row.align_ids if aligner else row.prompt + row.target for row in rows]
    longest = max(map(len, sequences))
    ids = np.full((len(rows), longest), pad, np.int64)
    for index, sequence in enumerate(sequences):
        ids[index, : len(sequence)] = sequence
    batch = {"mel": torch.from_numpy(mel), "mask": torch.from_numpy(mask), "ids": torch.from_numpy(ids)}
    batch["frame_labels"] = torch.from_numpy(np.concatenate([row.frame_labels for row in rows]))
    if aligner:
        batch["times"] = torch.tensor([time for row in rows for time in row.align_times])
        times = np.concatenate([token_times(len(row.frame_labels)) for row in rows])
        batch["token_times"] = torch.from_numpy(times.astype(np.float32))
        batch["ordinals"] = torch.from_numpy(np.concatenate([row.ordinals for row in rows]))
        batch["edges"] = torch.from_numpy(np.concatenate([_edges(row) for row in rows]))
        batch["looks_at"] = torch.from_numpy(np.concatenate([1 + _tokens_at(row) for row in rows]))  # 0: audio start
        marks = [np.arange(len(row.align_times)) // 2 + 1 for row in rows]
        batch["mark_ordinals"] = torch.from_numpy(np.concatenate(marks))
    else:
        labels, numbers = np.full((2, len(rows), longest), -100, np.int64)
        for index, row in enumerate(rows):
            part = slice(len(row.prompt), len(row.prompt) + len(row.target))
            labels[index, part] = row.target
            numbers[index, part] = np.maximum(0, np.arange(len(row.target)) - HEADER + 1)  # every word is one token
        batch["labels"], batch["numbers"] = torch.from_numpy(labels), torch.from_numpy(numbers)
        batch["ordinals"] = torch.from_numpy(np.concatenate([row.ordinals for row in rows]))
    return batch


class Heads(nn.Module):
    """Heads of the auxiliary losses; they are not part of the checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Linear(128, len(LABELS))
        self.clock = nn.Linear(128, CLASSES)
        self.edge = nn.Linear(128, 3)
        self.ordinal = nn.Linear(128, 2 + max(high for _, high, _ in POOLS))


def _tokens_at(row: Example) -> np.ndarray:
    """The audio token in which each start and end of a word falls."""
    begins = token_times(len(row.frame_labels))
    return np.maximum(0, np.searchsorted(begins, row.align_times, side="right") - 1)


def _edges(row: Example) -> np.ndarray:
    """For each audio token: 1 where a word starts, 2 where one ends, else 0."""
    edges = np.zeros(len(row.frame_labels), np.int64)
    for position, token in enumerate(_tokens_at(row)):
        edges[token] = 1 + position % 2
    return edges


def losses(
    model: nn.Module, heads: Heads, batch: dict[str, Tensor], aligner: bool, hear: bool
) -> tuple[Tensor, Tensor]:
    """(task loss, auxiliary loss) of a batch; ``hear``: the audio encoder learns too.

    The auxiliary losses ask for what the answer is made of, early. At the encoder's end: which word lies under
    each audio token, and for the aligner whether it begins or ends there. After the decoder's second layer: the
    number of the word that each audio token belongs to, and that each text position is to write or to date. Of
    the aligner, which must say absolute times that its input spells out nowhere: the time of each audio token
    after the first layer; and two heads of its last layer are told to look where the boundary is.
    """
    core, pad = model.model, model.config.audio_token_id
    with torch.set_grad_enabled(hear):
        audio = core.get_audio_features(batch["mel"], batch["mask"], return_dict=True).pooler_output
    extra = nn.functional.cross_entropy(heads.word(audio), batch["frame_labels"])
    embeds = core.get_input_embeddings()(batch["ids"])
    pads = batch["ids"] == pad
    embeds = embeds.masked_scatter(pads.unsqueeze(-1).expand_as(embeds), audio)
    more = {"output_hidden_states": True, "output_attentions": aligner}
    out = core.language_model(inputs_embeds=embeds, use_cache=False, **more)
    second = out.hidden_states[2]
    if not aligner:
        wanted = batch["labels"][:, 1:]
        keep = wanted != -100
        numbers, text = torch.cat([batch["ordinals"], batch["numbers"][:, 1:][keep]]), second[:, :-1][keep]
        count = nn.functional.cross_entropy(heads.ordinal(torch.cat([second[pads], text])), numbers)
        logits = model.lm_head(out.last_hidden_state[:, :-1][keep])
        return nn.functional.cross_entropy(logits, wanted[keep]), extra + count
    marks = batch["ids"] == model.config.timestamp_token_id
    clock = _time_loss(heads.clock(out.hidden_states[1][pads]), batch["token_times"])
    numbers = torch.cat([batch["ordinals"], batch["mark_ordinals"]])
    count = nn.functional.cross_entropy(heads.ordinal(torch.cat([second[pads], second[marks]])), numbers)
    edge = nn.functional.cross_entropy(heads.edge(audio), batch["edges"], torch.tensor([1.0, 4.0, 4.0]))
    looks = out.attentions[-1][:, :2].mean(dim=1)[marks].gather(1, batch["looks_at"][:, None])
    extra = extra + clock + count + edge - looks.clamp(min=1e-6).log().mean()
    return _time_loss(model.score(out.last_hidden_state[marks]), batch["times"]), extra


def _time_loss(logits: Tensor, seconds: Tensor) -> Tensor:
    """Cross-entropy against the two classes nearest to a time, shared by nearness."""
    exact = (seconds / CLASS_SECONDS).clamp(max=CLASSES - 2)
    low = exact.floor().long()
    share = exact - low
    logp = logits.log_softmax(-1)
    picked = logp.gather(1, low[:, None])[:, 0] * (1 - share) + logp.gather(1, low[:, None] + 1)[:, 0] * share
    return -picked.mean()


def train(kind: str, rounds: list[int], pools: list[list[Example]], tokenizer: Tokenizer, work: Path) -> nn.Module:
    """One model, from its last saved state if there is one; each round is one cycle of the learning rate."""
    aligner = kind == "aligner"
    torch.manual_seed(5)
    cls = Qwen3ASRForTokenClassification if aligner else Qwen3ASRForConditionalGeneration
    model, heads = cls(config(tokenizer, aligner)), Heads()
    if aligner:
        model.set_attn_implementation("eager")  # the only one that shows where it looks
        # start from the recogniser after its first round
        start = torch.load(work / "asr-start.pt")
        model.load_state_dict({k: v for k, v in start["model"].items() if k != "lm_head.weight"}, strict=False)
        heads.word.load_state_dict({part: start["heads"][f"word.{part}"] for part in ("weight", "bias")})
    model.train()
    params = [*model.parameters(), *heads.parameters()]
    print(f"{kind}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02)
    peak = 1.5e-3 if aligner else 2e-3
    steps, first, saved = sum(rounds), 0, work / f"{kind}.pt"
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started, running = time.perf_counter(), np.zeros(2)
    for step in range(first, steps):
        batch = collate(
            batches(pools, step, rounds[0], aligner), tokenizer.token_to_id("<|endoftext|>"), aligner,
            np.random.default_rng((4, step)),
        )  # fmt: skip
        task, extra = losses(model, heads, batch, aligner, hear=not aligner or step >= rounds[0])
        optimizer.param_groups[0]["lr"] = peak * learning_rate(step, rounds)
        optimizer.zero_grad()
        (task + 0.5 * extra).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        running += (task.item(), extra.item())
        if (step + 1) % 50 == 0:
            pace = (time.perf_counter() - started) / (step + 1 - first)
            shown = f"loss {running[0] / 50:.4f} auxiliary {running[1] / 50:.4f} {pace:.3f} s/step"
            print(f"{kind} {step + 1}/{steps} {shown}", flush=True)
            running[:] = 0
        if (step + 1) % 250 == 0 or step + 1 in (rounds[0], steps):
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "step": step + 1}
            state["optimizer"] = optimizer.state_dict()
            torch.save(state, saved.with_suffix(".tmp"))
            saved.with_suffix(".tmp").replace(saved)
            if step + 1 == rounds[0]:
                shutil.copyfile(saved, work / f"{kind}-start.pt")
    return model.eval()


def learning_rate(step: int, rounds: list[int]) -> float:
    """Share of the peak: up for a tenth of a round, down a cosine to nothing; later rounds peak lower."""
    for index, steps in enumerate(rounds):
        if step < steps:
            at = (step + 1) / steps
            share = at / 0.1 if at < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (at - 0.1) / 0.9)
            return max(share, 0.002) * 0.75**index
        step -= steps
    return 0.0


def write(model: nn.Module, tokenizer: Tokenizer, folder: Path, aligner: bool) -> None:
    """Save as fp16 in the ``-hf`` layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    save(tokenizer, folder, aligner)
    if not aligner:
        ids = tokenizer.token_to_id
        eos = [ids("<|endoftext|>"), ids("<|im_end|>")]
        content = {"do_sample": False, "eos_token_id": eos, "pad_token_id": eos[0], "max_new_tokens": 512}
        (folder / "generation_config.json").write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["asr", "aligner", "score"], help="asr, aligner, score")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="where training states are kept")
    parser.add_argument("--out", type=Path, default=HERE, help="where asr/, aligner/ and scores.json go")
    parser.add_argument("--asr-steps", type=int, nargs="+", default=[5000, 7000], help="steps of each round")
    parser.add_argument(
        "--aligner-steps", type=int, nargs="+", default=[2000, 4000, 2500], help="likewise; the first without encoder"
    )
    parser.add_argument("--takes", type=int, default=3, help="clips of each word and voice")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training utterances to make")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    tokenizer = build()
    if set(args.parts) & {"asr", "aligner"}:
        pools = make_pools(tokenizer, args.takes, args.scale, args.work / f"pools-{args.takes}-{args.scale:g}.pickle")
    if "asr" in args.parts:
        write(train("asr", args.asr_steps, pools, tokenizer, args.work), tokenizer, args.out / "asr", aligner=False)
    if "aligner" in args.parts:
        aligner = train("aligner", args.aligner_steps, pools, tokenizer, args.work)
        write(aligner, tokenizer, args.out / "aligner", aligner=True)
    if "score" not in args.parts:
        return
    scores = score(args.out, Lexicon(HELD_OUT, 2, seed=11))
    settings = {"command": "python examples/tiny/train.py", "seeds": [1, 2, 3, 4, 5]}
    settings |= {"asr_steps": args.asr_steps, "aligner_steps": args.aligner_steps}
    settings |= {"torch": torch.__version__, "languages": list(WORDS), "held_out_voices": HELD_OUT}
    (args.out / "scores.json").write_text(json.dumps(settings | scores, indent=2) + "\n")
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
