"""Training of the decoder on text alone, by the paper's options.

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
from fiftyone_regioncap.captioning.patchioner.configuration import (
    DecoderTrainingOptions,
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

_IGNORED = 0
_STATE = "training.pt"


@dataclass(frozen=True)
class Epoch:
    """Losses of an epoch.

    Attributes:
        number: Number of the epoch, from 1.
        loss: Mean loss over the steps, with dropout, noise and label smoothing.
        held_out_loss: Mean cross-entropy per token of the captions held out; None if
            there are none.
    """

    number: int
    loss: float
    held_out_loss: float | None


def train_decoder(
    captions: Sequence[str],
    base: str | Path,
    out: str | Path,
    *,
    options: DecoderTrainingOptions | None = None,
    sizes: Gpt2Config | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Trains a decoder for a backbone and writes a checkpoint that can be loaded.

    Killed and called again with the same arguments, it goes on after the last whole
    epoch and ends with the same weights.

    Args:
        captions: Captions to learn; they also become the memory of the checkpoint,
            unless the options ask for noise.
        base: Checkpoint (folder or hub repository) with the projection and text tower
            of the backbone; its decoder is not read.
        out: Folder of the new checkpoint; made when absent.
        options: Options of training; None for the paper's.
        sizes: Sizes of the decoder; None is the published one.
        device: Device to train on.
        progress: Called after each epoch.

    Returns:
        All epochs, those of earlier calls included.

    Raises:
        PromptError: If a caption has more than 77 tokens.
        WeightsError: If there are no captions, the base lacks its text tower, or
            ``out`` holds another training.
    """
    options, sizes = options or DecoderTrainingOptions(), sizes or Gpt2Config()
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
    tokens = torch.from_numpy(vocabulary.tokenize(captions)[:, : options.tokens])
    trainer = _Trainer.start(out, options, sizes, table, tokens, device)
    for epoch in trainer.epochs():
        if progress is not None:
            progress(epoch)
    memory = options.noise == 0
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
    """A training and its state."""

    path: Path
    options: DecoderTrainingOptions
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
        options: DecoderTrainingOptions,
        sizes: Gpt2Config,
        features: Tensor,
        tokens: Tensor,
        device: torch.device | str,
    ) -> _Trainer:
        """Starts a training, or resumes the one in the folder."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            decoder = PrefixDecoder(features.shape[1], sizes).to(device)
            order = torch.randperm(len(tokens))
        kept = len(tokens) - int(len(tokens) * options.held_out)
        steps = options.epochs * max(1, kept // options.batch_size)
        optimizer = torch.optim.AdamW(
            decoder.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _schedule(step, options.warmup, steps)
        )
        trainer = cls(
            out / _STATE,
            options,
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
        """Trains the epochs that are left."""
        for number in range(len(self.history) + 1, self.options.epochs + 1):
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                # An epoch's chance depends on its number only, so that a resumed
                # training is the same training.
                torch.manual_seed(self.options.seed * 10_007 + number)
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
        size = min(self.options.batch_size, len(order))
        losses = []
        for rows in order[: len(order) // size * size].split(size):
            loss = self._loss(rows, self.options.label_smoothing, self.options.noise)
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
        for rows in self.held_out.split(self.options.batch_size):
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
                "options": asdict(self.options),
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
        same = (state.get("options"), state.get("sizes"), state.get("captions")) == (
            asdict(self.options),
            asdict(sizes),
            len(self.tokens),
        )
        if not same:
            raise WeightsError(
                f"{self.path.parent} holds a training with other options, other sizes "
                "or other captions; give another folder, or delete training.pt"
            )
        self.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history += [Epoch(**epoch) for epoch in state["history"]]


def _schedule(step: int, warmup: int, steps: int) -> float:
    """Returns the factor of the learning rate: warm-up, then a fall to 0."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (steps - step) / max(1, steps - warmup))
