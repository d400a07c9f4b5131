"""The text side of a checkpoint: texts among regions, without the image side."""

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
from fiftyone_regioncap.captioning.patchioner.text import TextEncoder


class PatchionerTexts:
    """Places texts where the backbone places regions, through Talk2DINO.

    Backbone, memory and decoder are not loaded, and the text tower only at the first
    text.

    Args:
        checkpoint: with a projection, where the backbone isn't CLIP's own.
        device: of the text tower.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device | str = "cpu"
    ) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._encode: TextEncoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = DEFAULT_REPOSITORY,
        device: torch.device | str | None = None,
    ) -> PatchionerTexts:
        """Finds a checkpoint.

        Args:
            source: a folder with ``config.yaml`` and the files it names, or a hub
                repository.
            device: None takes CUDA where there is one.

        Raises:
            WeightsError: when there is no checkpoint there.
            BackendError: when its backbone is not supported.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(Checkpoint.open(source, files=TEXT_FILES), device)

    @property
    def space(self) -> EmbeddingSpace:
        """Of the regions that the checkpoint's backbone embeds."""
        return self._checkpoint.space

    @property
    def text_fingerprint(self) -> str:
        """Of the text tower and the projection."""
        return self._checkpoint.text_fingerprint

    def embed_text(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: any number.
            truncate: whether to cut those of more than 77 tokens.

        Returns:
            float32 (N, D), unit rows.

        Raises:
            PromptError: when a text has more than 77 tokens and may not be cut.
            WeightsError: when the projection or the text tower is not there.
        """
        if self._encode is None:
            self._encode = self._checkpoint.text_encoder(self._device)
        if not texts:
            return np.zeros((0, self.space.dimension), np.float32)
        vectors = self._encode(texts, truncate=truncate)
        unit = torch.nn.functional.normalize(vectors, dim=1)
        return unit.cpu().numpy()
