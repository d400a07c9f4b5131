"""CLIP's text tower, and text in the space of the patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiftyone_regioncap.captioning.patchioner.pretrained import load_pretrained
from fiftyone_regioncap.captioning.patchioner.projection import TextProjection
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary

CLIP_REPOSITORY = "openai/clip-vit-base-patch16"
"""The text tower of all Talk2DINO models."""


@dataclass(frozen=True)
class ClipTextEncoder:
    """Embeds texts into CLIP's space or, behind a projection, that of the patches.

    Attributes:
        tower: A ``CLIPTextModelWithProjection`` in eval mode.
        vocabulary: CLIP's vocabulary.
        projection: Projection into the patch space; None stays in CLIP's own.
        batch_size: Texts per pass.
    """

    tower: Any
    vocabulary: ClipVocabulary
    projection: TextProjection | None = None
    batch_size: int = 256

    @classmethod
    def load(
        cls,
        tower: str | Path = CLIP_REPOSITORY,
        projection: TextProjection | None = None,
        vocabulary: ClipVocabulary | None = None,
        device: torch.device | str = "cpu",
    ) -> ClipTextEncoder:
        """Loads the tower from a folder or the hub.

        Args:
            tower: Folder or repository of a CLIP model.
            projection: Projection into the patch space.
            vocabulary: CLIP's vocabulary; None loads the published one.
            device: Device to run on.

        Raises:
            WeightsError: If there is no CLIP model.
        """
        from transformers import CLIPTextModelWithProjection

        model = load_pretrained(CLIPTextModelWithProjection, tower, "CLIP text tower")
        if projection is not None:
            projection = projection.to(device)
        return cls(model.to(device), vocabulary or ClipVocabulary.load(), projection)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Embeds texts.

        Args:
            texts: Any number of texts.
            truncate: Whether to truncate texts of more than 77 tokens.

        Returns:
            float32 (texts, D), not normalized.

        Raises:
            PromptError: If a text has more than 77 tokens and ``truncate`` is false.
        """
        length = int(self.tower.config.max_position_embeddings)
        tokens = self.vocabulary.tokenize(texts, length, truncate=truncate)
        batches = torch.from_numpy(tokens).to(self.tower.device).split(self.batch_size)
        return torch.cat([self._encode(ids) for ids in batches])

    def _encode(self, ids: Tensor) -> Tensor:
        # CLIP reads a text at its end token, which has the highest id; transformers
        # finds it by the configuration, where some checkpoints name another one.
        states = self.tower.text_model(input_ids=ids).last_hidden_state
        rows = torch.arange(len(ids), device=ids.device)
        ends = (ids == self.vocabulary.end_id).int().argmax(dim=1)
        vectors = self.tower.text_projection(states[rows, ends]).float()
        return vectors if self.projection is None else self.projection(vectors)
