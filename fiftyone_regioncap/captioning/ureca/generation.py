"""Generation with shared prefixes: the image part of prompts is encoded once.

In URECA's prompt the mask comes after the image, so that all regions of an image begin
with the same thousands of tokens. Their keys and values are computed once; every region
adds its own few and attends to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from fiftyone_regioncap.captioning.dam.generation import WrittenAnswer
from fiftyone_regioncap.captioning.dam.language import Cache, Decoder
from fiftyone_regioncap.models.sampling import (
    Sampling,
    SamplingRows,
    choose,
    token_probability,
)

SCORES_AT_ONCE = 1 << 25
"""Attention scores of one layer that are held while prompts are read."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the beginning of a prompt.

    Attributes:
        keys: Keys, (layers, heads, length, width).
        values: Values, of the same shape as the keys.
    """

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.keys.shape[2]


@dataclass(frozen=True)
class RegionPrompt:
    """Represents a prompt: a prefix that others may share, and the rest.

    Attributes:
        prefix: Shared beginning of the prompt.
        embeddings: Embeddings of the rest, (S, D), one token or more.
    """

    prefix: Prefix
    embeddings: Tensor


def read_prefix(llm: LlamaForCausalLM | Qwen2ForCausalLM, embeddings: Tensor) -> Prefix:
    """Reads the beginning of a prompt.

    Args:
        llm: Language model with its weights loaded.
        embeddings: Embeddings of the prefix, (P, D).
    """
    length = len(embeddings)
    cache = Cache(llm.config, 1, length, embeddings.device, embeddings.dtype)
    Decoder(llm, cache, graphs=False).prefill(embeddings[None], [0])
    return Prefix(cache.keys[:, 0, :, :length], cache.values[:, 0, :, :length])


@torch.inference_mode()
def write(
    llm: LlamaForCausalLM | Qwen2ForCausalLM,
    regions: Sequence[RegionPrompt],
    *,
    end: int,
    limit: int,
    sampling: Sampling,
) -> list[WrittenAnswer]:
    """Answers prompts together, token by token, until all have ended.

    Args:
        llm: Language model with its weights loaded.
        regions: Prompts of one or more regions, those with one prefix next to each
            other.
        end: Id of the token that ends an answer.
        limit: Maximum number of tokens of an answer.
        sampling: Sampling settings.
    """
    decoder = _RegionDecoder(llm, regions, limit)
    logits = decoder.read(regions)
    draws = torch.zeros(limit) if sampling.greedy else sampling.uniforms(limit)
    answers = [WrittenAnswer([], [], False) for _ in regions]
    alive = list(range(len(regions)))
    for draw in draws.to(logits.device):
        rows = SamplingRows.of([sampling] * len(alive), logits.shape[1], logits.device)
        tokens = choose(logits, rows, draw.expand(len(alive)))
        chances = token_probability(logits, tokens).tolist()
        going_on = []
        for row, token in enumerate(tokens.tolist()):
            answer = answers[alive[row]]
            answer.ids.append(token)
            answer.probabilities.append(chances[row])
            if token != end:
                going_on.append(row)
        if len(going_on) < len(alive):
            decoder.keep(going_on)
            alive = [alive[row] for row in going_on]
            tokens = tokens[going_on]
        if not alive or len(answers[alive[0]].ids) == limit:
            break
        logits = decoder.advance(tokens)
    return [
        WrittenAnswer(answer.ids, answer.probabilities, answer.ids[-1] == end)
        for answer in answers
    ]


class _RegionDecoder(Decoder):
    """A decoder whose rows begin with shared prefixes.

    The cache has the rows' own tokens only.
    """

    def __init__(
        self,
        llm: LlamaForCausalLM | Qwen2ForCausalLM,
        regions: Sequence[RegionPrompt],
        limit: int,
    ) -> None:
        first = regions[0].embeddings
        longest = max(len(region.embeddings) for region in regions)
        cache = Cache(
            llm.config, len(regions), longest + limit, first.device, first.dtype
        )
        super().__init__(llm, cache, graphs=False)
        self._prefixes = [region.prefix for region in regions]
        self._lengths = [len(region.embeddings) for region in regions]

    def read(self, regions: Sequence[RegionPrompt]) -> Tensor:
        """Reads the prompts behind their prefixes; returns logits, float32 (B, V)."""
        logits, row = [], 0
        for (_, length), group in groupby(
            regions, key=lambda region: (id(region.prefix), len(region.embeddings))
        ):
            alike = [region.embeddings for region in group]
            width = (len(regions[row].prefix) + length) * length
            scores = width * self._llm.config.num_attention_heads
            count = max(SCORES_AT_ONCE // scores, 1)
            for start in range(0, len(alike), count):
                some = torch.stack(alike[start : start + count])
                offsets = torch.arange(length, device=some.device)
                logits.append(
                    self._pass(some, row, offsets.expand(len(some), -1), length)
                )
                row += len(some)
        return torch.cat(logits)

    def advance(self, tokens: Tensor) -> Tensor:
        """Adds a token, int64 (B,), to each row; returns logits, float32 (B, V)."""
        x = self._llm.model.embed_tokens(tokens)[:, None]
        offsets = torch.tensor(self._lengths, device=tokens.device)[:, None]
        self._lengths = [length + 1 for length in self._lengths]
        return self._pass(x, 0, offsets, max(self._lengths))

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows."""
        self.cache.keys = self.cache.keys[:, rows]
        self.cache.values = self.cache.values[:, rows]
        self._prefixes = [self._prefixes[row] for row in rows]
        self._lengths = [self._lengths[row] for row in rows]

    def _pass(self, x: Tensor, first: int, offsets: Tensor, span: int) -> Tensor:
        """Runs all layers over new tokens of some rows.

        Args:
            x: Embeddings of the new tokens, (B, S, D).
            first: Index of the first of the B rows.
            offsets: Positions of the tokens behind the prefix, int64 (B, S).
            span: Number of its own tokens that the longest row has after this pass.

        Returns:
            Logits after the last of them, float32 (B, V).
        """
        model, rows = self._llm.model, slice(first, first + len(x))
        prefixes = self._prefixes[rows]
        starts = torch.tensor([len(prefix) for prefix in prefixes], device=x.device)
        rotation = model.rotary_emb(x, starts[:, None] + offsets)
        visible = torch.arange(span, device=x.device) <= offsets[..., None]
        numbers = torch.arange(len(x), device=x.device)[:, None]
        groups, start = [], 0
        for _, alike in groupby(prefixes, key=id):
            end = start + len(list(alike))
            groups.append((prefixes[start], slice(start, end)))
            start = end
        for layer_number, layer in enumerate(model.layers):
            query, key, value = self._project(layer, x, rotation)
            keys = self.cache.keys[layer_number, rows]
            values = self.cache.values[layer_number, rows]
            keys[numbers, :, offsets] = key.transpose(1, 2)
            values[numbers, :, offsets] = value.transpose(1, 2)
            attended = [
                attend(
                    query[some],
                    (prefix.keys[layer_number], prefix.values[layer_number]),
                    (keys[some, :, :span], values[some, :, :span]),
                    visible[some],
                )
                for prefix, some in groups
            ]
            x = self._finish(layer, x, torch.cat(attended))
        return self._logits(x[:, -1])


def attend(
    query: Tensor,
    shared: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    visible: Tensor,
) -> Tensor:
    """Computes attention over shared keys and each row's own.

    Args:
        query: Queries, (B, heads x G, S, W): G heads of queries to one of keys.
        shared: Shared keys and values, each (heads, P, W); all of them are attended to.
        own: Each row's own keys and values, each (B, heads, K, W).
        visible: Attention mask over a row's own keys, bool (B, S, K).

    Returns:
        (B, S, heads x G x W).
    """
    heads, length, width = shared[0].shape
    batch, _, new, _ = query.shape
    grouped = query.reshape(batch, heads, -1, width) * width**-0.5
    # For what is shared, rows are no more than further queries.
    joined = grouped.transpose(0, 1).flatten(1, 2)
    before = (joined @ shared[0].mT).unflatten(1, (batch, -1)).transpose(0, 1)
    after = (grouped @ own[0].mT).unflatten(2, (-1, new))
    after = after.masked_fill(~visible[:, None, None], -torch.inf).flatten(2, 3)
    scores = torch.cat([before, after], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    joined = weights[..., :length].transpose(0, 1).flatten(1, 2)
    seen = (joined @ shared[1]).unflatten(1, (batch, -1)).transpose(0, 1)
    seen = seen + weights[..., length:] @ own[1]
    return seen.unflatten(2, (-1, new)).permute(0, 3, 1, 2, 4).flatten(2)
