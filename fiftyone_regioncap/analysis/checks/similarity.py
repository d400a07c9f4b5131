"""Captions against how their regions look, by an image-text model.

The regions' embeddings are those that a captioner left with its captions; the text side
of the same model says where the captions lie among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import fiftyone.core.collections as foco
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import TextEncoder
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.search import appearance as looks
from fiftyone_regioncap.search.appearance import RegionTexts
from fiftyone_regioncap.search.results import known_spaces, open_index, rows_in
from fiftyone_regioncap.search.source import FieldSource

ATTRIBUTE = "image_text_similarity"
"""Attribute of the labels: cosine of caption and region, larger for better ones."""

OTHERS = 1000
"""Captions that each region is compared with at most."""

FEWEST_OTHERS = 10
"""Fewer say nothing of how well a caption fits."""

_CHUNK = 1024


@dataclass(frozen=True)
class Fit:
    """How well a caption fits its region.

    Attributes:
        id: of the label.
        cosine: of caption and region, in [-1, 1]. What is high depends on the model.
        beaten: share of other captions that fit the region better, in [0, 1]; None
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
    progress: bool = False,
) -> Iterator[Fit]:
    """Compares captions with their regions, and regions with other captions.

    Texts are embedded once, and kept with the search index.

    Args:
        captions: the field.
        samples: the dataset, or a view of it.
        model: whose text side is taken: a folder, a hub id, or one of your own; None
            for the one that most regions were embedded by.
        device: None for the best there is.
        progress: whether to draw a bar while captions are embedded.

    Yields:
        one for each caption in the view whose region was embedded by that model.

    Raises:
        FieldError: when the field holds no embeddings.
        BackendError: when the model isn't at hand, or isn't the one that made them.
    """
    index = open_index(captions)
    index.update(FieldSource(captions))
    known = known_spaces(captions, index)
    encoder = looks.choose(known, captions.name, model, device)
    regions = index.looks.store(encoder.space)
    texts = index.embed(RegionTexts(encoder, truncate=True), progress=progress)
    current = index.catalog.hashes()
    there = np.flatnonzero(regions.hashes(len(current))[: len(current)])
    wanted = rows_in(captions, samples, index)
    rows = there if wanted is None else np.intersect1d(there, wanted)
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
    """Rows of some captions that differ, the same for the same captions."""
    _, rows = np.unique(hashes, return_index=True)
    rows = rows[hashes[rows] != 0]
    if len(rows) > OTHERS:
        rows = np.random.default_rng(0).choice(rows, OTHERS, replace=False)
    return np.sort(rows)
