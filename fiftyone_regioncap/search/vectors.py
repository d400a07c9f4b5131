"""Vectors of captions on disk, and the nearest of them.

Each caption has a row of float16 in a memory-mapped file. Few rows are compared with
the query one chunk after the other. Many rows are first compared by a sketch, their
coordinates along the main axes of all vectors: 96 numbers in place of 384 say which
few thousand rows are worth comparing in full. Unlike with graphs or inverted lists,
any set of rows can be left out of a search, rows can change at any time, and indexing
costs one matrix product.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SKETCH_SIZE = 96
"""Numbers a row in the sketch."""

SKETCH_FROM = 30_000
"""Rows from which the sketch is used; fewer are compared in full."""

CANDIDATES = 2_000
"""Rows that the sketch leaves to be compared in full, at least ..."""

CANDIDATE_SHARE = 1 / 200
"""... and as a share of all rows."""

_FIT_ROWS = 20_000  # that the main axes are found from
_FIT_AGAIN = 4  # times as many rows as then
_CHUNK = 16_384  # rows converted to float32 at once: 25 MB
_GATHER = 4  # rows are read one by one where they are less than this part of all


@dataclass(frozen=True)
class _State:
    """The header of the files.

    Attributes:
        model: Name of the model.
        dimension: Length of the vectors.
        rows: Number of rows in the files.
        version: Version of the catalog that they were updated to.
        fitted: Number of rows when the axes were found; 0 for no sketch.
    """

    model: str
    dimension: int
    rows: int = 0
    version: int = -1
    fitted: int = 0


class VectorStore:
    """The vectors of one model, by row, in a folder.

    Args:
        folder: Folder of the files, which is made if it doesn't exist.
        model: Name of the model; vectors of another one are dropped.
        dimension: Length of the vectors.
    """

    def __init__(self, folder: Path, model: str, dimension: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._axes: NDArray[np.float32] | None = None
        self._state = self._read_state(model, dimension)

    def __len__(self) -> int:
        return self._state.rows

    @property
    def version(self) -> int:
        """Version of the catalog that the vectors were updated to; -1 for none."""
        return self._state.version

    def count(self) -> int:
        """Counts the rows that are not empty."""
        return int(np.count_nonzero(self._map("hashes", np.int64, 1)))

    def hashes(self, rows: int) -> NDArray[np.int64]:
        """Hashes of what the vectors were made of, by row; 0 for empty rows."""
        self._grow(rows)
        return np.array(self._map("hashes", np.int64, 1)[:, 0])

    def put(
        self,
        rows: NDArray[np.int64],
        hashes: NDArray[np.int64],
        vectors: NDArray[np.float32],
    ) -> None:
        """Stores vectors.

        Args:
            rows: Rows that :meth:`hashes` made room for, (N,).
            hashes: Hashes of what the vectors were made of, (N,); written last.
            vectors: Unit vectors, (N, dimension).
        """
        self._vectors("r+")[rows] = vectors
        if self._axes is not None:
            self._sketch("r+")[rows] = vectors @ self._axes
        self._map("hashes", np.int64, 1, "r+")[rows, 0] = hashes

    def drop(self, rows: NDArray[np.int64]) -> None:
        """Empties rows, so that they are never found."""
        zeros = np.zeros((len(rows), self._state.dimension), np.float32)
        self.put(rows, np.zeros(len(rows), np.int64), zeros)

    def finish(self, version: int) -> None:
        """Records that the vectors are those of a version of the catalog."""
        rows = self._state.rows
        if rows >= max(SKETCH_FROM, _FIT_AGAIN * self._state.fitted):
            self._fit()
        self._set(version=version)

    def get(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Reads the vectors of some rows, float32 (N, dimension)."""
        return np.asarray(self._vectors()[rows], np.float32)

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        *,
        exact: bool = False,
    ) -> list[tuple[int, float]]:
        """Finds the rows nearest to a vector and their cosine similarities, best first.

        Args:
            vector: Unit vector, (dimension,).
            k: Greatest number of rows.
            allowed: Whether each row may be returned, bool by row; None for all.
            exact: Whether to compare all rows in full.
        """
        if not len(self) or k < 1:
            return []
        query = np.asarray(vector, np.float32)
        rows = np.arange(len(self))
        if allowed is not None:
            rows = np.flatnonzero(allowed[: len(self)])
        count = max(CANDIDATES, 20 * k, int(CANDIDATE_SHARE * len(rows)))
        if self._axes is not None and not exact and len(rows) > count:
            rough = self._rough(query @ self._axes, rows)
            rows = np.sort(rows[_largest(rough, count)])  # in the order of the file
        similarity = np.concatenate(
            [
                self.get(rows[start : start + _CHUNK]) @ query
                for start in range(0, len(rows) or 1, _CHUNK)
            ]
        )
        # Empty rows are of length 0; so alike to the query is no text.
        similarity = np.where(similarity == 0, -np.inf, similarity)
        best = _largest(similarity, k)
        return [
            (int(rows[index]), float(similarity[index]))
            for index in best
            if np.isfinite(similarity[index])
        ]

    def _rough(
        self, query: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Returns the similarities of rows to a query along the main axes."""
        if len(rows) < len(self) / _GATHER:
            return self._sketch()[rows] @ query
        rough = self._sketch() @ query
        return rough if len(rows) == len(rough) else rough[rows]

    # -- files ------------------------------------------------------------------------

    def _chunks(self) -> Iterator[NDArray[np.float16]]:
        vectors = self._vectors()
        for start in range(0, len(vectors), _CHUNK):
            yield vectors[start : start + _CHUNK]

    def _fit(self) -> None:
        """Finds the main axes of the vectors, and projects all rows onto them."""
        rows = np.random.default_rng(0).choice(
            len(self), min(len(self), _FIT_ROWS), replace=False
        )
        sample = self.get(np.sort(rows))
        _, vectors = np.linalg.eigh(sample.T @ sample)
        axes = np.ascontiguousarray(vectors[:, ::-1][:, :SKETCH_SIZE], np.float32)
        # Whoever is stopped in between leaves no sketch, rather than one of old axes.
        self._set(fitted=0)
        path = self._folder / "axes.npy"
        np.save(path, axes, allow_pickle=False)
        self._axes = axes
        self._resize("sketch", np.float32, axes.shape[1], len(self))
        sketch = self._sketch("r+")
        for number, chunk in enumerate(self._chunks()):
            start = number * _CHUNK
            sketch[start : start + len(chunk)] = chunk.astype(np.float32) @ axes
        self._set(fitted=len(self))

    def _grow(self, rows: int) -> None:
        if rows <= len(self):
            return
        self._resize("vectors", np.float16, self._state.dimension, rows)
        self._resize("hashes", np.int64, 1, rows)
        if self._axes is not None:
            self._resize("sketch", np.float32, self._axes.shape[1], rows)
        self._set(rows=rows)

    def _resize(self, name: str, kind: type, width: int, rows: int) -> None:
        """Resizes a file to a number of rows; new ones are zero."""
        path = self._folder / name
        path.touch()
        os.truncate(path, rows * width * np.dtype(kind).itemsize)

    def _map(self, name: str, kind: type, width: int, mode: Any = "r") -> NDArray[Any]:
        shape = (len(self), width)
        if not len(self):  # there is no file yet, and none can be mapped without bytes
            return np.zeros(shape, kind)
        return np.memmap(self._folder / name, kind, mode, shape=shape)

    def _vectors(self, mode: Any = "r") -> NDArray[Any]:
        return self._map("vectors", np.float16, self._state.dimension, mode)

    def _sketch(self, mode: Any = "r") -> NDArray[Any]:
        assert self._axes is not None
        return self._map("sketch", np.float32, self._axes.shape[1], mode)

    def _read_state(self, model: str, dimension: int) -> _State:
        """Reads the header; removes files that are damaged or of another model."""
        try:
            text = (self._folder / "state.json").read_text(encoding="utf-8")
            state = _State(**json.loads(text))
            sizes = {"vectors": 2 * dimension * state.rows, "hashes": 8 * state.rows}
            if state.fitted:
                self._axes = np.load(self._folder / "axes.npy", allow_pickle=False)
                sizes["sketch"] = 4 * self._axes.shape[1] * state.rows
            # Files grow before the state says so, and are made for the first row.
            whole = not state.rows or all(
                (self._folder / name).stat().st_size >= size
                for name, size in sizes.items()
            )
        except (OSError, ValueError, TypeError, EOFError):
            whole = False
        if whole and (state.model, state.dimension) == (model, dimension):
            return state
        self._axes = None
        for name in ("vectors", "hashes", "sketch"):
            (self._folder / name).unlink(missing_ok=True)
        return _State(model, dimension)

    def _set(self, **values: Any) -> None:
        self._state = replace(self._state, **values)
        replace_json(self._folder / "state.json", asdict(self._state))


def replace_json(path: Path, values: dict[str, Any]) -> None:
    """Writes values as JSON, all at once."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values), encoding="utf-8")
    part.replace(path)


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the k largest values, the largest first."""
    found = np.arange(len(values))
    if k < len(values):
        found = np.argpartition(values, -k)[-k:]
    return found[np.argsort(-values[found], kind="stable")]
