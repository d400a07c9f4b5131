"""Stores region embeddings on labels.

They are a ``VectorField`` of the label: they go where the label goes (clones, merges,
exports, clips), and the App's server leaves vector fields out of what it sends. Half
precision moves cosines by less than 0.001, and takes half the room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import fiftyone as fo
import fiftyone.core.utils as fou
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray
from pymongo.errors import DocumentTooLarge, OperationFailure

from fiftyone_regioncap.captioning.base import EmbeddingSpace
from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.generated import write_through
from fiftyone_regioncap.dataset.store import Document, Store, is_too_large

VECTOR = "region_embedding"
"""Attribute with the vector."""

MODEL = "region_embedding_model"
"""Attribute with the captioner and where it is loaded from, ``"patchioner:<path>"``."""

REVISION = "region_embedding_revision"
"""Attribute with the fingerprint of what made the vector."""

ATTRIBUTES: dict[str, type] = {
    VECTOR: fo.VectorField,
    MODEL: fo.StringField,
    REVISION: fo.StringField,
}
"""The attributes and their field types."""


@dataclass(frozen=True)
class RegionEmbedding:
    """Embedding of a region, as it is stored.

    Attributes:
        data: Vector as FiftyOne stores it.
        model: Captioner and the source of its weights, joined by a colon.
        revision: Fingerprint of the model that made the vector.
    """

    data: bytes
    model: str
    revision: str

    @classmethod
    def of(
        cls, vector: NDArray[np.float32] | None, space: EmbeddingSpace | None
    ) -> RegionEmbedding | None:
        """Packs a vector; None where there is none, or its space is unknown.

        Args:
            vector: Unit vector, (D,); None for none.
            space: Embedding space of the vector; None when unknown.
        """
        if vector is None or space is None or not np.isfinite(vector).all():
            return None
        data = fou.serialize_numpy_array(np.asarray(vector, np.float16))
        return cls(data, f"{space.captioner}:{space.model}", space.fingerprint)

    @classmethod
    def read(cls, label: Document) -> RegionEmbedding | None:
        """Reads a label's embedding; None where it has none, or of an unknown model."""
        data, model, revision = (label.get(name) for name in ATTRIBUTES)
        if data is None or not model or not revision:
            return None
        return cls(data, model, revision)

    def to_document(self) -> Document:
        """Returns the label's attributes."""
        return {VECTOR: self.data, MODEL: self.model, REVISION: self.revision}

    def vector(self) -> NDArray[np.float32]:
        """Returns the vector, float32 (D,)."""
        return np.asarray(fou.deserialize_numpy_array(self.data), np.float32)


def write_embeddings(
    sample: fo.Sample | fo.SampleView,
    labels: str,
    embeddings: Mapping[str, RegionEmbedding],
) -> None:
    """Writes region embeddings onto labels, and touches nothing else of them.

    The attributes have to be declared before.

    Args:
        sample: Sample of a dataset.
        labels: Path of the labels in its document, such as ``"captions.detections"``
            for a list, or ``"region"`` for a single label.
        embeddings: Embeddings by label id.

    Raises:
        FieldError: When they don't fit into one document of the database.
    """
    if not embeddings:
        return
    single = "." not in labels
    values: Document = {}
    filters: list[Document] = []
    for number, (label_id, embedding) in enumerate(embeddings.items()):
        path = labels if single else f"{labels}.$[l{number}]"
        for name, value in embedding.to_document().items():
            values[f"{path}.{name}"] = value
        filters.append({f"l{number}._id": ObjectId(label_id)})
    try:
        Store.of(sample).write_sample(values, None if single else filters)
        write_through(sample, labels.partition(".")[0])
    except (OperationFailure, DocumentTooLarge) as error:
        if not is_too_large(error):
            raise
        raise FieldError(
            "the captions of this sample don't fit into one document of MongoDB (16 "
            "MB) with region embeddings; caption longer windows"
        ) from error


def space_of(model: str, revision: str, dimension: int) -> EmbeddingSpace:
    """Returns the space that a label's attributes name."""
    captioner, _, source = model.partition(":")
    return EmbeddingSpace(captioner, source, revision, dimension)


def vectors_of(embeddings: Sequence[RegionEmbedding]) -> NDArray[np.float32]:
    """Returns unit vectors, float32 (N, D)."""
    vectors = np.stack([embedding.vector() for embedding in embeddings])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
