"""The search index of one field of captions, in a folder of its own."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import fiftyone as fo
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.progress import ProgressListener, tracked
from fiftyone_regioncap.dataset import caches
from fiftyone_regioncap.search.appearance import EmbeddingIndex, RegionTextEmbedder
from fiftyone_regioncap.search.catalog import Catalog
from fiftyone_regioncap.search.embedding import TextEmbedder
from fiftyone_regioncap.search.query import Query
from fiftyone_regioncap.search.source import FieldSource
from fiftyone_regioncap.search.text_index import TextIndex
from fiftyone_regioncap.search.vectors import VectorStore

Mode: TypeAlias = Literal["hybrid", "text", "semantic", "visual"]
"""Modes of search: words and meaning, words, meaning, or the images of regions."""

FUSION = 60
"""Reciprocal rank fusion: a caption at rank r of a list gets 1 / (60 + r) from it
(Cormack, Clarke and Büttcher, SIGIR 2009)."""

DEPTH = 100
"""Least number of captions of each list that are fused."""

INDEXES = "search"
"""Folder of the cache with the indexes."""

_CATALOG = "captions-3.sqlite"  # the number is that of the way captions are indexed
_BATCH = 2048
_MOST_FILTERED = 20_000  # of the nearest captions, looked through for phrases


@dataclass(frozen=True)
class Hit:
    """A caption that was found.

    Attributes:
        id: Id of its label.
        sample_id: Id of its sample.
        caption: The full text.
        score: Score that the hits are ordered by: the fused ranks as a share of what
            the first of both lists gets, or ``bm25`` or ``similarity`` where only one
            was asked for.
        bm25: BM25 score of its words; None when it has none of them.
        similarity: Cosine similarity of the query to the caption's meaning, or to the
            image of its region; None when it wasn't among the nearest.
    """

    id: str
    sample_id: str
    caption: str
    score: float
    bm25: float | None = None
    similarity: float | None = None


class CaptionIndex:
    """Finds captions of one field by words, meaning, and the images of regions.

    Args:
        folder: Folder of the index, which is made if it doesn't exist.

    Raises:
        RegionCapError: If the files in the folder are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        try:
            self.catalog = Catalog(self.folder / _CATALOG)
            self._text = TextIndex(self.folder / "words")
        except (sqlite3.DatabaseError, ValueError) as error:
            raise RegionCapError(
                f"the search index in {folder} is damaged ({error}); delete the "
                "folder, and the next search makes it again"
            ) from error
        self._inode = (folder / _CATALOG).stat().st_ino
        self.regions = EmbeddingIndex(self.folder / "regions")

    def __len__(self) -> int:
        return len(self.catalog)

    @property
    def deleted(self) -> bool:
        """Whether somebody deleted the folder since it was opened, or replaced it."""
        try:
            return (self.folder / _CATALOG).stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Closes the files."""
        self.catalog.close()

    def update(self, source: FieldSource) -> int:
        """Reads captions that changed since the last update.

        Args:
            source: Always the same one for the same folder.

        Returns:
            Number of captions that are new, changed or gone.
        """
        with self._lock:
            return self.catalog.update(source, self._text)

    def update_regions(self, source: FieldSource) -> None:
        """Reads region embeddings that changed since the last update.

        Args:
            source: The one that :meth:`update` has read.
        """
        with self._lock:
            self.regions.update(source, self.catalog)

    def embed(
        self,
        embedder: TextEmbedder,
        listener: ProgressListener | None = None,
        cancel: threading.Event | None = None,
    ) -> VectorStore:
        """Embeds captions that have no vector of this model, or changed since.

        Args:
            embedder: The model.
            listener: Called with progress events.
            cancel: Set it to stop after the captions at hand, which stay embedded.

        Returns:
            The vectors by row.
        """
        store = self._vectors(embedder)
        version = self.catalog.version
        if store.version == version:
            return store
        with self._lock:
            store = self._vectors(embedder)  # another process may have been at it
            current = self.catalog.hashes()
            stored = store.hashes(len(current))
            # Rows past the catalog's last one are of captions that are gone.
            current = np.pad(current, (0, len(stored) - len(current)))
            store.drop(np.flatnonzero((current == 0) & (stored != 0)))
            pending = np.flatnonzero((current != 0) & (current != stored))
            starts = range(0, len(pending), _BATCH)
            for start in tracked(
                starts, "embed", "captions", len(starts), listener, cancel
            ):
                rows = pending[start : start + _BATCH]
                entries = self.catalog.entries(rows.tolist())
                vectors = embedder.embed([entries[row].caption for row in rows])
                store.put(rows, current[rows], vectors)
            store.finish(version)
        return store

    def search(
        self,
        text: str,
        k: int,
        *,
        mode: Mode = "hybrid",
        embedder: TextEmbedder | RegionTextEmbedder | None = None,
        ids: Iterable[str] | None = None,
    ) -> list[Hit]:
        """Finds the best captions, best first.

        Args:
            text: Query text; see :meth:`Query.parse`.
            k: Greatest number of captions.
            mode: Mode of search; see :data:`Mode`.
            embedder: Model that embeds the query, except in the mode ``"text"``; in the
                mode ``"visual"``, the text side of the model that embedded the regions.
            ids: Ids of the labels to search among; None for all.

        Raises:
            QueryError: If the text searches for nothing.
        """
        query = Query.parse(text)
        rows = None if ids is None else set(self.catalog.rows_of(ids).values())
        k = min(k, self.catalog.rows)  # the engine makes room for as many
        depth = max(k, DEPTH) if mode == "hybrid" else k
        words: dict[int, float] = {}
        similarities: dict[int, float] = {}
        if mode in ("hybrid", "text"):
            words = self._text.search(query, depth, rows)
        if mode != "text":
            assert embedder is not None
            if isinstance(embedder, RegionTextEmbedder) and mode == "visual":
                store = self.regions.store(embedder.space)
            else:
                store = self.embed(embedder)
            vector = embedder.embed([query.meaning])[0]
            similarities = self._nearest(query, depth, vector, store, rows)
        # Captions with all words come before others, whatever their scores.
        scores = words or similarities
        if mode == "hybrid":
            fused = _fuse(words, similarities)
            scores = dict(sorted(fused.items(), key=lambda item: -item[1]))
        entries = self.catalog.entries(list(scores))
        hits = [
            Hit(
                id=entries[row].id,
                sample_id=entries[row].sample_id,
                caption=entries[row].caption,
                score=score,
                bm25=words.get(row),
                similarity=similarities.get(row),
            )
            for row, score in scores.items()
            if row in entries
        ]
        return hits[:k]

    def _nearest(
        self,
        query: Query,
        k: int,
        vector: NDArray[np.float32],
        store: VectorStore,
        rows: Collection[int] | None,
    ) -> dict[int, float]:
        """Finds the nearest captions with the query's phrases and nothing excluded."""
        allowed: NDArray[np.bool_] | None = None
        if rows is not None:
            allowed = np.zeros(len(store), bool)
            # Another thread may have indexed more captions meanwhile.
            allowed[[row for row in rows if row < len(allowed)]] = True
        demanding = bool(query.phrases or query.excluded)
        wanted = k
        while True:
            near = store.search(vector, wanted, allowed)
            fitting = self._text.matching(np.array([r for r, _ in near], int), query)
            found = {row: score for row, score in near if row in fitting}
            enough = len(found) >= k or len(near) < wanted or wanted >= _MOST_FILTERED
            if enough or not demanding:
                return dict(islice(found.items(), k))
            wanted *= 8

    def _vectors(self, embedder: TextEmbedder) -> VectorStore:
        folder = self.folder / _folder_name(embedder.name)
        return VectorStore(folder, embedder.name, embedder.dimension)


def index_folder(dataset: fo.Dataset, field: str) -> Path:
    """Returns the folder of a field's index, which can be deleted at any time."""
    return caches.dataset_folder(INDEXES, dataset) / field


def _fuse(*rankings: dict[int, float]) -> dict[int, float]:
    """Combines rankings, each with the best first, by reciprocal rank fusion."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            scores[row] = scores.get(row, 0.0) + 1 / (FUSION + rank)
    best = len(rankings) / (FUSION + 1)
    return {row: score / best for row, score in scores.items()}


def _folder_name(model: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", Path(model).name).strip("-")[:40]
    return f"{plain}-{sha256(model.encode()).hexdigest()[:8]}"
