"""Talk2DINO: from CLIP's text features into DINO's patch space (Barsellotti 2024)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import load_strict, read_tensors
from fiftyone_regioncap.system import assets

PUBLISHED_SHA256 = "5db3e85d"
"""Start of the SHA-256 of the projection of the published memories and decoders.

Its authors replaced the file under the same name on 2025-07-22; the vectors of the two
files differ too much (cosine of the weights 0.63 to 0.87) to be mixed.
"""

REPLACED_SHA256 = "5f6efcc5"
"""Start of the SHA-256 of the file that replaced the published one."""

Activation: TypeAlias = Literal["tanh", "relu", "sigmoid"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


class TextProjection(nn.Module):
    """A linear layer, then hidden layers with the activation before each.

    Text features go in as CLIP gives them, not normalized: their length matters.
    """

    def __init__(
        self,
        text_width: int,
        patch_width: int,
        hidden: int = 1,
        activation: Activation | None = "tanh",
    ) -> None:
        """Makes a projection with random weights.

        Args:
            text_width: Number of channels of the text features; 512 for CLIP's base
                models.
            patch_width: Number of channels of the patch features; 768 for DINOv2's base
                model.
            hidden: Number of layers after the first.
            activation: Before each hidden layer; None for none.
        """
        super().__init__()
        self.linear_layer = nn.Linear(text_width, patch_width)
        self.hidden_layers = nn.ModuleList(
            nn.Linear(patch_width, patch_width) for _ in range(hidden)
        )
        self.activation = activation

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Tensor],
        activation: Activation | None = "tanh",
        source: str = "the projection",
    ) -> TextProjection:
        """Builds the projection that a published state dict is of.

        Args:
            state: ``linear_layer.*`` and ``hidden_layers.{i}.*``; ``linear_layer2.*``
                is an older name of ``hidden_layers.0.*``.
            activation: Activation before each hidden layer.
            source: Source of the state dict, for messages.

        Raises:
            WeightsError: If the names are others.
        """
        renamed = {
            name.replace("linear_layer2.", "hidden_layers.0."): value
            for name, value in state.items()
        }
        first = renamed.get("linear_layer.weight")
        if first is None or first.ndim != 2:
            raise WeightsError(
                f"no 'linear_layer.weight' among the weights of {source} "
                f"({sorted(state)[:4]} ...); give a Talk2DINO projection file"
            )
        hidden = sum(
            name.startswith("hidden_layers.") and name.endswith(".weight")
            for name in renamed
        )
        patch_width, text_width = first.shape
        with torch.device("meta"):
            projection = cls(text_width, patch_width, hidden, activation)
        load_strict(projection, renamed.items(), source)
        return projection

    @classmethod
    def load(
        cls, path: str | Path, activation: Activation | None = "tanh"
    ) -> TextProjection:
        """Loads a ``.pth`` file, with a warning when it is not the published one.

        Args:
            path: Path of the file.
            activation: Activation before each hidden layer.

        Raises:
            WeightsError: If the file cannot be read or is something else.
        """
        path = Path(path)
        state = dict(read_tensors(path))
        digest = assets.sha256(path)
        if digest.startswith(REPLACED_SHA256):
            warnings.warn(
                f"{path.name} is the file that replaced the published one on "
                "2025-07-22: text from it does not match the published memories and "
                f"decoders. Use the older file (sha256 {PUBLISHED_SHA256}...).",
                stacklevel=2,
            )
        elif path.name == "vitb_mlp_infonce.pth" and not digest.startswith(
            PUBLISHED_SHA256
        ):
            warnings.warn(
                f"{path.name} (sha256 {digest[:8]}...) is not the published projection "
                f"({PUBLISHED_SHA256}...): use it only with a memory and a decoder "
                "made with it.",
                stacklevel=2,
            )
        return cls.from_state_dict(state, activation, str(path))

    def forward(self, text: Tensor) -> Tensor:
        """Projects text features (N, text_width) to float (N, patch_width)."""
        vectors = self.linear_layer(text.to(self.linear_layer.weight.dtype))
        for layer in self.hidden_layers:
            if self.activation is not None:
                vectors = _ACTIVATIONS[self.activation](vectors)
            vectors = layer(vectors)
        return vectors

    def invert_linear(self, vectors: Tensor) -> Tensor:
        """Takes patch-space vectors (N, patch_width) back through the first layer.

        By the pseudo-inverse; exact only for projections without hidden layers.

        Returns:
            (N, text_width).
        """
        inverse = torch.linalg.pinv(self.linear_layer.weight, rtol=1e-10)
        return (vectors - self.linear_layer.bias) @ inverse.T
