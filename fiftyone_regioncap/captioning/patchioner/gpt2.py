"""GPT-2 (Radford et al. 2019), small and batched, with a key-value cache.

Parameter names are those of the published state dicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Gpt2Config:
    """The sizes of a GPT-2.

    Attributes:
        width: channels.
        layers: blocks.
        heads: per block; parts the channels.
        positions: the most tokens.
        vocabulary: token ids.
    """

    width: int = 768
    layers: int = 4
    heads: int = 4
    positions: int = 1024
    vocabulary: int = 50_257


@dataclass
class KeyValueCache:
    """Keys and values of the tokens so far, per block.

    Attributes:
        length: how many tokens are in.
    """

    capacity: int
    length: int = 0
    _blocks: list[Tensor] = field(default_factory=list, repr=False)

    def extend(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a block's keys and values, (R, heads, T, d) each; gives all so far."""
        if block == len(self._blocks):
            rows, heads, _, size = keys.shape
            self._blocks.append(keys.new_empty(2, rows, heads, self.capacity, size))
        stop = self.length + keys.shape[2]
        store = self._blocks[block]
        store[0, :, :, self.length : stop] = keys
        store[1, :, :, self.length : stop] = values
        return store[0, :, :, :stop], store[1, :, :, :stop]

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows only, in the order given, int64 (rows,); may repeat rows."""
        self._blocks = [store[:, rows] for store in self._blocks]


class _Projection(nn.Module):
    """A linear layer whose weight is (in, out), as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def _residual_std(config: Gpt2Config) -> float:
    """Of the initial weights that end a residual branch, of which blocks have two."""
    return 0.02 / math.sqrt(2 * config.layers)


class _Attention(nn.Module):
    def __init__(self, config: Gpt2Config, block: int) -> None:
        super().__init__()
        self.heads, self.block = config.heads, block
        self.c_attn = _Projection(config.width, 3 * config.width)
        self.c_proj = _Projection(config.width, config.width, _residual_std(config))

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None,
        visible: Tensor | None,
        dropout: float,
    ) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        if cache is not None:
            key, value = cache.extend(self.block, key, value)
        attended = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            dropout_p=dropout if self.training else 0.0,
            is_causal=visible is None and query.shape[2] > 1,
        )
        return self.c_proj(attended.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.c_fc = _Projection(config.width, 4 * config.width)
        self.c_proj = _Projection(4 * config.width, config.width, _residual_std(config))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(nn.functional.gelu(self.c_fc(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, config: Gpt2Config, block: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = _Attention(config, block)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = _Mlp(config)

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None,
        visible: Tensor | None,
        dropout: float,
    ) -> Tensor:
        attended = self.attn(self.ln_1(x), cache, visible, dropout)
        x = x + nn.functional.dropout(attended, dropout, self.training)
        fed = self.mlp(self.ln_2(x))
        return x + nn.functional.dropout(fed, dropout, self.training)


class Gpt2(nn.Module):
    """The blocks of GPT-2 with its token embeddings as output layer too.

    Attributes:
        config: its sizes.
        dropout: on embeddings, attention and residuals, in training only.
    """

    def __init__(self, config: Gpt2Config, dropout: float = 0.1) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.positions, config.width)
        self.h = nn.ModuleList(_Block(config, i) for i in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)

    def forward(
        self,
        embeddings: Tensor,
        cache: KeyValueCache | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Runs the blocks over tokens, after those in the cache.

        Args:
            embeddings: (R, T, width) of the new tokens.
            cache: of the tokens before; it takes the new ones in.
            valid: bool (R, all tokens so far), False for padding on the left; None
                means that there is none.

        Returns:
            (R, T, width) after the last norm.
        """
        count = embeddings.shape[1]
        before = 0 if cache is None else cache.length
        visible = None
        if valid is None:
            positions = torch.arange(before, before + count, device=embeddings.device)
        else:
            ordinals = valid.cumsum(dim=1).sub(1).clamp_min(0)
            positions = ordinals[:, before:]
            causal = torch.ones(
                count, before + count, dtype=torch.bool, device=embeddings.device
            ).tril(before)
            # Padding sees itself, since a row with nothing to see is not a number.
            own = torch.eye(before + count, dtype=torch.bool, device=embeddings.device)[
                before:
            ]
            visible = (causal & valid[:, None] | own)[:, None]
        x = embeddings + self.wpe(positions)
        x = nn.functional.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x, cache, visible, self.dropout)
        if cache is not None:
            cache.length += count
        return self.ln_f(x)

    def logits(self, hidden: Tensor, vocabulary: int | None = None) -> Tensor:
        """Scores of the ids below ``vocabulary`` (None: all), (..., ids)."""
        return hidden @ self.wte.weight[:vocabulary].T


class LanguageModel(nn.Module):
    """A GPT-2 under the name that published state dicts hold it by."""

    transformer: Gpt2

    def __init__(self, config: Gpt2Config, dropout: float = 0.1) -> None:
        super().__init__()
        self.transformer = Gpt2(config, dropout)
