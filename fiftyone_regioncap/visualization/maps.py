"""Maps of captions: one point per track or region, near to those that are alike.

Captions are embedded once (see :mod:`fiftyone_regioncap.search`), or represented by the
embeddings of their regions, and laid out in the plane, so that FiftyOne's Embeddings
panel shows them. Near-duplicates, outliers and groups are written onto the labels.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.analysis.facets import facets_of, save_views
from fiftyone_regioncap.analysis.vocabulary import STOPWORDS
from fiftyone_regioncap.captioning.base import EmbeddingSpace, TextEncoder
from fiftyone_regioncap.core.errors import BackendError, FieldError
from fiftyone_regioncap.core.markdown import code, escape
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.fields import require_output
from fiftyone_regioncap.dataset.runs import record_run
from fiftyone_regioncap.search.appearance import (
    RegionTextEmbedder,
    note_on_others,
    select_encoder,
)
from fiftyone_regioncap.search.embedding import TextEmbedder
from fiftyone_regioncap.search.index import CaptionIndex
from fiftyone_regioncap.search.options import EmbedCaptionsOptions
from fiftyone_regioncap.search.results import (
    known_spaces,
    open_index,
    region_model,
    rows_in,
    text_embedder,
)
from fiftyone_regioncap.search.similarity import (
    CaptionSimilarityConfig,
    CaptionSimilarityIndex,
)
from fiftyone_regioncap.visualization import caption_map

NEIGHBORS = 10
"""Nearest captions that an outlier is far from on average."""

MOST_CLUSTERS = 50

_ALIKE = {"text": "say", "visual": "look"}

_FEWEST_FOR_UMAP = 10  # fewer points have no neighborhoods to keep
_LAYOUT_FIT = 50_000  # points that UMAP is fitted to; the others are put among them
_CHUNK = 1024
_TERMS = 3
_DISTINCTIVE = 1.5  # times as often as elsewhere a term is said of what it names


@dataclass(frozen=True)
class MapSummary:
    """The map that was made.

    Attributes:
        captions: Number of captions on the map.
        layout: Method of the layout.
        space: Space in which captions are compared.
        key: Key of the brain runs: ``<key>`` for the map and ``<key>_similarity``.
        clusters: Number of captions by the name of their group, the largest first.
        duplicates: Number of captions that say (or regions that look) nearly the same
            as one before them.
        view: Name of the saved view that the map is of.
        notes: Notes on what was done in another way than asked for, and why.
    """

    captions: int
    layout: Literal["umap", "pca"]
    space: Literal["text", "visual"]
    key: str
    clusters: dict[str, int]
    duplicates: int
    view: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Returns a few lines for people, as Markdown."""
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
    options: EmbedCaptionsOptions = EmbedCaptionsOptions(),  # noqa: B008
    *,
    model: TextEmbedder | TextEncoder | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> MapSummary:
    """Puts captions on a map and finds duplicates, outliers and groups.

    Labels get ``duplicate_of``, the id of a caption before them that says nearly the
    same; ``outlier``, one minus the mean similarity to the nearest captions; and
    ``cluster``, the name of their group. In the visual space the attributes begin with
    ``visual_`` and tell of the regions' looks; groups are still named by what their
    captions mention. The map is a brain run on clips of the tracks (videos) or on the
    regions (images), beside a similarity run for sorting by likeness; earlier runs of
    the same key are replaced.

    Args:
        samples: A dataset or a view.
        options: Options of the map.
        model: Loaded model to use in place of the one that ``options`` name; see
            :func:`fiftyone_regioncap.search.search`. In the visual space it only lets
            the similarity run take texts, and the map is made without it too.
        listener: Called with progress events while captions are embedded.
        cancel: Set it to stop embedding.

    Raises:
        FieldError: If the field is absent, can't have captions, or has fewer than two
            (with region embeddings, in the visual space).
        BackendError: If the model of texts can't be loaded.
    """
    field, space, layout = options.captions, options.space, options.layout
    captions = CaptionField.of(samples, field)
    prefix = "" if space == "text" else "visual_"
    key = require_output(options.key or f"{field}_{prefix}map")
    given = options.model if model is None else model
    notes: list[str] = []
    index = open_index(captions)
    embedder: TextEmbedder | RegionTextEmbedder | None
    named: dict[str, Any]
    if space == "visual":
        stored, embedder = _region_space(captions, index, given, options.device, notes)
        store, named = index.regions.store(stored), {"region_space": asdict(stored)}
    else:
        embedder = text_embedder(given, options.device)
        store = index.embed(embedder, listener, cancel)
        named = {"text_model": embedder.name}
    rows = rows_in(captions, samples, index)
    rows = rows[store.hashes(index.catalog.rows)[rows] != 0]
    if len(rows) < 2:
        raise FieldError(
            f"{field} has {len(rows)} captions for this map, which needs at least two. "
            "Caption some tracks first"
        )
    if layout == "umap" and len(rows) < _FEWEST_FOR_UMAP:
        layout = "pca"
        notes.append(f"laid out by PCA: {len(rows)} captions are too few for UMAP")
    elif layout == "umap" and importlib.util.find_spec("umap") is None:
        layout = "pca"
        notes.append(
            "laid out by PCA; for UMAP, run `pip install umap-learn` and start "
            "FiftyOne again"
        )
    entries = index.catalog.entries(rows.tolist())
    ids = [entries[row].id for row in rows.tolist()]
    vectors = store.get(rows)
    near, first = _compared(vectors, options.duplicate)
    doubles = first != np.arange(len(ids))
    groups = _clusters(vectors, options.clusters or _cluster_count(len(ids)))
    names = _names(groups, [entries[row].caption for row in rows.tolist()])
    attributes: dict[str, tuple[list[Any], type]] = {
        "duplicate_of": (
            [ids[n] if d else None for n, d in zip(first, doubles, strict=True)],
            fo.StringField,
        ),
        "outlier": ((1 - near).tolist(), fo.FloatField),
        "cluster": ([names[group] for group in groups], fo.StringField),
    }
    for name, (values, kind) in attributes.items():
        captions.write(f"{prefix}{name}", dict(zip(ids, values, strict=True)), kind)
    view = f"{field}: {prefix.replace('_', ' ')}map"
    points = _points(vectors, layout)
    similarity = _save_runs(captions, samples, ids, vectors, points, key, view, named)
    if embedder is not None:
        similarity.use(embedder)
    list(save_views(captions))
    record_run(
        captions.dataset,
        f"{key}_texts",
        {"field": field, "space": space, "layout": layout, **named},
        {"captions": len(ids)},
    )
    return MapSummary(
        captions=len(ids),
        layout=layout,
        space=space,
        key=key,
        clusters=dict(Counter(attributes["cluster"][0]).most_common()),
        duplicates=int(doubles.sum()),
        view=view,
        notes=tuple(notes),
    )


def _region_space(
    captions: CaptionField,
    index: CaptionIndex,
    model: str | TextEmbedder | TextEncoder | None,
    device: str | None,
    notes: list[str],
) -> tuple[EmbeddingSpace, RegionTextEmbedder | None]:
    """Returns the space of a map of regions, and its text encoder if available."""
    known = known_spaces(captions, index)
    chosen = region_model(model)
    embedder = None
    try:
        encoder = select_encoder(known, captions.name, chosen, device)
        space, embedder = encoder.space, RegionTextEmbedder(encoder)
    except BackendError as error:
        if chosen is not None:
            raise
        notes.append(f"the map takes no texts here: {error}")
        space = known[0].space
    note = note_on_others(known, space)
    notes += [] if note is None else [note]
    return space, embedder


def _compared(
    vectors: NDArray[np.float32], least: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compares each vector with all others.

    Args:
        vectors: Vectors of length 1, float32 (n, d).
        least: Similarity above which two are near-duplicates.

    Returns:
        The mean similarity of each to its nearest, and by number the first of its chain
        of near-duplicates, which is itself where none is before it.
    """
    count = min(NEIGHBORS, len(vectors) - 1)
    near = np.empty(len(vectors), np.float32)
    first = np.arange(len(vectors))
    for start in range(0, len(vectors), _CHUNK):
        similarity = vectors[start : start + _CHUNK] @ vectors.T
        for number, own in enumerate(similarity, start):
            before = first[:number][own[:number] >= least]
            first[number] = before.min(initial=number)
            own[number] = -np.inf
        nearest = np.partition(similarity, -count, axis=1)[:, -count:]
        near[start : start + _CHUNK] = nearest.mean(axis=1)
    return near, first


def _cluster_count(captions: int) -> int:
    return int(np.clip(round(math.sqrt(captions / 2)), 1, MOST_CLUSTERS))


def _clusters(vectors: NDArray[np.float32], count: int) -> list[int]:
    """Groups vectors by spherical k-means, the same for the same vectors."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    method = KMeans if len(vectors) <= 10_000 else MiniBatchKMeans
    count = min(count, len(np.unique(vectors.round(5), axis=0)))
    return method(count, n_init=3, random_state=0).fit_predict(vectors).tolist()


def _names(groups: Sequence[int], texts: Sequence[str]) -> dict[int, str]:
    """Names each group by what its captions mention more than the others do."""
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
        # What all groups mention names none of them, unless one mentions nothing else.
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


def _save_runs(
    captions: CaptionField,
    samples: foco.SampleCollection,
    ids: Sequence[str],
    vectors: NDArray[np.float32],
    points: NDArray[np.float32],
    key: str,
    view: str,
    model: dict[str, Any],
) -> CaptionSimilarityIndex:
    """Saves the map, the similarity run, and the view that they are of."""
    import fiftyone.brain as fob

    dataset = captions.dataset
    for run in (key, f"{key}_similarity"):
        if run in dataset.list_brain_runs():
            dataset.delete_brain_run(run)
    row_of = {label_id: number for number, label_id in enumerate(ids)}
    options: dict[str, Any] = {}
    if dataset.media_type == fom.IMAGE:
        options = {"patches_field": captions.name}
        kept = samples.select_labels(ids=list(ids), fields=captions.name)
        # Lists of labels have lists of ids, single labels have one.
        labels = [
            [own] if isinstance(own, str) else list(own or ())
            for own in kept.values(f"{captions.labels}.id")
        ]
        order = [row_of[label_id] for own in labels for label_id in own]
        embeddings: Any = {
            sample: vectors[[row_of[label_id] for label_id in own]]
            for sample, own in zip(kept.values("id"), labels, strict=True)
        }
        fob.compute_visualization(
            kept, points=points[order], brain_key=key, method="manual", **options
        )
    else:
        # The App sends a view's ids with every request, so that none is better.
        shown = dataset.view()
        if dataset.count(captions.labels) != len(ids):
            shown = shown.select_labels(ids=list(ids), fields=captions.name)
        kept = captions.each(shown)
        sample_ids, label_ids = kept.values(["sample_id", "id"])
        order = [row_of[label_id] for label_id in label_ids]
        embeddings = vectors[order]
        caption_map.save(
            shown, captions.name, key, points[order], sample_ids, label_ids
        )
    dataset.save_view(view, kept, overwrite=True)
    return fob.compute_similarity(
        kept,
        embeddings=embeddings,
        brain_key=f"{key}_similarity",
        backend=CaptionSimilarityConfig,
        **model,
        **options,
    )


def _points(vectors: NDArray[np.float32], layout: str) -> NDArray[np.float32]:
    """Positions in the plane, (N, 2)."""
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
