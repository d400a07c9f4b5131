"""Searches a dataset or a view, and returns the results as a view."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.view as fov
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import TextEncoder
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import caches
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.search import embedding
from fiftyone_regioncap.search.appearance import (
    KnownSpace,
    RegionTextEmbedder,
    note_on_others,
    select_encoder,
)
from fiftyone_regioncap.search.embedding import DEFAULT_MODEL, TextEmbedder
from fiftyone_regioncap.search.index import (
    INDEXES,
    CaptionIndex,
    Hit,
    Mode,
    index_folder,
)
from fiftyone_regioncap.search.options import SearchOptions
from fiftyone_regioncap.search.query import QueryError
from fiftyone_regioncap.search.source import FieldSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResults:
    """The captions that a search found, best first.

    Attributes:
        query: The query.
        mode: Mode of the search.
        captions: The field that they are in.
        hits: The captions.
        note: Note on what wasn't possible, and how to make it so; None when all was.
        exact: Ids of those that have a word of the query; others are only near to it.
    """

    query: str
    mode: Mode
    captions: CaptionField
    hits: tuple[Hit, ...]
    note: str | None = None
    exact: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.hits)

    def view(self, score_field: str | None = None) -> fov.DatasetView:
        """Shows the captions as clips of videos or patches of images, in order.

        Args:
            score_field: Attribute of the labels to write the scores to, so that the
                App shows them; None to write nothing.

        Raises:
            FieldError: If the attribute's name is not valid.
        """
        if score_field is not None:
            scores = {hit.id: hit.score for hit in self.hits}
            self.captions.write(score_field, scores, fo.FloatField)
        return self.captions.view([hit.id for hit in self.hits])

    def tally(self) -> str:
        """Returns how many have the words of the query, and how many are only near."""
        exact = sum(hit.id in self.exact for hit in self.hits)
        near = len(self.hits) - exact
        words = f"{exact:,} with words of the query"
        if self.mode == "text" or not near:
            return words if exact else "nothing found"
        kind = "looks" if self.mode == "visual" else "meaning"
        return f"{words}, {near:,} near in {kind}"

    def to_markdown(self) -> str:
        """Returns the captions with their scores and files, as Markdown."""
        dataset = self.captions.dataset
        paths = dict(zip(*dataset.values(["id", "filepath"]), strict=True))
        lines = [
            f"{rank}. {hit.score:.3f} {escape(paths.get(hit.sample_id, ''))}: "
            + escape(hit.caption)
            for rank, hit in enumerate(self.hits, start=1)
        ]
        note = [] if self.note is None else [f"note: {escape(self.note)}"]
        return "\n".join([*(lines or ["nothing found"]), *note])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "query": self.query,
            "mode": self.mode,
            "field": self.captions.name,
            "note": self.note,
            "hits": [
                {**asdict(hit), "exact": hit.id in self.exact} for hit in self.hits
            ],
        }


def search(
    samples: foco.SampleCollection,
    options: SearchOptions,
    *,
    model: TextEmbedder | TextEncoder | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> SearchResults:
    """Finds captions by words, by meaning, and by the images of their regions.

    The first search of a field indexes its captions; later ones read only what changed
    since. The index lies in the cache folder and can be deleted.

    Args:
        samples: A dataset or a view; only what is in it is found.
        options: Options of the search.
        model: Loaded model to use in place of the one that ``options`` name: of
            sentences, or for ``"visual"`` the text encoder of a captioner.
        listener: Called with progress events while captions are embedded.
        cancel: Set it to stop embedding.

    Returns:
        The captions, best first; ``.view()`` shows them.

    Raises:
        FieldError: If the field is absent or can't have captions, or holds no region
            embeddings and they are asked for.
        QueryError: If the query searches for nothing.
        BackendError: If search by meaning or looks is asked for and the model can't be
            loaded, or isn't the one that embedded the regions.
        PromptError: If the query is too long for a search by looks.
    """
    captions = CaptionField.of(samples, options.captions)
    given = options.model if model is None else model
    note = None
    if options.mode == "auto":
        named = DEFAULT_MODEL if given is None else given
        note = embedding.missing(named) if isinstance(named, str) else None
        if note is not None:
            logger.warning("%s", note)
        mode: Mode = "hybrid" if note is None else "text"
    else:
        mode = options.mode
    index = open_index(captions)
    embedder: TextEmbedder | RegionTextEmbedder | None = None
    if mode == "visual":
        known = known_spaces(captions, index)
        encoder = select_encoder(
            known, captions.name, region_model(given), options.device
        )
        embedder = RegionTextEmbedder(encoder)
        note = note_on_others(known, encoder.space)
    elif mode != "text":
        embedder = text_embedder(given, options.device)
        index.embed(embedder, listener, cancel)
    wanted = captions.ids_in(samples)
    hits = index.search(
        options.query, options.k, mode=mode, embedder=embedder, ids=wanted
    )
    worded = hits
    if mode != "text":
        worded = []
        with suppress(QueryError):  # one that only excludes
            worded = index.search(options.query, len(index), mode="text", ids=wanted)
    exact = frozenset(hit.id for hit in worded)
    results = SearchResults(options.query, mode, captions, tuple(hits), note, exact)
    if options.save is not None:
        view = view_of(results, options)
        captions.dataset.save_view(options.save, view, overwrite=True)
    return results


def view_of(results: SearchResults, options: SearchOptions) -> fov.DatasetView:
    """Returns the view of what a search found, as its options want it."""
    view = results.view(options.score_field)
    return results.captions.alone(view) if options.alone and results.hits else view


def open_index(captions: CaptionField) -> CaptionIndex:
    """Opens the index of a field and updates it.

    It is opened once in a process, unless somebody deletes its folder.
    """
    folder = index_folder(captions.dataset, captions.name)
    if _opened(folder).deleted:
        _opened.cache_clear()
    index = _opened(folder)
    index.update(FieldSource(captions))
    return index


@lru_cache(maxsize=32)
def _opened(folder: Path) -> CaptionIndex:
    if not folder.exists():
        caches.remove_abandoned(INDEXES)
    return CaptionIndex(folder)


def known_spaces(captions: CaptionField, index: CaptionIndex) -> list[KnownSpace]:
    """Lists the models whose region embeddings a field holds, most regions first.

    Args:
        captions: The field.
        index: Index of the field, whose region embeddings are updated.
    """
    index.update_regions(FieldSource(captions))
    return index.regions.spaces()


def rows_in(
    captions: CaptionField, samples: foco.SampleCollection, index: CaptionIndex
) -> NDArray[np.int64]:
    """Returns the rows of a view's captions, in order."""
    wanted = captions.ids_in(samples)
    if wanted is None:
        return np.flatnonzero(index.catalog.hashes())
    return np.array(sorted(index.catalog.rows_of(wanted).values()), np.int64)


def text_embedder(
    model: str | TextEmbedder | TextEncoder | None, device: str | None
) -> TextEmbedder:
    """Returns the sentence model that ``model`` stands for; None for the default.

    Raises:
        BackendError: If it can't be loaded, or is the text encoder of a captioner.
    """
    if model is None or isinstance(model, str):
        return embedding.load(model or DEFAULT_MODEL, device)
    if not isinstance(model, TextEmbedder):
        raise BackendError(
            "this model embeds texts among regions; search with mode='visual', or give "
            "a model of sentences"
        )
    return model


def region_model(
    model: str | TextEmbedder | TextEncoder | None,
) -> str | TextEncoder | None:
    """Returns the region model that ``model`` names; None for that of the embeddings.

    Raises:
        BackendError: If it is a sentence model.
    """
    if model is None or isinstance(model, str | TextEncoder):
        return model
    raise BackendError(
        "this model embeds sentences, and can't be compared with regions; give the "
        "captioner that embedded them, or leave model out"
    )
