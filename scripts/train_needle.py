"""Train the embedded model ``needle`` from scratch.

    python scripts/train_needle.py train --run RUN [--size tiny|small] [--device cuda] [--threads 2]
    python scripts/train_needle.py export --run RUN --out questbench/models/needle

``train`` resumes from the newest checkpoint in RUN. Sequences are made on the fly and depend on (seed, step) alone, so
a run that was stopped goes on as if it had not been. ``export`` writes a stock LlamaForCausalLM.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _needle_data import Batch, Generator, Shape
from _needle_start import skeleton
from _needle_tokenizer import build_tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

ROPE = {"rope_type": "proportional", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
"""A quarter of the channel pairs turn with position; the others match content alone, at any distance."""


HEAD_DIM = 64
SHARPER = (1.3, 1.2)
"""Factor on each layer's queries at export: training hardly sees the lengths at which attention dilutes."""
MOST_ASKED = 512
"""Predictions of full weight per step that enter the loss, about; of those of less weight, twice as many."""


@dataclass(frozen=True)
class Size:
    """Architecture."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int


SIZES = {"tiny": Size(192, 2, 4, 2, 320), "small": Size(256, 4, 4, 2, 640)}


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one kind of sequences."""

    steps: int
    shape: Shape
    rate: float
    """Learning rate at its start; it moves to the next stage's (or to a twentieth of it) along a cosine."""
    penalty: float
    """Factor of the mean squared key of layers >= 1."""


def stages() -> list[Stage]:
    """The curriculum: short sequences until retrieval has grown, then ever longer ones."""
    early = {"repeats": 0.25, "records": 0.5, "passkey": 0.05, "chain": 0.1, "niah": 0.1}
    middle = {"records": 0.4, "passkey": 0.1, "chain": 0.1, "niah": 0.1, "vt": 0.25, "book": 0.05}
    late = {"records": 0.5, "passkey": 0.1, "chain": 0.1, "niah": 0.1, "vt": 0.15, "book": 0.05}
    last = {"records": 0.38, "passkey": 0.08, "chain": 0.1, "niah": 0.1, "vt": 0.3, "book": 0.04}
    most = {"records": 0.62, "passkey": 0.06, "chain": 0.1, "niah": 0.06, "vt": 0.14, "book": 0.02}
    final = {"records": 0.42, "passkey": 0.06, "chain": 0.1, "niah": 0.07, "vt": 0.33, "book": 0.02}
    broad = {"records": 0.34, "passkey": 0.05, "chain": 0.1, "niah": 0.07, "vt": 0.26, "book": 0.18}
    sure = {"records": 0.46, "passkey": 0.05, "chain": 0.07, "niah": 0.06, "vt": 0.26, "book": 0.1}
    return [
        Stage(20, Shape(128, 32, 8, 8, early), 3e-4, 0.0),
        Stage(40, Shape(256, 16, 16, 12, early), 3e-4, 0.0),
        Stage(100, Shape(512, 8, 32, 16, middle), 3e-4, 0.005),
        Stage(45, Shape(1024, 4, 64, 24, middle), 3e-4, 0.01),
        Stage(30, Shape(1024, 4, 64, 24, late), 3e-4, 0.03),
        Stage(110, Shape(2048, 2, 64, 32, late), 3e-4, 0.05),
        Stage(65, Shape(4096, 1, 128, 32, late), 3e-4, 0.05),
        Stage(250, Shape(2048, 2, 64, 32, late), 3e-4, 0.01),
        Stage(40, Shape(4096, 1, 128, 32, late), 2e-4, 0.015),
        Stage(200, Shape(2048, 2, 64, 32, last), 3e-4, 0.03),
        Stage(60, Shape(4096, 1, 128, 32, last), 2e-4, 0.03),
        Stage(14, Shape(8192, 1, 128, 32, last), 1e-4, 0.03),
        Stage(170, Shape(2048, 2, 64, 32, most), 2e-4, 0.05),
        Stage(50, Shape(4096, 1, 128, 32, most), 1e-4, 0.06),
        Stage(200, Shape(2048, 2, 64, 32, final), 2e-4, 0.06),
        Stage(90, Shape(4096, 1, 128, 32, final), 1.5e-4, 0.06),
        Stage(20, Shape(8192, 1, 128, 32, final), 1e-4, 0.06),
        Stage(40, Shape(4096, 1, 128, 32, final), 4e-5, 0.06),
        Stage(216, Shape(2048, 2, 64, 32, final), 2e-4, 0.1),
        Stage(200, Shape(2048, 4, 64, 32, broad), 8e-4, 0.1),
        Stage(1000, Shape(2048, 4, 64, 32, broad), 1e-3, 0.2),
        Stage(600, Shape(4096, 2, 128, 32, broad), 8e-4, 0.3),
        Stage(200, Shape(8192, 1, 128, 32, sure), 6e-4, 0.4),
        Stage(60, Shape(16384, 1, 256, 32, sure), 4e-4, 0.4),
        Stage(450, Shape(4096, 2, 128, 32, sure), 4e-4, 0.5),
    ]


class Training:
    """Model, optimiser and position in the curriculum.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from questbench.tasks._make import make_task

        self.options, self.run = options, Path(options.run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.tokenizer = build_tokenizer()
        self.generator = Generator(self.tokenizer, make_task)
        torch.manual_seed(options.seed)
        self.model = build_model(SIZES[options.size], self.tokenizer).to(options.device)
        named = list(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named if p.dim() == 2 and "embed" not in n], "weight_decay": 0.1, "factor": 1.0},
            {"params": [p for n, p in named if p.dim() < 2], "weight_decay": 0.0, "factor": 5.0},
            # Nearly every step moves nearly every embedding a little, and Adam would make a lot of it.
            {"params": [p for n, p in named if "embed" in n], "weight_decay": 0.0, "factor": 0.15},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.random = torch.Generator()
        self.squares: list[torch.Tensor] = []
        self.still = (self.model.model.rotary_emb.inv_freq == 0).repeat(2).to(options.device)
        for layer in self.model.model.layers[1:]:
            layer.self_attn.k_proj.register_forward_hook(self.observe_keys)
        newest = self.run / "checkpoint.pt"
        if newest.exists():
            self.load(newest)

    def observe_keys(self, _module: nn.Module, _inputs: Any, keys: torch.Tensor) -> None:
        """Keep the mean square of the channels that do not turn."""
        self.squares.append(keys.unflatten(-1, (-1, HEAD_DIM))[..., self.still].square().mean())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, map_location=self.options.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        factors = [group["factor"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            group["factor"] = factor  # the script's, not the checkpoint's
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        print(f"resumed at step {self.step:,}", flush=True)

    def save(self, name: str = "checkpoint.pt") -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{key: getattr(self, key) for key in ("step", "tokens", "seconds")},
        }
        torch.save(state, self.run / "checkpoint.part")
        (self.run / "checkpoint.part").replace(self.run / name)

    def export(self, folder: Path) -> None:
        """Write the model, its tokenizer and the training curve as they are shipped."""
        for layer, factor in zip(self.model.model.layers, SHARPER, strict=True):
            layer.self_attn.q_proj.weight.data *= factor
        self.model.config._name_or_path = "needle"
        self.model.generation_config.do_sample = False
        self.model.to("cpu", torch.float32).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        shutil.copy(self.run / "curve.jsonl", folder / "curve.jsonl")

    def schedule(self) -> Iterator[tuple[Stage, float]]:
        """Stage and learning rate of every step from the present one on."""
        table = stages()
        first = 0
        for at, stage in enumerate(table):
            after = table[at + 1].rate if at + 1 < len(table) else stage.rate / 20
            while self.step < first + stage.steps:
                share = (self.step - first) / stage.steps
                rate = after + (stage.rate - after) * (1 + math.cos(math.pi * share)) / 2
                yield stage, rate * min(1.0, (self.step + 1) / 20)
            first += stage.steps

    def train(self) -> None:
        """All steps that are left."""
        answers = right = 0
        summed = [0.0, 0.0]
        begun, since = time.monotonic(), 0
        log = (self.run / "curve.jsonl").open("a")
        for stage, rate in self.schedule():
            batch = self.generator.batch(self.options.seed, self.step, stage.shape)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            loss, square, hits = self.loss(batch)
            (loss + stage.penalty * square).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.tokens += batch.ids.size
            since += batch.ids.size
            answers, right = answers + hits.numel(), right + int(hits.sum())
            summed = [summed[0] + loss.item(), summed[1] + square.item()]
            every = self.options.every
            if self.step % every == 0:
                took = time.monotonic() - begun
                self.seconds += took
                row = {
                    "step": self.step,
                    "tokens": self.tokens,
                    "seconds": round(self.seconds),
                    "length": stage.shape.length,
                    "rate": round(rate, 6),
                    "loss": round(summed[0] / every, 5),
                    "right": round(right / max(answers, 1), 5),
                    "square": round(summed[1] / every, 4),
                    "tokens_per_second": round(since / took),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(row, flush=True)
                answers = right = since = 0
                summed, begun = [0.0, 0.0], time.monotonic()
                self.save()
        self.save()

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weighted mean cross entropy of the asked ids, mean squared key of layers >= 1, and which ids were first."""
        ids = torch.from_numpy(batch.ids).to(self.options.device)
        weights = torch.from_numpy(batch.weights).to(self.options.device)[:, 1:]
        for least, most in ((0.5, MOST_ASKED), (0.0, 2 * MOST_ASKED)):  # the vocabulary's matrix is the largest one
            some = (weights > least) & (weights <= 2 * least + 0.5)
            share = most / max(int(some.sum()), 1)
            if share < 1:
                dropped = torch.rand(weights.shape, generator=self.random.manual_seed(self.step)) > share
                weights = torch.where(some & dropped.to(some.device), 0.0, weights)
        asked = weights > 0
        self.squares.clear()
        half = self.options.device.startswith("cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            hidden = self.model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[asked]).float()
        goal, weight = ids[:, 1:][asked], weights[asked]
        square = torch.stack(self.squares).float().mean()
        loss = (F.cross_entropy(logits, goal, reduction="none") * weight).sum() / weight.sum().clamp(min=1.0)
        return loss, square, (logits.argmax(-1) == goal)[weight == 1]


def build_model(size: Size, tokenizer: Any) -> LlamaForCausalLM:
    """A model with fresh weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=dict(ROPE),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
    )
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config)
    assert model.model.rotary_emb.inv_freq[-1] == 0, "this transformers has no proportional rotary embedding"
    nn.init.normal_(model.model.embed_tokens.weight, std=0.05)
    skeleton(model, tokenizer)
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--run", required=True, help="folder of checkpoints and of the training curve")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--out", default="questbench/models/needle", help="where export writes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # tiny gradients late in training would run on the slow path
    training = Training(options)
    if options.command == "train":
        training.train()
    else:
        training.export(Path(options.out))


if __name__ == "__main__":
    main()
