"""The vision tower with its adapters, and the projector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.activations import ACT2FN

from fiftyone_regioncap.captioning.dam.config import DAMConfig, EncoderConfig
from fiftyone_regioncap.models.sampling import on_device

LAYER_NORM_EPS = 1e-5
"""Of the projector's norm, fixed by its code; the tower's comes from its config."""


class Attention(nn.Module):
    """Multi-head attention with biases everywhere, from tokens to a context."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        size = config.hidden_size
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(
        self, tokens: Tensor, context: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attends from tokens (B, N, C) to a context (B, M, C).

        Args:
            tokens: Tokens that the queries are computed from, (B, N, C).
            context: Tokens that keys and values are computed from, (B, M, C).
            mask: Attention mask, bool (B, 1, 1, M), False for context to ignore; None
                for no mask.
        """
        attended = scaled_dot_product_attention(
            self._split(self.q_proj(tokens)),
            self._split(self.k_proj(context)),
            self._split(self.v_proj(context)),
            attn_mask=mask,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with the config's activation between them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to the same shape."""
        return self.fc2(self.activation(self.fc1(x)))


class TowerLayer(nn.Module):
    """A SigLIP layer (arXiv 2303.15343)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (B, N, C) to the same shape."""
        normed = self.layer_norm1(x)
        x = x + self.self_attn(normed, normed)
        return x + self.mlp(self.layer_norm2(x))


class Adapter(nn.Module):
    """Gated cross-attention from one view to the other, after a tower layer."""

    def __init__(self, config: EncoderConfig, gated: bool) -> None:
        super().__init__()
        self.cross_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.eps)
        self.gated = gated
        if gated:
            self.attn_factor = nn.Parameter(torch.zeros(1))
            self.mlp_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attends from tokens (B, N, C) to a context, which is not normalized."""
        attended = self.cross_attn(self.layer_norm1(x), context, mask)
        x = x + (self.attn_factor * attended if self.gated else attended)
        processed = self.mlp(self.layer_norm2(x))
        return x + (self.mlp_factor * processed if self.gated else processed)


class Embeddings(nn.Module):
    """Patch embeddings of image and mask with positions."""

    def __init__(self, config: DAMConfig) -> None:
        super().__init__()
        size, patch = config.vision.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, size, patch, stride=patch)
        self.mask_patch_embedding = nn.Conv2d(1, size, patch, stride=patch)
        self.position_embedding = nn.Embedding(config.grid**2, size)

    def forward(self, view: Tensor) -> Tensor:
        """Embeds a view (B, 4, S, S) as tokens (B, N, C), row by row."""
        patches = self.patch_embedding(view[:, :3])
        patches = patches + self.mask_patch_embedding(view[:, 3:])
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight


class Encoder(nn.Module):
    """Stacks the layers of the tower that are used."""

    def __init__(self, config: DAMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TowerLayer(config.vision) for _ in range(config.used_layers)
        )


class VisionTower(nn.Module):
    """The SigLIP tower up to the selected hidden state; the rest has no effect."""

    def __init__(self, config: DAMConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)


class AdapterStack(nn.Module):
    """One adapter for each used layer of the tower."""

    def __init__(self, config: DAMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Adapter(config.vision, config.adapters.gated)
            for _ in range(config.used_layers)
        )


class FocalEncoder(nn.Module):
    """Encodes both views into the tokens of one image (arXiv 2504.16072, section 3).

    The full view goes through the plain tower. The crop goes through the same tower,
    with an adapter after each layer that looks at the full view's tokens. Where both
    views are the same, the adapters are left out.
    """

    def __init__(self, config: DAMConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = VisionTower(config)
        self.adapters = AdapterStack(config)

    def forward(self, views: Tensor, distinct: Tensor | None = None) -> Tensor:
        """Encodes views as the tokens that enter the projector.

        Args:
            views: Normalized views, (B, 8, S, S).
            distinct: Whether the crop differs from the full view, bool (B,) on the CPU;
                None computes it from the views, which synchronizes the device.

        Returns:
            (B, N, C).
        """
        full, crop = views[:, :4], views[:, 4:]
        if distinct is None:
            distinct = (full != crop).flatten(1).any(dim=1).cpu()
        if self.config.adapters.swapped:
            full, crop = crop, full
        if self.config.adapters.always:
            distinct = torch.ones_like(distinct)
        context = self._encode(full)
        if distinct.all():
            return self._encode(crop, context, self._visible(full))
        if not distinct.any():
            return context
        numbers = distinct.nonzero()[:, 0].tolist()
        rows = on_device(numbers, torch.int64, views.device)
        focused = self._encode(crop[rows], context[rows], self._visible(full[rows]))
        return context.index_copy(0, rows, focused)

    def _encode(
        self, view: Tensor, context: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        x = self.tower.embeddings(view)
        for layer, adapter in zip(
            self.tower.encoder.layers, self.adapters.layers, strict=True
        ):
            x = layer(x)
            if context is not None:
                x = adapter(x, context, visible)
        return x

    def _visible(self, context_view: Tensor) -> Tensor | None:
        """Returns the context's attention mask, bool (B, 1, 1, N); None for all."""
        if not self.config.adapters.masked:
            return None
        patch, grid = self.config.patch_size, self.config.grid
        mask = context_view[:, 3, : grid * patch, : grid * patch].float()
        cells = mask.unflatten(2, (grid, patch)).unflatten(1, (grid, patch))
        visible = ((cells + 1) / 2).sum(dim=(2, 4)).flatten(1) >= 1e-5
        # Attention to nothing is not a number: a mask that vanished in resizing hides
        # nothing instead.
        visible = visible | ~visible.any(dim=1, keepdim=True)
        return visible[:, None, None, :]


class Projector(nn.Module):
    """Joins 2 x 2 tokens and maps them into the language model's space."""

    def __init__(self, config: DAMConfig) -> None:
        super().__init__()
        joined, size = 4 * config.vision.hidden_size, config.llm.hidden_size
        self.grid = config.grid
        # Named as in the file, where 0 joins and 3 is the activation.
        self.layers = nn.Sequential(
            nn.Identity(),
            nn.LayerNorm(joined, eps=LAYER_NORM_EPS),
            nn.Linear(joined, size),
            nn.GELU(),
            nn.Linear(size, size),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps tokens (B, N, C) to (B, M, D), column by column of the image."""
        cells = features.unflatten(1, (self.grid, self.grid))
        odd = self.grid % 2
        cells = pad(cells, (0, 0, 0, odd, 0, odd))
        cells = cells.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        # From (B, row pair, row, column pair, column, C).
        joined = cells.permute(0, 3, 1, 2, 4, 5).flatten(3).flatten(1, 2)
        return self.layers(joined)
