"""A similarity run of FiftyOne that understands texts.

FiftyOne's own runs take texts only with models of its zoo. This one embeds them with
the model that the captions were embedded with, so that the App's search by text and
``view.sort_by_similarity("red car", brain_key=...)`` find captions too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fiftyone.brain.internal.core.sklearn import (
    SklearnSimilarity,
    SklearnSimilarityConfig,
    SklearnSimilarityIndex,
)
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.search.appearance import (
    KnownSpace,
    RegionTextEmbedder,
    select_encoder,
)
from fiftyone_regioncap.search.embedding import DEFAULT_MODEL, TextEmbedder, load


class CaptionSimilarityConfig(SklearnSimilarityConfig):
    """The configuration of a similarity run.

    Args:
        text_model: Name of the model that embeds texts; see
            :func:`fiftyone_regioncap.search.embedding.load`.
        region_space: Embedding space of the regions that the run is of; None for a run
            of texts. See :class:`fiftyone_regioncap.captioning.base.EmbeddingSpace`.
        **options: Options of FiftyOne's runs.
    """

    def __init__(
        self,
        text_model: str = DEFAULT_MODEL,
        region_space: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**{**options, "supports_prompts": True})
        self.text_model = text_model
        self.region_space = region_space

    @property
    def method(self) -> str:
        """The backend's name."""
        return "regioncap"


class CaptionSimilarity(SklearnSimilarity):
    """The backend; it is named as its config is, without "Config"."""

    def initialize(self, samples: Any, brain_key: str) -> CaptionSimilarityIndex:
        """Makes an empty index."""
        return CaptionSimilarityIndex(samples, self.config, brain_key, backend=self)


class CaptionSimilarityIndex(SklearnSimilarityIndex):
    """An index that finds captions similar to others, or to a text."""

    _model: _Prompts | None

    def get_model(self) -> _Prompts:
        """Returns the model with the interface that FiftyOne expects."""
        if self._model is None:
            self._model = _Prompts(self._embedder())
        return self._model

    def _embedder(self) -> TextEmbedder | RegionTextEmbedder:
        if self.config.region_space is None:
            return load(self.config.text_model)
        space = EmbeddingSpace(**self.config.region_space)
        known = [KnownSpace(space, self.total_index_size)]
        return RegionTextEmbedder(select_encoder(known, self.key))

    def use(self, embedder: TextEmbedder | RegionTextEmbedder) -> None:
        """Embeds texts with a model that is loaded already."""
        self._model = _Prompts(embedder)
        self._supports_prompts = True


class _Prompts:
    """An embedder with the interface of FiftyOne's models."""

    can_embed_prompts = True

    def __init__(self, embedder: TextEmbedder | RegionTextEmbedder) -> None:
        self._embedder = embedder

    def __enter__(self) -> _Prompts:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def embed_prompt(self, text: str) -> NDArray[np.float32]:
        return self._embedder.embed([text])[0]

    def embed_prompts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._embedder.embed(texts)
