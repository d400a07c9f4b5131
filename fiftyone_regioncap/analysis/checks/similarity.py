"""Compares captions with the images of their regions, by an image-text model.

The regions' embeddings are those that a captioner left with its captions; the text
encoder of the same model embeds the captions among them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import fiftyone.core.collections as foco
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import TextEncoder
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.search.appearance import RegionTextEmbedder, select_encoder
from fiftyone_regioncap.search.results import known_spaces, open_index, rows_in

ATTRIBUTE = "image_text_similarity"
"""Attribute of the labels: cosine of caption and region, larger for better captions."""

OTHERS = 1000
"""Greatest number of captions that each region is compared with."""

FEWEST_OTHERS = 10
"""Least number of other captions that a rank among them is given for."""

_CHUNK = 1024


@dataclass(frozen=True)
class Fit:
    """Scores of how well a caption fits its region.

    Attributes:
        id: Id of the label.
        cosine: Cosine of caption and region, in [-1, 1]; what is high depends on the
            model.
        beaten: Share of other captions that fit the region better, in [0, 1]; None
            where there are too few others to tell.
    """

    id: str
    cosine: float
    beaten: float | None


def fits(
    captions: CaptionField,
    samples: foco.SampleCollection,
    *,
    model: str | TextEncoder | None = None,
    device: str | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Iterator[Fit]:
    """Compares captions with their regions, and regions with other captions.

    Texts are embedded once, and kept with the search index.

    Args:
        captions: The field.
        samples: The dataset, or a view of it.
        model: Folder or hub id of a captioner, or its text encoder; None for the one
            that most regions were embedded by.
        device: Device such as ``"cuda"``; None for the best there is.
        listener: Called with progress events while captions are embedded.
        cancel: Set it to stop embedding.

    Yields:
        One for each caption in the view whose region was embedded by that model.

    Raises:
        FieldError: If the field holds no embeddings.
        BackendError: If the model isn't at hand, or isn't the one that made them.
    """
    index = open_index(captions)
    known = known_spaces(captions, index)
    encoder = select_encoder(known, captions.name, model, device)
    regions = index.regions.store(encoder.space)
    embedder = RegionTextEmbedder(encoder, truncate=True)
    texts = index.embed(embedder, listener, cancel)
    current = index.catalog.hashes()
    embedded = np.flatnonzero(regions.hashes(len(current))[: len(current)])
    rows = np.intersect1d(embedded, rows_in(captions, samples, index))
    others = texts.get(_some_texts(current))
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        seen = regions.get(part)
        cosines = np.einsum("nd,nd->n", seen, texts.get(part))
        better = seen @ others.T > cosines[:, None] + 1e-4  # not the caption itself
        enough = len(others) > FEWEST_OTHERS
        entries = index.catalog.entries(part.tolist())
        for row, cosine, share in zip(part, cosines, better.mean(axis=1), strict=True):
            beaten = float(share) if enough else None
            yield Fit(entries[int(row)].id, float(cosine), beaten)


def _some_texts(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of some captions that differ; the same ones for the same captions."""
    _, rows = np.unique(hashes, return_index=True)
    rows = rows[hashes[rows] != 0]
    if len(rows) > OTHERS:
        rows = np.random.default_rng(0).choice(rows, OTHERS, replace=False)
    return np.sort(rows)
