from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.captioning.measured import describe
from fiftyone_regioncap.core.types import RegionClip, Track, box_of_mask
from fiftyone_regioncap.measuring.camera import camera_steps
from fiftyone_regioncap.measuring.regions import Measurements, measure, place
from fiftyone_regioncap.video.sampling import sample_frames

HEIGHT, WIDTH, FPS = 240, 320, 10.0
COUNT = 21


@cache
def world(texture: bool = True) -> NDArray[np.uint8]:
    """A wide background, textured or plain."""
    if not texture:
        return np.full((720, 1280, 3), 150, np.uint8)
    random = np.random.default_rng(3)
    image = np.full((720, 1280, 3), 150, np.uint8)
    for _ in range(900):
        x, y = random.integers(0, 1280), random.integers(0, 720)
        size = random.integers(4, 18, 2)
        color = random.integers(90, 210, 3).tolist()
        cv2.rectangle(image, (x, y), (x + size[0], y + size[1]), color, -1)
    return image


Curve = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Scene:
    """A red disc in front of a background, seen by a camera.

    ``disc`` and ``camera`` give positions at a share of the clip's time, in pixels of
    the world: of the disc's center, and of the view's upper left corner.
    """

    disc: Curve
    camera: Curve = lambda share: (400, 200)
    radius: Callable[[float], float] = lambda share: 22
    texture: bool = True
    hidden: Callable[[int], bool] = lambda frame: False

    def clip(self, count: int = 16) -> RegionClip:
        background = world(self.texture)
        frames, masks = [], []
        for number in range(COUNT):
            share = number / (COUNT - 1)
            image = background.copy()
            mask = np.zeros(image.shape[:2], np.uint8)
            x, y = self.disc(share)
            for canvas, color in ((image, (210, 25, 25)), (mask, 1)):
                center, radius = (round(x), round(y)), round(self.radius(share))
                cv2.circle(canvas, center, radius, color, -1)
            left, top = (round(edge) for edge in self.camera(share))
            view = np.s_[top : top + HEIGHT, left : left + WIDTH]
            frames.append(np.ascontiguousarray(image[view]))
            masks.append(mask[view].astype(bool) & (not self.hidden(number)))
        return clip_of(frames, masks, FPS, count)


def clip_of(
    frames: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    fps: float,
    count: int = 16,
) -> RegionClip:
    visible = np.flatnonzero([mask.any() for mask in masks])
    boxes = np.array([box_of_mask(masks[frame]) for frame in visible])
    chosen = sample_frames(visible, count)
    return RegionClip(
        frames=[frames[frame] for frame in chosen],
        masks=[masks[frame] for frame in chosen],
        frame_indices=chosen,
        fps=fps,
        support=(int(visible[0]), int(visible[-1])),
        track=Track(1, visible, boxes, np.ones(len(visible))),
    )


def line(start: tuple[float, float], end: tuple[float, float]) -> Curve:
    return lambda share: (
        start[0] + (end[0] - start[0]) * share,
        start[1] + (end[1] - start[1]) * share,
    )


STAYING: Curve = lambda share: (560, 320)  # noqa: E731
SECONDS = (COUNT - 1) / FPS


@pytest.mark.parametrize(
    ("scene", "direction", "widths"),
    [
        (Scene(STAYING), "still", 0.0),
        (Scene(line((460, 320), (660, 320))), "right", 200 / WIDTH),
        (Scene(line((660, 320), (460, 320))), "left", 200 / WIDTH),
        (Scene(line((560, 250), (560, 390))), "down", 140 / WIDTH),
        (Scene(line((560, 390), (560, 250))), "up", 140 / WIDTH),
        (
            Scene(line((480, 390), (620, 250))),
            "up and right",
            140 * 2**0.5 / WIDTH,
        ),
        # A camera that pans over a still disc, which crosses the picture to the left.
        (
            Scene(STAYING, camera=line((310, 190), (490, 210))),
            "still",
            0.0,
        ),
        # One that follows the disc, which stays in the middle of the picture.
        (
            Scene(line((460, 320), (660, 320)), camera=line((300, 200), (500, 200))),
            "right",
            200 / WIDTH,
        ),
        # One that overtakes it: to the left in the picture, to the right in truth.
        (
            Scene(line((500, 320), (600, 320)), camera=line((300, 200), (500, 200))),
            "right",
            100 / WIDTH,
        ),
        (
            Scene(lambda share: (560 + 90 * np.sin(2 * np.pi * share), 320)),
            "back and forth",
            360 / WIDTH,
        ),
        (
            Scene(STAYING, radius=lambda share: 15 + 25 * share),
            "towards",
            0,
        ),
        (Scene(STAYING, radius=lambda share: 40 - 25 * share), "away", 0),
    ],
)
@pytest.mark.parametrize("count", [8, 16])
def test_own_motion(scene: Scene, direction: str, widths: float, count: int) -> None:
    facts = measure(scene.clip(count))
    assert facts.direction == direction
    assert facts.speed == pytest.approx(widths / SECONDS, rel=0.1, abs=0.005)
    assert facts.dominant_color == "red"


def test_turns() -> None:
    def zigzag(share: float) -> tuple[float, float]:
        return 480 + 160 * share, 280 + 100 * abs((share * 3) % 2 - 1)

    facts = measure(Scene(zigzag).clip())
    assert facts.turns == 2
    assert measure(Scene(line((460, 320), (660, 320))).clip()).turns == 0


def test_without_texture_no_motion_is_claimed() -> None:
    facts = measure(Scene(line((460, 320), (660, 320)), texture=False).clip())
    assert (facts.direction, facts.speed, facts.turns, facts.depth) == (None,) * 4
    assert (facts.first_place, facts.last_place) == ("left", "right")
    text = describe(facts, "ball", moving=True)
    assert "moves" not in text
    assert "is seen first on the left and last on the right" in text


def test_a_disc_that_is_half_hidden_for_a_while_does_not_move() -> None:
    clip = Scene(STAYING).clip()
    masks = [mask.copy() for mask in clip.masks]
    for mask in masks[6:9]:
        mask[:, 160:] = False
    assert measure(replace(clip, masks=masks)).direction == "still"


def test_an_object_cut_by_the_frame_is_followed_by_its_free_side() -> None:
    # Its center moves at half its speed while it comes in.
    scene = Scene(line((390, 320), (450, 320)), radius=lambda share: 40)
    facts = measure(scene.clip())
    assert facts.direction == "right"
    assert facts.speed == pytest.approx(60 / WIDTH / SECONDS, rel=0.25)


@pytest.mark.parametrize(
    ("scene", "enters", "leaves"),
    [
        (Scene(line((390, 320), (560, 320))), "left", None),
        (Scene(line((560, 320), (730, 320))), None, "right"),
        (Scene(line((390, 320), (730, 320))), "left", "right"),
        (Scene(line((560, 190), (560, 330))), "top", None),
        (Scene(line((560, 330), (560, 450))), None, "bottom"),
        (Scene(line((460, 320), (660, 320))), None, None),
        # At the edge all the time.
        (Scene(lambda share: (410, 320)), None, None),
        # It moves along the edge.
        (Scene(line((410, 250), (410, 390))), None, None),
    ],
)
def test_crossing_the_edge_of_the_frame(
    scene: Scene, enters: str | None, leaves: str | None
) -> None:
    facts = measure(scene.clip())
    assert (facts.enters, facts.leaves) == (enters, leaves)


def test_visibility_is_judged_on_the_track() -> None:
    scene = Scene(STAYING, hidden=lambda frame: frame in (0, 7, 8, 9, 14))
    clip = replace(scene.clip(4), support=(0, COUNT - 1))
    facts = measure(clip)
    assert (facts.first_frame, facts.last_frame) == (1, COUNT - 1)
    assert facts.visible_spans == ((1, 6), (10, 13), (15, 20))
    assert facts.visible_fraction == pytest.approx((COUNT - 5) / COUNT)


def test_without_a_track_the_masks_are_used() -> None:
    clip = replace(Scene(line((460, 320), (660, 320))).clip(), track=None)
    facts = measure(clip)
    assert (facts.first_place, facts.last_place) == ("left", "right")
    assert facts.visible_spans == ((0, COUNT - 1),)
    assert facts.direction == "right"


def test_images_have_no_motion() -> None:
    clip = Scene(lambda share: (450, 240)).clip()
    facts = measure(RegionClip(clip.frames[:1], clip.masks[:1]))
    assert facts.mean_area == pytest.approx(np.pi * 22**2 / HEIGHT / WIDTH, rel=0.05)
    assert facts.first_place == "upper left"
    assert (facts.speed, facts.direction) == (None, None)
    assert facts.visible_fraction == 1


def test_empty_masks_measure_nothing() -> None:
    clip = Scene(STAYING).clip(2)
    empty = replace(clip, masks=[np.zeros_like(mask) for mask in clip.masks])
    assert measure(empty) == Measurements()


@pytest.mark.parametrize(
    ("box", "name"),
    [
        ((0, 0, 10, 10), "upper left"),
        ((45, 0, 55, 10), "top"),
        ((90, 40, 100, 60), "right"),
        ((0, 0, 100, 100), "middle"),
        ((40, 90, 60, 130), "bottom"),
        ((80, 80, 100, 100), "lower right"),
    ],
)
def test_places(box: tuple[float, float, float, float], name: str) -> None:
    assert place(box, 100, 100) == name


@pytest.mark.parametrize(
    ("shift", "turn", "zoom"),
    [((0, 0), 0, 1), ((40, -12), 0, 1), ((-10, 5), 4, 1), ((5, 5), 0, 1.2)],
)
def test_camera_steps(shift: tuple[float, float], turn: float, zoom: float) -> None:
    frame = np.ascontiguousarray(world()[200:440, 400:720])
    matrix = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), turn, zoom)
    matrix[:, 2] += shift
    moved = cv2.warpAffine(frame, matrix, (WIDTH, HEIGHT))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    (step,) = camera_steps([frame, moved], [mask, mask])
    assert step is not None
    corners = np.array([[0, 0, 1], [WIDTH, 0, 1], [0, HEIGHT, 1], [WIDTH, HEIGHT, 1]])
    back = corners @ np.vstack([matrix, [0, 0, 1]]).T @ step.T
    assert np.abs(back - corners[:, :2]).max() < 1.5


def test_camera_steps_of_one_frame_and_of_none_in_common() -> None:
    frame = np.ascontiguousarray(world()[:HEIGHT, :WIDTH])
    other = np.ascontiguousarray(world()[400 : 400 + HEIGHT, 800 : 800 + WIDTH])
    mask = np.zeros((HEIGHT, WIDTH), bool)
    assert camera_steps([frame], [mask]) == []
    assert camera_steps([frame, other], [mask, mask]) == [None]


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3000)])
def test_frames_of_few_pixels_tell_no_motion(size: tuple[int, int]) -> None:
    frames = [np.zeros((*size, 3), np.uint8)] * 3
    clip = clip_of(frames, [np.ones(size, bool)] * 3, 10.0, 3)
    measured = measure(clip)
    assert measured.direction is None and measured.colors == (("black", 1.0),)


# Real clips with human masks; what is true was judged by looking at them.


def real_clip(folder: Path, number: int, count: int) -> RegionClip:
    frames = [
        np.array(Image.open(file).convert("RGB"))
        for file in sorted((folder / "frames").glob("*.jpg"))
    ]
    masks = [
        np.array(Image.open(file)) == number
        for file in sorted((folder / "masks").glob("*.png"))
    ]
    fps = json.loads((folder / "meta.json").read_text())["fps"]
    return clip_of(frames, masks, fps, count)


@pytest.mark.parametrize(
    ("name", "number", "direction", "colors"),
    [
        ("car-shadow", 1, "left", {"gray", "white"}),
        ("rollerblade", 1, "right", {"brown", "black"}),
        ("soccerball", 1, "left", {"blue", "white"}),
        ("street-suv", 1, "left", {"gray", "black"}),
        ("dogs-jump", 1, "right", {"black"}),
        ("dogs-jump", 2, "back and forth", {"black", "gray"}),
        ("dogs-jump", 3, "still", {"black", "green"}),
    ],
)
@pytest.mark.parametrize("count", [8, 16])
def test_real_clips(
    clips: Path, name: str, number: int, direction: str, colors: set[str], count: int
) -> None:
    if not (clips / name).is_dir():
        pytest.skip(f"no clip {name}")
    facts = measure(real_clip(clips / name, number, count))
    assert facts.direction == direction
    assert {facts.dominant_color, facts.secondary_color} - {None} <= colors
    if name == "car-shadow":
        assert facts.depth == "away"
        assert facts.camera_shift is not None and facts.camera_shift > 0.3
    if name == "street-suv":
        assert (facts.enters, facts.leaves) == ("right", "left")
        assert facts.depth is None
