from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.search import vectors
from fiftyone_regioncap.search.vectors import VectorStore

DIMENSION = 128
COUNT = 3000


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def points():
    """Vectors whose variance falls from axis to axis, as that of texts does."""
    rng = np.random.default_rng(1)
    scale = np.arange(1, DIMENSION + 1) ** -0.5
    return unit(rng.standard_normal((COUNT, DIMENSION)) * scale).astype(np.float32)


@pytest.fixture
def small(monkeypatch):
    """As if 3000 rows were many."""
    monkeypatch.setattr(vectors, "SKETCH_FROM", 1000)
    monkeypatch.setattr(vectors, "CANDIDATES", 200)


def fill(folder, points, model="m"):
    store = VectorStore(folder, model, DIMENSION)
    store.hashes(len(points))
    rows = np.arange(len(points))
    store.put(rows, rows + 1, points)
    store.finish(1)
    return store


def exact(points, query, k, rows=None):
    rows = np.arange(len(points)) if rows is None else rows
    stored = points[rows].astype(np.float16).astype(np.float32)
    return rows[np.argsort(-(stored @ query), kind="stable")[:k]].tolist()


@pytest.mark.parametrize("least", [100, COUNT * 2], ids=["sketch", "exact"])
def test_the_nearest_are_found(tmp_path, points, small, monkeypatch, least):
    monkeypatch.setattr(vectors, "SKETCH_FROM", least)
    store = fill(tmp_path, points)
    queries = unit(
        points[:50]
        + 0.05
        * np.random.default_rng(2).standard_normal((50, DIMENSION)).astype(np.float32)
    )
    shares = []
    for query in queries:
        found = store.search(query, 10)
        assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
        wanted = exact(points, query, 10)
        assert [r for r, _ in store.search(query, 10, exact=True)] == wanted
        shares.append(len({r for r, _ in found} & set(wanted)) / 10)
    assert np.mean(shares) >= 0.98


def test_only_allowed_rows_are_found_however_few(tmp_path, points, small):
    store = fill(tmp_path, points)
    rows = np.array([5, 77, 2999])
    allowed = np.zeros(COUNT, bool)
    allowed[rows] = True
    found = store.search(points[0], 10, allowed)
    assert [row for row, _ in found] == exact(points, points[0], 10, rows)


def test_rows_can_be_dropped_changed_and_added(tmp_path, points, small):
    store = fill(tmp_path, points)
    store.drop(np.array([0]))
    assert store.search(points[0], 1)[0][0] != 0
    store.put(np.array([1]), np.array([9]), points[:1])
    more = COUNT + 2
    assert store.hashes(more)[:2].tolist() == [0, 9]
    store.put(np.array([more - 1]), np.array([7]), points[:1])
    store.finish(2)
    opened = VectorStore(tmp_path, "m", DIMENSION)  # as another process would
    assert {row for row, _ in opened.search(points[0], 2)} == {1, more - 1}
    assert opened.version == 2 and len(opened) == more


def test_vectors_of_another_model_are_dropped(tmp_path, points):
    fill(tmp_path, points)
    assert len(VectorStore(tmp_path, "other", DIMENSION)) == 0
    assert VectorStore(tmp_path, "other", DIMENSION).search(points[0], 1) == []


def test_a_store_without_rows_finds_nothing(tmp_path):
    store = VectorStore(tmp_path, "m", DIMENSION)
    none = np.zeros(0, np.int64)
    assert store.hashes(0).tolist() == [] and store.count() == 0
    store.drop(none)
    store.finish(3)
    assert store.get(none).shape == (0, DIMENSION)
    assert VectorStore(tmp_path, "m", DIMENSION).version == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hashes", None),
        ("vectors", b"short"),
        ("sketch", b"short"),
        ("axes.npy", b"no array"),
        ("axes.npy", b""),
        ("state.json", b'{"rows": 3}'),
        ("state.json", b"{"),
    ],
)
def test_damaged_files_are_made_again(tmp_path, points, small, name, content):
    fill(tmp_path, points)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert len(VectorStore(tmp_path, "m", DIMENSION)) == 0
    assert fill(tmp_path, points).search(points[0], 1)[0][0] == 0


def test_axes_that_were_being_found_anew_are_not_used_half(
    tmp_path, points, small, monkeypatch
):
    fill(tmp_path, points[:1000])
    store = VectorStore(tmp_path, "m", DIMENSION)
    store.hashes(COUNT)
    rows = np.arange(COUNT)
    store.put(rows, rows + 1, points[::-1])  # with other main axes
    monkeypatch.setattr(vectors, "_FIT_AGAIN", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VectorStore, "_chunks", raise_interrupt)
        store.finish(2)
    opened = VectorStore(tmp_path, "m", DIMENSION)
    for query in points[:20]:
        found = [row for row, _ in opened.search(query, 5)]
        assert found == exact(points[::-1], query, 5)


def raise_interrupt(_):
    raise KeyboardInterrupt
