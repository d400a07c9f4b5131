"""Sampling of tokens, and their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fiftyone_regioncap.core.errors import OptionError

LEAST_TEMPERATURE = 1e-4
"""Logits divided by less would overflow before they tell tokens apart."""


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
        temperature: Divisor of the logits; 0, or less than any logits could distinguish
            from it (:data:`LEAST_TEMPERATURE`), always takes the most likely token.
        top_k: Number of most likely tokens to keep; 0 keeps all.
        top_p: Nucleus probability, applied after ``top_k``: a token is dropped when its
            probability and that of all less likely ones is at most ``1 - top_p``; at
            least one stays. 1 keeps all.
        seed: Seed of the random numbers; the same seed gives the same text, whatever
            else is in the batch.
    """

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(f"temperature is {self.temperature}; give 0 or more")
        if self.top_k < 0:
            raise OptionError(f"top_k is {self.top_k}; give 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}; give more than 0, at most 1")

    @property
    def greedy(self) -> bool:
        """Returns whether the most likely token is always taken."""
        return self.temperature < LEAST_TEMPERATURE

    def uniforms(self, count: int) -> Tensor:
        """Returns the random numbers of a text, float32 (count,) in [0, 1)."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(count, generator=generator)


GREEDY = Sampling()
"""Always the most likely token."""


def on_device(
    values: Sequence[float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Makes a tensor and sends it to a GPU without synchronizing."""
    tensor = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class SamplingRows:
    """Sampling settings of several rows as tensors.

    Attributes:
        temperature: Temperatures, float32 (B, 1); 1 for greedy rows.
        top_k: Numbers of tokens kept, int64 (B, 1); the vocabulary's size where all are
            kept.
        top_p: Nucleus probabilities, float32 (B, 1).
        greedy: Whether each row is greedy, bool (B,).
        width: Number of most likely tokens considered, 1 or more.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    greedy: Tensor
    width: int

    @classmethod
    def of(
        cls, rows: Sequence[Sampling], vocabulary: int, device: torch.device
    ) -> SamplingRows | None:
        """Gathers settings, one row each; None when all are greedy."""
        if all(row.greedy for row in rows):
            return None
        kept = [min(row.top_k or vocabulary, vocabulary) for row in rows]
        warm = [k for k, row in zip(kept, rows, strict=True) if not row.greedy]

        def column(values: list[float], dtype: torch.dtype) -> Tensor:
            return on_device(values, dtype, device)[:, None]

        return cls(
            temperature=column(
                # Beyond a million all tokens are alike; float32 holds no 1e300.
                [1.0 if row.greedy else min(row.temperature, 1e6) for row in rows],
                torch.float32,
            ),
            top_k=column([float(k) for k in kept], torch.int64),
            top_p=column([row.top_p for row in rows], torch.float32),
            greedy=on_device([row.greedy for row in rows], torch.bool, device),
            width=max(warm),
        )


def candidates(logits: Tensor, rows: SamplingRows) -> tuple[Tensor, Tensor]:
    """Returns the tokens that may come next, most likely first.

    Args:
        logits: Logits of the next tokens, float32 (B, V).
        rows: Sampling settings.

    Returns:
        Ids, int64 (B, width), and their probabilities, float32 (B, width), summing to 1
        with zeros for what was dropped.
    """
    scores, ids = (logits / rows.temperature).topk(rows.width, dim=-1)
    rank = torch.arange(rows.width, device=logits.device)
    scores = scores.masked_fill(rank >= rows.top_k, -math.inf)
    probabilities = scores.softmax(dim=-1)
    # Summed from the least likely up, as the rule is worded.
    tail = probabilities.flip(-1).cumsum(dim=-1).flip(-1)
    dropped = (tail <= 1 - rows.top_p) & (rank > 0)
    return ids, scores.masked_fill(dropped, -math.inf).softmax(dim=-1)


def choose(logits: Tensor, rows: SamplingRows | None, uniform: Tensor | None) -> Tensor:
    """Chooses the next token of each row, int64 (B,).

    Args:
        logits: Logits of the next tokens, float32 (B, V).
        rows: Sampling settings; None when all rows are greedy.
        uniform: One random number per row in [0, 1), float32 (B,); None when all rows
            are greedy.
    """
    best = logits.argmax(dim=-1)
    if rows is None or uniform is None:
        return best
    ids, probabilities = candidates(logits, rows)
    reached = probabilities.cumsum(dim=-1) > uniform[:, None]
    # The last sums may stay a rounding error below the random number; what was dropped
    # must not be chosen even then.
    allowed = (probabilities > 0).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    first = torch.where(
        reached.any(dim=-1, keepdim=True),
        reached.int().argmax(dim=-1, keepdim=True),
        allowed,
    )
    drawn = ids.gather(1, first)[:, 0]
    return torch.where(rows.greedy, best, drawn)


def token_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns the model's own probability of each row's token, float32 (B,).

    Temperature and filters play no part, so that greedy and sampled texts compare.
    """
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return (chosen - logits.logsumexp(dim=-1)).exp()
