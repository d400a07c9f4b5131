from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.captioning.patchioner.aggregation import (
    AttentionMap,
    BoxSet,
    Grid,
    MaskRegion,
    Patch,
    Points,
    Polygon,
    Weighting,
    Whole,
    box_patches,
    box_set_weights,
    box_weights,
    gaussian,
    mask_coverage,
    point_counts,
    region_weights,
    to_input,
    whole_weights,
)
from fiftyone_regioncap.core.errors import PromptError
from tests.support import DATA

PATCHIONER = DATA / "patchioner"
VECTORS: Mapping[str, Any] = json.loads((PATCHIONER / "vectors.json").read_text())
SIDE, PATCH = VECTORS["side"], VECTORS["patch"]
SQUARE = Grid(SIDE, SIDE, PATCH, SIDE * PATCH, SIDE * PATCH)
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)
FEATURES = np.stack([ROWS**2, COLUMNS**2, ROWS * 0 + 1, ROWS * COLUMNS], axis=-1)


def box(name: str) -> list[float]:
    return VECTORS["boxes"][name]["xywh"]


def weighting(variance: float | None) -> Weighting:
    return Weighting() if variance is None else Weighting("gaussian", variance)


def pooled(weights: np.ndarray) -> np.ndarray:
    return np.tensordot(weights, FEATURES, axes=2)


# --- the written-out vectors ---------------------------------------------------------


@pytest.mark.parametrize("name", VECTORS["boxes"])
def test_box_patches(name: str) -> None:
    case = VECTORS["boxes"][name]
    rows, columns = box_patches(case["xywh"], SQUARE)
    assert [rows.start, rows.stop - 1] == case["rows"]
    assert [columns.start, columns.stop - 1] == case["columns"]


@pytest.mark.parametrize("case", VECTORS["embeddings"])
def test_box_embedding(case: Mapping[str, Any]) -> None:
    weights = box_weights(box(case["box"]), SQUARE, weighting(case["variance"]))
    np.testing.assert_allclose(pooled(weights), case["expected"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("case", VECTORS["sets"])
def test_box_set_embedding(case: Mapping[str, Any]) -> None:
    boxes = [box(name) for name in case["boxes"]]
    weights = box_set_weights(boxes, SQUARE, weighting(case["variance"]))
    np.testing.assert_allclose(pooled(weights), case["expected"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("case", VECTORS["whole"])
def test_whole_embedding(case: Mapping[str, Any]) -> None:
    weights = whole_weights(SQUARE, weighting(case["variance"]))
    assert pooled(weights)[0] == pytest.approx(case["first"], abs=1e-3)


@pytest.mark.parametrize(
    ("compat", "expected"), [("fixed", "fixed"), ("reference", "in_order")]
)
def test_attention_boxes(compat: Any, expected: str) -> None:
    case = VECTORS["attention"]
    logits = case["row_slope"] * ROWS + case["column_slope"] * COLUMNS
    weights = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    before = weights.copy()
    attention = AttentionMap(weights, compat)
    for name, numbers in case[expected].items():
        chosen = box_weights(box(name), SQUARE, Weighting("attention"), attention)
        found = [(chosen * ROWS).sum(), (chosen * COLUMNS).sum()]
        np.testing.assert_allclose(found, numbers, rtol=1e-5)
    assert np.array_equal(weights, before)  # the caller's map is never written to


def test_trace_cells() -> None:
    counts = point_counts(np.array(VECTORS["trace"]["points"]), SQUARE)
    expected = np.zeros_like(counts)
    for row, column, count in VECTORS["trace"]["cells"]:
        expected[row, column] = count
    assert np.array_equal(counts, expected)


def test_trace_borders_fall_as_in_the_reference() -> None:
    for k in range(SIDE):
        (rows, _) = np.nonzero(point_counts(np.array([[0.0, k / SIDE]]), SQUARE))
        assert rows[0] == k - (k in VECTORS["trace"]["low_by_one"])


@pytest.mark.parametrize("case", VECTORS["mapping"])
def test_box_mapping(case: Mapping[str, Any]) -> None:
    width, height = case["image"]
    grid = Grid(SIDE, SIDE, PATCH, height, width, crop=case["crop"])
    mapped = to_input(case["box"], grid)
    for found, expected in zip(mapped, case["expected"] or [], strict=False):
        if expected is not None:
            assert found == pytest.approx(expected, abs=1e-4)
    rows, columns = box_patches(mapped, grid)
    if case["columns"]:
        assert [columns.start, columns.stop - 1] == case["columns"]
    if case["rows"]:
        assert [rows.start, rows.stop - 1] == case["rows"]


# --- rules for all regions -----------------------------------------------------------

FRAME = Grid(9, 9, 14, 70, 110)
ATTENTION = AttentionMap(gaussian(9, 9, 0.3))
WEIGHTINGS = [
    Weighting("mean"),
    Weighting("gaussian", 0.0),
    Weighting("gaussian", 1e-3),  # so narrow that a naive exponential underflows
    Weighting("gaussian", 1.0),
    Weighting("attention"),
]


@st.composite
def regions(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(["boxes", "points", "mask", "polygon", "patch", "all"]))
    edge = st.floats(-20, 130, width=32)
    if kind == "boxes":
        boxes = []
        for _ in range(draw(st.integers(1, 3))):
            x1, y1 = draw(st.floats(-10, 109)), draw(st.floats(-10, 69))
            boxes.append((x1, y1, x1 + draw(st.floats(11, 90)), y1 + 11))
        return BoxSet(boxes)
    if kind == "points":
        inside = [[draw(st.floats(0, 110)), draw(st.floats(0, 70))]]
        outside = [[draw(edge), draw(edge)]]
        return Points(np.array(inside + outside))
    if kind == "mask":
        mask = np.zeros((70, 110), dtype=bool)
        y, x = draw(st.integers(0, 69)), draw(st.integers(0, 109))
        mask[y : y + draw(st.integers(1, 70)), x : x + draw(st.integers(1, 110))] = 1
        return MaskRegion(mask, draw(st.sampled_from(["coverage", "index"])))
    if kind == "polygon":
        x, y = draw(st.floats(0, 80)), draw(st.floats(0, 40))
        return Polygon([np.array([[x, y], [x + 20, y], [x + 20, y + 20]])])
    if kind == "patch":
        return Patch(draw(st.integers(0, 8)), draw(st.integers(0, 8)))
    return Whole()


@given(region=regions(), chosen=st.sampled_from(WEIGHTINGS))
def test_weights_are_a_distribution(region: Any, chosen: Weighting) -> None:
    weights = region_weights(region, FRAME, chosen, ATTENTION)
    assert weights.shape == (9, 9) and weights.dtype == np.float32
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-5)


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    count=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_coverage_is_exact(height: int, width: int, count: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    mask[0, 0] = True
    grid = Grid(count, count, 14, height, width)
    # Every pixel cut into so many pieces that patches hold whole pieces.
    fine = np.kron(mask, np.ones((count, count)))
    expected = fine.reshape(count, height, count, width).mean(axis=(1, 3))
    np.testing.assert_allclose(mask_coverage(mask, grid), expected, atol=1e-5)


def test_coverage_of_a_cropped_frame_sees_the_middle_only() -> None:
    grid = Grid(2, 2, 14, 40, 80, crop=True)
    mask = np.zeros((40, 80), dtype=bool)
    mask[:20, :40] = True
    assert np.array_equal(mask_coverage(mask, grid), [[1, 0], [0, 0]])


def test_what_no_patch_sees_of_an_input_that_patches_don_t_fill() -> None:
    grid = Grid(2, 2, 14, 40, 40, input_side=35)  # patches end at 32 of 40 pixels
    mask = np.ones((40, 40), dtype=bool)
    assert np.array_equal(mask_coverage(mask, grid), np.ones((2, 2)))
    mask[:, :32] = False
    with pytest.raises(PromptError, match="no patch sees"):
        region_weights(MaskRegion(mask), grid)
    assert to_input((0, 0, 40, 20), grid) == (0, 0, 35, 17.5)


def test_index_rule_gives_touched_patches_the_same_weight() -> None:
    mask = np.zeros((28, 28), dtype=bool)
    mask[:14, :15] = True  # one whole patch and one column of the next
    grid = Grid(2, 2, 14, 28, 28)
    touched = region_weights(MaskRegion(mask, "index"), grid)
    assert np.array_equal(touched, [[0.5, 0.5], [0, 0]])
    covered = region_weights(MaskRegion(mask), grid)
    np.testing.assert_allclose(covered, [[14 / 15, 1 / 15], [0, 0]], rtol=1e-6)


def test_trace_in_a_cropped_frame_is_moved_with_it() -> None:
    grid = Grid(2, 2, 14, 40, 80, crop=True)
    weights = region_weights(Points(np.array([[25.0, 5.0], [5.0, 5.0]])), grid)
    assert np.array_equal(weights, [[1, 0], [0, 0]])


MASK = np.zeros((70, 110), dtype=bool)


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (BoxSet([(200, 10, 230, 20)]), "outside the 110x70 frame"),
        (BoxSet([(-30, 10, 0, 20)]), "outside the 110x70 frame"),
        (BoxSet([(10, 10, 10, 20)]), "no area"),
        (BoxSet([(10, 10, 5, 20)]), "no area"),
        (BoxSet([(10, float("nan"), 50, 20)]), "no area"),
        (BoxSet([]), "at least one box"),
        (Points(np.zeros((0, 2))), "no point of the trace"),
        (Points(np.array([[-1.0, 5.0], [111.0, 5.0]])), "no point of the trace"),
        (MaskRegion(MASK), "empty"),
        (MaskRegion(MASK[:-1]), "110x69"),
        (Polygon([np.array([[200.0, 0], [210, 0], [210, 9]])]), "empty"),
        (Patch(9, 0), "there is no patch 9, 0"),
        (Patch(0, -1), "there is no patch 0, -1"),
    ],
)
def test_bad_regions(region: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        region_weights(region, FRAME)


def test_a_mask_that_cropping_removes_is_an_error() -> None:
    mask = np.zeros((40, 80), dtype=bool)
    mask[:, :10] = True
    with pytest.raises(PromptError, match="cropping"):
        region_weights(MaskRegion(mask), Grid(2, 2, 14, 40, 80, crop=True))


def test_attention_of_a_backbone_without_it_is_an_error() -> None:
    with pytest.raises(PromptError, match="no attention map"):
        region_weights(Whole(), FRAME, Weighting("attention"), None)


def test_boxes_by_the_thousand_on_few_patches() -> None:
    # More boxes than there are patches.
    boxes = [(x, y, x + 1.0, y + 1.0) for x in range(100) for y in range(70)]
    weights = region_weights(BoxSet(boxes), FRAME)
    assert weights.sum() == pytest.approx(1, abs=1e-4)
