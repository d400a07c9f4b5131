"""The text side of a checkpoint: embeds texts, without the image side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.captioning.patchioner.checkpoint import (
    DEFAULT_REPOSITORY,
    TEXT_FILES,
    Checkpoint,
)
from fiftyone_regioncap.captioning.patchioner.text import ClipTextEncoder
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.devices import choose_device


class PatchionerTexts:
    """Embeds texts into the space of the backbone's regions, through Talk2DINO.

    Backbone, memory and decoder are not loaded, and the text tower only at the first
    text.

    Args:
        checkpoint: A checkpoint with a projection, where the backbone isn't CLIP's own;
            None for a captioner that cannot embed texts.
        device: Device of the text tower.
    """

    def __init__(
        self, checkpoint: Checkpoint | None, device: torch.device | str = "cpu"
    ) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._encode: ClipTextEncoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = DEFAULT_REPOSITORY,
        device: torch.device | str | None = None,
    ) -> PatchionerTexts:
        """Finds a checkpoint.

        Args:
            weights: A folder with ``config.yaml`` and the files it names, or a hub
                repository.
            device: Device of the text tower; None for a GPU where there is one.

        Raises:
            WeightsError: If there is no checkpoint.
            BackendError: If its backbone is not supported.
        """
        checkpoint = Checkpoint.open(weights, files=TEXT_FILES)
        return PatchionerTexts(checkpoint, choose_device(device))

    @property
    def checkpoint(self) -> Checkpoint:
        """Returns the checkpoint of the text tower.

        Raises:
            BackendError: If there is none.
        """
        if self._checkpoint is None:
            raise BackendError(
                "this captioner has no text tower; load it by from_pretrained"
            )
        return self._checkpoint

    @property
    def space(self) -> EmbeddingSpace:
        """Returns the embedding space, which texts and regions share."""
        return self.checkpoint.space

    @property
    def text_fingerprint(self) -> str:
        """Identifies the text tower and the projection."""
        return self.checkpoint.text_fingerprint

    def embed_text(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: Any number of texts.
            truncate: Whether to truncate texts of more than 77 tokens.

        Returns:
            Unit vectors, float32 (N, D).

        Raises:
            PromptError: If a text has more than 77 tokens and ``truncate`` is false.
            WeightsError: If the projection or the text tower is missing.
        """
        if self._encode is None:
            self._encode = self.checkpoint.text_encoder(self._device)
        if not texts:
            return np.zeros((0, self.space.dimension), np.float32)
        vectors = self._encode(texts, truncate=truncate)
        return torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()
