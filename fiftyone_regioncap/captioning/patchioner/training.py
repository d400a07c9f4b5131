"""Training of the decoder on text alone, by the paper's recipe.

A caption's embedding (CLIP's text tower, then Talk2DINO, then length 1) is the prefix
that the decoder learns to write the caption from. Models with a memory are trained like
that; models without one get noise on the embedding, so that image embeddings, which lie
elsewhere, still find the caption (CapDec, arXiv 2211.00575).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fiftyone_regioncap.captioning.patchioner.checkpoint import (
    Checkpoint,
    save_checkpoint,
)
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import Gpt2Config
from fiftyone_regioncap.captioning.patchioner.memory import (
    TextMemory,
    build_memory,
    memory_file_name,
)
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from fiftyone_regioncap.models.loading import read_torch

NOISE = 0.08
"""Standard deviation of the published noise model, per channel of a unit vector."""

_IGNORED = 0
_STATE = "training.pt"


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's.

    Attributes:
        epochs: over all captions.
        batch_size: captions per step.
        learning_rate: after the warm-up; falls to 0 linearly.
        warmup: steps.
        weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        noise: standard deviation on the embeddings; :data:`NOISE` for the noise model.
        tokens: of a caption that are learned, the start token included.
        held_out: fraction of the captions that is not trained on.
        seed: of weights, order, noise and dropout.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-5
    warmup: int = 1000
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    noise: float = 0.0
    tokens: int = 20
    held_out: float = 0.0
    seed: int = 42


@dataclass(frozen=True)
class Epoch:
    """How an epoch went.

    Attributes:
        number: from 1.
        loss: mean over the steps, with dropout, noise and label smoothing.
        held_out_loss: mean cross-entropy per token of the captions held out; None
            when there are none.
    """

    number: int
    loss: float
    held_out_loss: float | None


def train_decoder(
    captions: Sequence[str],
    base: str | Path,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    sizes: Gpt2Config | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Trains a decoder for a backbone and writes a checkpoint that can be loaded.

    Killed and called again with the same arguments, it goes on after the last whole
    epoch and ends with the same weights.

    Args:
        captions: to learn; also become the memory of the checkpoint, unless the recipe
            has noise.
        base: checkpoint (folder or hub repository) with the projection and text tower
            of the backbone; its decoder is not read.
        out: folder of the new checkpoint; made when absent.
        recipe: None is the paper's.
        sizes: of the decoder; None is the published one.
        device: where to train.
        progress: told after each epoch.

    Returns:
        all epochs, those of earlier calls included.

    Raises:
        PromptError: when a caption has more than 77 tokens.
        WeightsError: when there are no captions, the base lacks its text tower, or
            ``out`` holds another training.
    """
    recipe, sizes = recipe or Recipe(), sizes or Gpt2Config()
    if not captions:
        raise WeightsError("there is no caption to train on")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    source = Checkpoint.open(base)
    vocabulary = ClipVocabulary.load(source.config.vocabulary)
    encode = source.text_encoder(device, vocabulary)
    features = out / memory_file_name(len(captions))
    if not features.is_file() or list(TextMemory.load(features).texts) != list(
        captions
    ):
        build_memory(features, captions, encode)
    table = TextMemory.load(features).embeddings
    tokens = torch.from_numpy(vocabulary.tokenize(captions)[:, : recipe.tokens])
    trainer = _Trainer.start(out, recipe, sizes, table, tokens, device)
    for epoch in trainer.epochs():
        if progress is not None:
            progress(epoch)
    memory = recipe.noise == 0
    config = replace(
        source.config,
        prefix_size=table.shape[1],
        support_memory_size=len(captions) if memory else 0,
        decap_weights="decoder.pt",
        heads=sizes.heads,
        viecap=None,
        memory=None,
        **_absolute_parts(source),
    )
    save_checkpoint(out, config, trainer.decoder.cpu(), encode.projection)
    if not memory:
        features.unlink()
    return trainer.history


def _absolute_parts(source: Checkpoint) -> dict[str, Any]:
    """Folders inside the base checkpoint, by paths that hold from elsewhere."""
    config = source.config
    return {
        name: str((source.folder / value).resolve())
        for name in ("backbone", "clip", "vocabulary")
        if (value := getattr(config, name)) and (source.folder / value).exists()
    }


@dataclass
class _Trainer:
    """One training and where it stands."""

    path: Path
    recipe: Recipe
    decoder: PrefixDecoder
    optimizer: torch.optim.AdamW
    scheduler: torch.optim.lr_scheduler.LambdaLR
    features: Tensor
    tokens: Tensor
    trained: Tensor
    held_out: Tensor
    history: list[Epoch]

    @classmethod
    def start(
        cls,
        out: Path,
        recipe: Recipe,
        sizes: Gpt2Config,
        features: Tensor,
        tokens: Tensor,
        device: torch.device | str,
    ) -> _Trainer:
        """Begins, or takes up what the folder holds."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            decoder = PrefixDecoder(features.shape[1], sizes).to(device)
            order = torch.randperm(len(tokens))
        kept = len(tokens) - int(len(tokens) * recipe.held_out)
        steps = recipe.epochs * max(1, kept // recipe.batch_size)
        optimizer = torch.optim.AdamW(
            decoder.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _schedule(step, recipe.warmup, steps)
        )
        trainer = cls(
            out / _STATE,
            recipe,
            decoder,
            optimizer,
            scheduler,
            features,
            tokens,
            order[:kept],
            order[kept:],
            [],
        )
        if trainer.path.is_file():
            trainer._resume(sizes)
        return trainer

    def epochs(self) -> Iterator[Epoch]:
        """Trains what is left, epoch by epoch."""
        for number in range(len(self.history) + 1, self.recipe.epochs + 1):
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                # An epoch's chance depends on its number only, so that a resumed
                # training is the same training.
                torch.manual_seed(self.recipe.seed * 10_007 + number)
                loss = self._train()
            epoch = Epoch(number, loss, self._held_out_loss())
            self.history.append(epoch)
            self._save()
            yield epoch

    @property
    def device(self) -> torch.device:
        return self.decoder.device

    def _train(self) -> float:
        self.decoder.train()
        order = self.trained[torch.randperm(len(self.trained))]
        size = min(self.recipe.batch_size, len(order))
        losses = []
        for rows in order[: len(order) // size * size].split(size):
            loss = self._loss(rows, self.recipe.label_smoothing, self.recipe.noise)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return math.fsum(losses) / len(losses)

    @torch.no_grad()
    def _held_out_loss(self) -> float | None:
        if len(self.held_out) == 0:
            return None
        self.decoder.eval()
        total = count = 0.0
        for rows in self.held_out.split(self.recipe.batch_size):
            tokens = int((self.tokens[rows] != _IGNORED).sum())
            total += self._loss(rows, 0.0, 0.0).item() * tokens
            count += tokens
        return total / count

    def _loss(self, rows: Tensor, smoothing: float, noise: float) -> Tensor:
        prefix = nn.functional.normalize(self.features[rows].to(self.device), dim=1)
        if noise:
            prefix = prefix + noise * torch.randn_like(prefix)
            prefix = nn.functional.normalize(prefix, dim=1)
        ids = self.tokens[rows].to(self.device)
        return nn.functional.cross_entropy(
            self.decoder.logits(prefix, ids).flatten(0, 1),
            ids.flatten(),
            ignore_index=_IGNORED,
            label_smoothing=smoothing,
        )

    def _save(self) -> None:
        partial = self.path.with_suffix(".partial")
        torch.save(
            {
                "recipe": asdict(self.recipe),
                "sizes": asdict(self.decoder.config),
                "captions": len(self.tokens),
                "decoder": self.decoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "history": [asdict(epoch) for epoch in self.history],
            },
            partial,
        )
        partial.replace(self.path)

    def _resume(self, sizes: Gpt2Config) -> None:
        state = read_torch(self.path, self.device)
        same = (state["recipe"], state["sizes"], state["captions"]) == (
            asdict(self.recipe),
            asdict(sizes),
            len(self.tokens),
        )
        if not same:
            raise WeightsError(
                f"{self.path.parent} holds a training with another recipe, other sizes "
                "or other captions; give another folder, or delete training.pt"
            )
        self.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history += [Epoch(**epoch) for epoch in state["history"]]


def _schedule(step: int, warmup: int, steps: int) -> float:
    """The learning rate's factor: up over the warm-up, then down to 0."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (steps - step) / max(1, steps - warmup))
