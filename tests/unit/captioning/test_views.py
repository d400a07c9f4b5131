"""Nested views: rules that hold for any frame and region, and bad regions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.views import (
    CANDIDATES,
    TASK_CONTEXTS,
    hash_distances,
    mask_box,
    nested_views,
    pick_contexts,
    region_box,
    task_contexts,
    to_gray,
)
from fiftyone_regioncap.core.errors import PromptError
from tests.support.views import polygons_box

# Golden vectors that the specification writes out: a 320 x 240 picture of waves.
COLUMNS, ROWS = np.meshgrid(np.arange(320), np.arange(240))
WAVES = np.stack(
    [
        (7 * COLUMNS + 3 * ROWS) % 256,
        (COLUMNS * COLUMNS // 50 + ROWS) % 256,
        (255 - COLUMNS + 2 * ROWS) % 256,
    ],
    axis=-1,
).astype(np.uint8)


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("box", "distances", "contexts", "rois"),
    [
        pytest.param(
            [60, 50, 140, 130],
            [16, 12, 14, 13, 15, 15, 16, 18, 19, 16],
            (0, 0.1, 0.2),
            [[0, 0, 224, 224], [12, 11, 185, 198], [21, 20, 161, 180]],
            id="middle",
        ),
        pytest.param(
            [200, 20, 300, 220],
            [19, 8, 17, 13, 15, 19, 18, 13, 14, 16],
            (0, 0.1, 0.3),
            [[0, 0, 224, 224], [36, 2, 220, 221], [80, 6, 215, 217]],
            id="tall",
        ),
        pytest.param(
            [0, 0, 320, 240], [0] * 10, (0, 0.1, 0.1), [[0, 0, 224, 224]] * 3, id="all"
        ),
        pytest.param(
            [5, 7, 9, 12],
            [11, 13, 14, 15, 11, 10, 10, 10, 8, 6],
            (0, 0.1, 0.2),
            [[0, 0, 224, 224], [6, 8, 31, 48], [3, 8, 16, 30]],
            id="tiny",
        ),
    ],
)
def test_written_out_vectors(
    box: list[int],
    distances: list[int],
    contexts: tuple[float, ...],
    rois: list[list[int]],
) -> None:
    region = np.array(box)
    assert hash_distances(to_gray(WAVES), region).tolist() == distances
    views = nested_views(WAVES, region)
    assert views.contexts == contexts
    assert views.rois.tolist() == rois


@st.composite
def regions(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    x1 = draw(st.floats(-20, width - 0.01))
    y1 = draw(st.floats(-20, height - 0.01))
    x2 = draw(st.floats(max(x1, 0), width + 20))
    y2 = draw(st.floats(max(y1, 0), height + 20))
    return noise(width, height, draw(st.integers(0, 9))), np.array([x1, y1, x2, y2])


@given(regions(), st.integers(1, 4), st.sampled_from([None, 32]))
def test_views_nest_and_hold_the_region(
    region: tuple[NDArray[np.uint8], NDArray[np.float64]], count: int, size: int | None
) -> None:
    frame, box = region
    height, width = frame.shape[:2]
    views = nested_views(frame, box, count=count, size=size)
    assert len(views.contexts) == len(views.pictures) == count
    assert views.contexts[0] == 0
    own = views.crops[0]
    for crop, roi, picture in zip(views.crops, views.rois, views.pictures, strict=True):
        assert (crop[:2] >= 0).all() and (crop[2:] <= (width, height)).all()
        assert (crop[2:] > crop[:2]).all()
        assert (crop[:2] <= own[:2]).all() and (crop[2:] >= own[2:]).all()
        w, h = (size, size) if size else crop[2:] - crop[:2]
        assert picture.shape == (h, w, 3)
        assert picture.dtype == np.uint8
        assert (roi >= 0).all() and (roi <= (w, h, w, h)).all()


@given(st.lists(st.integers(0, 64), min_size=10, max_size=10), st.integers(1, 6))
def test_contexts_are_picked_by_distance_for_their_size(
    distances: list[int], count: int
) -> None:
    chosen = pick_contexts(np.array(distances), count)
    assert len(chosen) == count and chosen[0] == 0
    worth = {t: d / t for t, d in zip(CANDIDATES, distances, strict=True)}
    useful = [t for t in CANDIDATES if worth[t] > 0]
    best_first = sorted(useful, key=lambda t: -worth[t])[: count - 1]
    assert list(chosen[1:]) == [*best_first, *[0.1] * (count - 1 - len(best_first))]


def test_pictures_as_cut_are_the_frames_own_pixels() -> None:
    frame = noise(60, 40)
    views = nested_views(frame, (10.0, 5.0, 30.0, 25.0), contexts=(0, 1), size=None)
    assert (views.pictures[0] == frame[5:25, 10:30]).all()
    assert (views.pictures[1] == frame).all()
    assert views.rois.tolist() == [[0, 0, 20, 20], [10, 5, 30, 25]]


def test_a_shared_gray_picture_changes_nothing() -> None:
    frame = noise(80, 60)
    box = (12.0, 9.0, 33.0, 41.0)
    assert (
        nested_views(frame, box).contexts
        == nested_views(frame, box, gray=to_gray(frame)).contexts
    )


@pytest.mark.parametrize("task", TASK_CONTEXTS)
@pytest.mark.parametrize("count", [1, 3, 6])
def test_task_prior(task: str, count: int) -> None:
    contexts = task_contexts(task, count)
    assert len(set(contexts)) == count
    assert contexts[0] == 0 and max(contexts) <= 0.5
    assert nested_views(noise(20, 20), (2, 2, 9, 9), contexts=task, count=count)


def test_box_of_a_mask_ends_on_its_last_pixels() -> None:
    mask = np.zeros((400, 500), dtype=bool)
    mask[30:40, 50:60] = True
    assert mask_box(mask).tolist() == [50, 30, 59, 39]


@pytest.mark.parametrize(
    ("polygons", "box"),
    [
        pytest.param([[10, 20, 10, 40]], [9, 20, 10, 40], id="no width"),
        pytest.param([[10, 20, 10.5, 40]], [9.5, 20, 10.5, 40], id="half a pixel"),
        pytest.param([[0, 0, 0, 5]], [0, 0, 1, 5], id="at the border"),
        pytest.param([[3, 4, 9, 8], [1, 6, 2, 30]], [1, 4, 9, 30], id="two"),
    ],
)
def test_box_of_polygons(polygons: list[list[float]], box: list[float]) -> None:
    assert polygons_box(polygons, 100, 100).tolist() == box


def one_pixel(x: int, y: int) -> NDArray[np.bool_]:
    mask = np.zeros((30, 40), dtype=bool)
    mask[y, x] = True
    return mask


@pytest.mark.parametrize(
    ("region", "own"),
    [
        pytest.param(one_pixel(7, 5), [7, 5, 8, 6], id="one pixel"),
        pytest.param(one_pixel(39, 29), [39, 29, 40, 30], id="the last pixel"),
        pytest.param((-9.0, -4.0, 6.0, 8.0), [0, 0, 6, 8], id="negative"),
        pytest.param((35.0, 20.0, 60.0, 50.0), [35, 20, 40, 30], id="past the end"),
        pytest.param((3.2, 4.1, 3.4, 9.9), [3, 4, 4, 9], id="inside one column"),
    ],
)
def test_regions_that_the_authors_code_fails_on(region: object, own: list[int]) -> None:
    views = nested_views(noise(40, 30), region)
    assert views.crops[0].tolist() == own


@pytest.mark.parametrize(
    ("region", "why"),
    [
        pytest.param(np.zeros((30, 40), dtype=bool), "empty", id="empty"),
        pytest.param(np.ones((40, 30), dtype=bool), "30x40", id="turned mask"),
        pytest.param((50.0, 2.0, 60.0, 9.0), "outside", id="on the right"),
        pytest.param((2.0, -9.0, 5.0, -2.0), "outside", id="above"),
        pytest.param((9.0, 2.0, 5.0, 8.0), "no box", id="turned round"),
        pytest.param((np.nan, 2.0, 5.0, 8.0), "no box", id="not a number"),
        pytest.param(np.zeros(3), "no box", id="three numbers"),
    ],
)
def test_bad_regions(region: object, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        region_box(region, 40, 30)


@pytest.mark.parametrize(
    "contexts",
    [
        pytest.param((), id="none"),
        pytest.param((0.1, 0.2), id="without the region"),
        pytest.param((0, 1.5), id="beyond the frame"),
        pytest.param((0, float("nan")), id="not a number"),
        pytest.param("category", id="a task without a prior"),
    ],
)
def test_bad_contexts(contexts: object) -> None:
    with pytest.raises(PromptError, match="contexts"):
        nested_views(noise(40, 30), (2, 2, 9, 9), contexts=contexts)
