"""Maps of captions: one point a track or region, near for what is alike.

Captions are embedded once (see :mod:`fiftyone_regioncap.search`), or taken by how their
regions look, and laid out in the plane, so that FiftyOne's Embeddings panel shows them.
Near-duplicates, outliers and groups are written onto the labels.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.analysis.facets import facets_of, save_views
from fiftyone_regioncap.analysis.vocabulary import STOPWORDS
from fiftyone_regioncap.captioning.base import TextEncoder
from fiftyone_regioncap.core.errors import BackendError, FieldError
from fiftyone_regioncap.core.markdown import code, escape
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.fields import require_output
from fiftyone_regioncap.dataset.runs import record_run
from fiftyone_regioncap.search import appearance as looks
from fiftyone_regioncap.search.appearance import RegionTexts
from fiftyone_regioncap.search.embedding import TextEmbedder
from fiftyone_regioncap.search.index import CaptionIndex
from fiftyone_regioncap.search.results import (
    known_spaces,
    open_index,
    region_encoder,
    rows_in,
    text_embedder,
)
from fiftyone_regioncap.search.similarity import CaptionSimilarityConfig
from fiftyone_regioncap.search.source import FieldSource
from fiftyone_regioncap.visualization import caption_map

Layout: TypeAlias = Literal["umap", "pca"]

Space: TypeAlias = Literal["text", "visual"]
"""What makes captions alike: what they say, or how their regions look."""

DUPLICATE = 0.95
"""Cosine similarity from which two captions say, or regions look, nearly the same."""

NEIGHBORS = 10
"""Nearest captions that an outlier is far from on average."""

MOST_CLUSTERS = 50

_ALIKE: dict[Space, str] = {"text": "say", "visual": "look"}

_FEWEST_FOR_UMAP = 10  # fewer points have no neighborhoods to keep
_LAYOUT_FIT = 50_000  # points that UMAP is fitted to; the others are put among them
_CHUNK = 1024
_TERMS = 3
_DISTINCTIVE = 1.5  # times as often as elsewhere a term is said of what it names


@dataclass(frozen=True)
class MapSummary:
    """What was made.

    Attributes:
        captions: how many are on the map.
        layout: how they were laid out.
        space: what makes them alike.
        key: of the brain runs, ``<key>`` for the map and ``<key>_similarity``.
        clusters: captions by the name of their group, the largest first.
        duplicates: captions that say (or regions that look) nearly the same as one
            before them.
        view: name of the saved view that the map is of.
        notes: what was done another way than asked for, and why.
    """

    captions: int
    layout: Layout
    space: Space
    key: str
    clusters: dict[str, int]
    duplicates: int
    view: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A few lines for people."""
        lines = [
            f"**{self.captions}** captions on the map {code(self.key)}: load the view "
            f"{code(self.view)} and open the Embeddings panel",
            f"- {self.duplicates} {_ALIKE[self.space]} nearly the same as another",
            *(f"- {n} of group {escape(name)}" for name, n in self.clusters.items()),
            *(f"- {escape(note)}" for note in self.notes),
        ]
        return "\n".join(lines)


def embed_captions(
    samples: foco.SampleCollection,
    field: str = "captions",
    *,
    space: Space = "text",
    layout: Layout = "umap",
    key: str | None = None,
    clusters: int | None = None,
    duplicate: float = DUPLICATE,
    model: str | TextEmbedder | TextEncoder | None = None,
    device: str | None = None,
    progress: bool = True,
) -> MapSummary:
    """Puts captions on a map and finds duplicates, outliers and groups.

    Labels get ``duplicate_of``, the id of a caption before them that says nearly the
    same; ``outlier``, one minus the mean similarity to the nearest captions; and
    ``cluster``, the name of their group. In the visual space the attributes begin with
    ``visual_`` and tell of the regions' looks; groups are still named by what their
    captions speak of. The map is a brain run on clips of the tracks (videos) or on the
    regions (images), beside a similarity run for sorting by likeness; earlier runs of
    the same key are replaced.

    Args:
        samples: a dataset or a view.
        field: of the captions.
        space: ``"text"``, or ``"visual"`` for the region embeddings that a captioner
            such as Patch-ioner left with its captions.
        layout: ``"umap"``, or ``"pca"``, which is exact and faster, and shows less.
        key: of the brain run; None for ``<field>_map`` or ``<field>_visual_map``.
        clusters: how many groups; None for a number that grows with the captions.
        duplicate: cosine similarity from which captions say nearly the same.
        model: see :func:`fiftyone_regioncap.search.search`; in the visual space it only
            lets the similarity run take texts, and the map is made without it too.
        device: such as ``"cuda"``; None for the best there is.
        progress: whether to draw a bar while captions are embedded.

    Raises:
        FieldError: when the field is absent, can't have captions, or has fewer than
            two (with region embeddings, in the visual space).
        BackendError: when the model of texts can't be loaded.
    """
    captions = CaptionField.of(samples, field)
    prefix = "" if space == "text" else "visual_"
    key = require_output(key or f"{field}_{prefix}map")
    notes: list[str] = []
    source = _looks if space == "visual" else _texts
    found = source(captions, samples, model, device, progress, notes)
    ids, texts, vectors = found.ids, found.texts, found.vectors
    if len(ids) < 2:
        raise FieldError(
            f"{field} has {len(ids)} captions for this map, which needs at least two. "
            "Caption some tracks first"
        )
    if layout == "umap" and len(ids) < _FEWEST_FOR_UMAP:
        layout = "pca"
        notes.append(f"laid out by PCA: {len(ids)} captions are too few for UMAP")
    elif layout == "umap" and importlib.util.find_spec("umap") is None:
        layout = "pca"
        notes.append(
            "laid out by PCA; for UMAP, run `pip install 'fiftyone-regioncap[maps]'`"
        )
    near = list(_neighbors(vectors, min(NEIGHBORS, len(ids) - 1)))
    doubles = _duplicates(near, duplicate)
    groups = _clusters(vectors, clusters or _cluster_count(len(ids)))
    names = _names(groups, texts)
    of = {label_id: names[g] for label_id, g in zip(ids, groups, strict=True)}
    distances = [1 - float(similarity.mean()) for _, similarity in near]
    captions.write(
        f"{prefix}duplicate_of",
        {
            label_id: None if place not in doubles else ids[doubles[place]]
            for place, label_id in enumerate(ids)
        },
        fo.StringField,
    )
    outliers = dict(zip(ids, distances, strict=True))
    captions.write(f"{prefix}outlier", outliers, fo.FloatField)
    captions.write(f"{prefix}cluster", of, fo.StringField)
    saved = f"{field}: {prefix.replace('_', ' ')}map"
    _map(captions, samples, found, _points(vectors, layout), key, saved)
    list(save_views(captions))
    record_run(
        captions.dataset,
        f"{key}_texts",
        {"field": field, "space": space, "layout": layout, **found.model},
        {"captions": len(ids)},
    )
    return MapSummary(
        captions=len(ids),
        layout=layout,
        space=space,
        key=key,
        clusters=dict(Counter(of.values()).most_common()),
        duplicates=len(doubles),
        view=saved,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Points:
    """What goes on a map, in the order of rows.

    Attributes:
        ids: of the labels.
        texts: their captions.
        vectors: of length 1.
        model: whose vectors they are, as the similarity run keeps it.
        embedder: puts texts among them; None where it isn't at hand.
    """

    ids: list[str]
    texts: list[str]
    vectors: NDArray[np.float32]
    model: dict[str, Any]
    embedder: TextEmbedder | RegionTexts | None


def _texts(
    captions: CaptionField,
    samples: foco.SampleCollection,
    model: str | TextEmbedder | TextEncoder | None,
    device: str | None,
    progress: bool,
    notes: list[str],
) -> _Points:
    """The captions' texts."""
    embedder = text_embedder(model, device)
    index = open_index(captions)
    index.update(FieldSource(captions))
    store = index.embed(embedder, progress=progress)
    rows = rows_in(captions, samples, index)
    rows = np.flatnonzero(index.catalog.hashes()) if rows is None else rows
    ids, texts = _entries(index, rows)
    named = {"text_model": embedder.name}
    return _Points(ids, texts, store.get(rows), named, embedder)


def _looks(
    captions: CaptionField,
    samples: foco.SampleCollection,
    model: str | TextEmbedder | TextEncoder | None,
    device: str | None,
    progress: bool,
    notes: list[str],
) -> _Points:
    """The regions' embeddings, of one model."""
    index = open_index(captions)
    index.update(FieldSource(captions))
    known = known_spaces(captions, index)
    chosen = region_encoder(model)
    try:
        encoder = looks.choose(known, captions.name, chosen, device)
    except BackendError as error:
        if chosen is not None:
            raise
        notes.append(f"the map takes no texts here: {error}")
        space, embedder = known[0].space, None
    else:
        space, embedder = encoder.space, RegionTexts(encoder)
    left = looks.others(known, space)
    notes += [] if left is None else [left]
    store = index.looks.store(space)
    there = store.hashes(index.catalog.rows) != 0
    rows = rows_in(captions, samples, index)
    rows = np.flatnonzero(there) if rows is None else rows[there[rows]]
    ids, texts = _entries(index, rows)
    return _Points(
        ids, texts, store.get(rows), {"region_space": asdict(space)}, embedder
    )


def _entries(
    index: CaptionIndex, rows: NDArray[np.int64]
) -> tuple[list[str], list[str]]:
    """Label ids and captions of rows."""
    entries = index.catalog.entries(rows.tolist())
    found = [entries[row] for row in rows.tolist()]
    return [entry.id for entry in found], [entry.caption for entry in found]


def _neighbors(
    vectors: NDArray[np.float32], k: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The nearest others of each vector, the nearest first, and their similarities."""
    for start in range(0, len(vectors), _CHUNK):
        similarity = vectors[start : start + _CHUNK] @ vectors.T
        rows = np.arange(len(similarity))
        similarity[rows, rows + start] = -np.inf
        near = np.argpartition(similarity, -k, axis=1)[:, -k:]
        values = np.take_along_axis(similarity, near, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        yield from zip(
            np.take_along_axis(near, order, axis=1),
            np.take_along_axis(values, order, axis=1),
            strict=True,
        )


def _duplicates(
    near: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], least: float
) -> dict[int, int]:
    """By place, the first caption of the chain of near-duplicates that it ends."""
    first: dict[int, int] = {}
    for place, (others, similarities) in enumerate(near):
        before = [
            int(other)
            for other, similarity in zip(others, similarities, strict=True)
            if similarity >= least and other < place
        ]
        if before:
            first[place] = min(first.get(other, other) for other in before)
    return first


def _cluster_count(captions: int) -> int:
    return int(np.clip(round(math.sqrt(captions / 2)), 1, MOST_CLUSTERS))


def _clusters(vectors: NDArray[np.float32], count: int) -> list[int]:
    """The group of each vector: spherical k-means, the same for the same vectors."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    method = KMeans if len(vectors) <= 10_000 else MiniBatchKMeans
    count = min(count, len(np.unique(vectors.round(5), axis=0)))
    return method(count, n_init=3, random_state=0).fit_predict(vectors).tolist()


def _names(groups: Sequence[int], texts: Sequence[str]) -> dict[int, str]:
    """A name for each group: what its captions speak of more than the others do."""
    spoken: dict[int, Counter[str]] = {group: Counter() for group in set(groups)}
    total: Counter[str] = Counter()
    for group, text in zip(groups, texts, strict=True):
        terms = _terms(text)
        spoken[group].update(terms)
        total.update(terms)
    sizes = Counter(groups)
    names: dict[int, str] = {}
    for group, counts in spoken.items():
        shares = {term: count / sizes[group] for term, count in counts.items()}
        ratios = {
            term: share
            / ((total[term] - counts[term] + 1) / (len(texts) - sizes[group] + 2))
            for term, share in shares.items()
        }
        # What all groups speak of tells nothing, unless one speaks of nothing else.
        telling = [term for term in counts if ratios[term] >= _DISTINCTIVE] or counts
        weights = {term: shares[term] * math.log(1 + ratios[term]) for term in telling}
        best = sorted(weights, key=lambda term: (-weights[term], term))[:_TERMS]
        name = ", ".join(best) or "(no words)"
        taken = sum(
            other == name or other.startswith(f"{name} (") for other in names.values()
        )
        names[group] = f"{name} ({taken + 1})" if taken else name
    return names


def _terms(text: str) -> set[str]:
    """Nouns and attributes; the words themselves where none is known."""
    found = facets_of(text)
    terms = {*found.nouns, *(trait.split(":")[1] for trait in found.traits)}
    if terms:
        return terms
    plain = "".join(c if c.isalnum() else " " for c in text.lower())
    return set(plain.split()) - STOPWORDS


def _map(
    captions: CaptionField,
    samples: foco.SampleCollection,
    found: _Points,
    points: NDArray[np.float32],
    key: str,
    saved: str,
) -> None:
    """Registers the map and the similarity run, and saves the view they are of."""
    import fiftyone.brain as fob

    dataset, ids, vectors = captions.dataset, found.ids, found.vectors
    for run in (key, f"{key}_similarity"):
        if run in dataset.list_brain_runs():
            dataset.delete_brain_run(run)
    place = {label_id: number for number, label_id in enumerate(ids)}
    embeddings: Any
    if dataset.media_type == fom.IMAGE:
        kept = samples.select_labels(ids=list(ids), fields=captions.name)
        options = {"patches_field": captions.name}
        labels = [_listed(own) for own in kept.values(f"{captions.labels}.id")]
        order = [place[label_id] for own in labels for label_id in own]
        embeddings = {
            sample: vectors[[place[label_id] for label_id in own]]
            for sample, own in zip(kept.values("id"), labels, strict=True)
        }
    else:
        # The App sends a view's ids with every request, so that none is better.
        shown = dataset.view()
        if dataset.count(captions.labels) != len(ids):
            shown = shown.select_labels(ids=list(ids), fields=captions.name)
        kept, options = captions.each(shown), {}
        order = [place[label_id] for label_id in kept.values("id")]
        embeddings = vectors[order]
    dataset.save_view(saved, kept, overwrite=True)
    if dataset.media_type == fom.IMAGE:
        fob.compute_visualization(
            kept, points=points[order], brain_key=key, method="manual", **options
        )
    else:
        clips = kept.values(["sample_id", "id"])
        caption_map.save(shown, captions.name, key, points[order], *clips)
    index = fob.compute_similarity(
        kept,
        embeddings=embeddings,
        brain_key=f"{key}_similarity",
        backend=CaptionSimilarityConfig,
        **found.model,
        **options,
    )
    if found.embedder is not None:
        index.use(found.embedder)


def _listed(ids: str | list[str] | None) -> list[str]:
    """Ids of a list of labels, or of a single one."""
    return [ids] if isinstance(ids, str) else list(ids or ())


def _points(vectors: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Places in the plane, (N, 2)."""
    if layout == "pca":
        from sklearn.decomposition import PCA

        points = PCA(2, random_state=0).fit_transform(vectors)
        return np.asarray(points, np.float32)
    from umap import UMAP

    mapper = UMAP(
        n_neighbors=min(15, len(vectors) - 1),
        metric="cosine",
        init="pca",
        random_state=0,
        n_jobs=1,
    )
    rows = np.random.default_rng(0).permutation(len(vectors))[:_LAYOUT_FIT]
    mapper.fit(vectors[rows])
    points = np.empty((len(vectors), 2), np.float32)
    points[rows] = mapper.embedding_
    rest = np.setdiff1d(np.arange(len(vectors)), rows)
    if len(rest):
        points[rest] = mapper.transform(vectors[rest])
    return points
