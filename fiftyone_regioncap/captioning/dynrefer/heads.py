"""DynRefer's query decoder: each text attends to the region's tokens by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_AT_ONCE = 32_768
"""Regions times texts decoded at a time: 130 MB of hidden units at the published size.

Texts don't see each other, so thousands of names go through in pieces.
"""


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of a query decoder.

    Attributes:
        width: Number of channels of a token.
        hidden: Number of hidden units of a feed-forward block.
        layers: Number of layers.
        heads: Number of attention heads.
        text_width: Number of channels of the text embeddings.
    """

    width: int = 256
    hidden: int = 1024
    layers: int = 2
    heads: int = 4
    text_width: int = 1024


class QueryLayer(nn.Module):
    """Attention to the region's tokens, then a feed-forward block; no self-attention.

    Normalization follows each sum, as in BERT.

    Attributes:
        dropout: Probability of dropout in training, on attention and before each sum.
    """

    dropout = 0.0

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=1e-12)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, texts: Tensor, region: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            texts: Text features, float (S, N, W); (1, N, W) where they are the same for
                all regions.
            region: Region tokens, float (S, Q, W).

        Returns:
            Float (S, N, W).
        """
        attended = F.scaled_dot_product_attention(
            self._split(self.query(texts)).expand(len(region), -1, -1, -1),
            self._split(self.key(region)),
            self._split(self.value(region)),
            dropout_p=self.dropout if self.training else 0.0,
        )
        attended = self.attended(attended.transpose(1, 2).flatten(2))
        texts = self.attended_norm(self._dropped(attended) + texts)
        processed = self.narrow(F.gelu(self.widen(texts)))
        return self.norm(self._dropped(processed) + texts)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class QueryHead(nn.Module):
    """Scores texts for regions.

    Attributes:
        normalize: Whether features have unit length before the last projection.
        temperature: Learned logarithm of the factor on logits, of normalizing heads.
        bias: Learned summand of the logits then.
    """

    def __init__(self, region_width: int, sizes: HeadSizes, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.vision_proj = nn.Linear(region_width, sizes.width)
        self.text_proj = nn.Linear(sizes.text_width, sizes.width)
        self.layers = nn.ModuleList(
            QueryLayer(sizes.width, sizes.hidden, sizes.heads)
            for _ in range(sizes.layers)
        )
        self.fc = nn.Linear(sizes.width, 1)
        if normalize:
            self.temperature = nn.Parameter(torch.zeros(()))
            self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, texts: Tensor) -> Tensor:
        """Returns raw logits, float (S, N).

        Args:
            tokens: Region tokens of the Q-Former, float (S, Q, region width).
            texts: CLIP embeddings of the texts, float (N, text width).
        """
        region = self.vision_proj(tokens)
        at_once = max(1, ROWS_AT_ONCE // max(1, len(tokens)))
        pieces = []
        for piece in texts.split(at_once):
            pieces.append(self.compare(region, self.text_proj(piece)))
        return torch.cat(pieces, dim=1)

    def compare(self, region: Tensor, texts: Tensor) -> Tensor:
        """Returns raw logits, float (S, N), of what both projections made.

        Args:
            region: Projected tokens, float (S, Q, W).
            texts: Projected texts, float (N, W).
        """
        features = texts[None]
        for layer in self.layers:
            features = layer(features, region)
        if self.normalize:
            features = F.normalize(features, dim=-1)
        return self.fc(features).squeeze(-1)

    def match_probability(self, logits: Tensor) -> Tensor:
        """Returns the match probability of a text, as a normalizing head was trained.

        Training put the logits through the learned temperature and bias; the authors'
        inference leaves both out, which keeps the order but squeezes the scores.
        """
        return torch.sigmoid(logits.float() * self.temperature.exp() + self.bias)
