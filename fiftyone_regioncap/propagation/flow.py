"""The fallback without weights: optical flow, cut out anew on every frame.

DIS flow (T. Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016)
carries masks, GrabCut (C. Rother et al., SIGGRAPH 2004) pulls their edges to real ones.
Rough beside any model; it drifts, and what has left the view doesn't come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Direction,
    Frames,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.competition import compete, drop_fragments
from fiftyone_regioncap.propagation.stream import (
    StreamPropagation,
    check_prompts,
    plan_passes,
)
from fiftyone_regioncap.regions import (
    Box,
    Frame,
    Mask,
    ObjectMask,
    Prompt,
    box_of_mask,
)

_SIDE = 480  # longest side in pixels at which flow and cuts are computed
_FRAGMENT = 0.1  # parts below this share of the largest are dropped
_LOST = 0.25  # an object that looks less than this like its prompt is lost
_BINS = (12, 4, 4)  # of hue, saturation and value


class FlowPropagator:
    """Carries prompts through a video with optical flow and GrabCut.

    A :class:`~fiftyone_regioncap.propagation.base.Propagator`.
    """

    info = PropagatorInfo("flow", "DIS flow and GrabCut", __version__, "Apache-2.0")

    def propagate(
        self,
        frames: Frames,
        prompts: Sequence[Prompt],
        *,
        direction: Direction = "forward",
        start: int = 0,
        stop: int | None = None,
        overlap: bool = False,
        checkpoint: Checkpoint | None = None,
    ) -> StreamPropagation:
        """Starts a run; see the protocol."""
        stop = check_prompts(prompts, frames, start, stop)
        return StreamPropagation(
            frames,
            plan_passes(prompts, direction, start, stop),
            lambda: FlowTracker(overlap),
            checkpoint,
        )


@dataclass
class _Followed:
    """An object on the way.

    Attributes:
        mask: bool (h, w) at working size on the last frame; empty once it is lost.
        look: float (bins,), the colours under the mask of the last prompt.
    """

    mask: Mask
    look: NDArray[np.float32]


class FlowTracker:
    """A :class:`~fiftyone_regioncap.propagation.stream.Tracker`.

    Args:
        overlap: whether objects may share pixels.
    """

    def __init__(self, overlap: bool) -> None:
        self._overlap = overlap
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._last: NDArray[np.uint8] | None = None
        self._objects: dict[int, _Followed] = {}

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Takes the next frame; see the protocol."""
        small = _shrink(frame)
        gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        if self._objects and self._last is not None:
            self._carry(small, gray)
        by_object: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_object.setdefault(prompt.object_id, []).append(prompt)
        for object_id, marks in by_object.items():
            mask = _cut_out(small, marks, frame.shape[0] / small.shape[0])
            self._objects[object_id] = _Followed(mask, _look(small, mask))
        self._last = gray
        if not self._overlap:
            self._share_out(frozenset(by_object))
        return {
            object_id: self._shown(small, frame, item)
            for object_id, item in self._objects.items()
        }

    def _carry(self, small: Frame, gray: NDArray[np.uint8]) -> None:
        """Moves every mask along the flow and cuts it out anew."""
        back = self._flow.calc(gray, self._last, None)
        rows, columns = np.mgrid[: gray.shape[0], : gray.shape[1]].astype(np.float32)
        for item in self._objects.values():
            moved = cv2.remap(
                item.mask.astype(np.float32),
                columns + back[..., 0],
                rows + back[..., 1],
                cv2.INTER_LINEAR,
            )
            item.mask = drop_fragments(_refine(small, moved > 0.5), _FRAGMENT)

    def _share_out(self, prompted: frozenset[int]) -> None:
        """Gives each pixel to one object: prompted ones first, small before large."""
        if len(self._objects) < 2:
            return
        items = list(self._objects.items())
        areas = [float(item.mask.sum()) + 1 for _, item in items]
        claims = np.stack(
            [
                item.mask / area + (item.mask & (object_id in prompted))
                for (object_id, item), area in zip(items, areas, strict=True)
            ]
        )
        for (_, item), mask in zip(items, compete(claims), strict=True):
            item.mask = mask

    def _shown(self, small: Frame, frame: Frame, item: _Followed) -> ObjectMask:
        score = float(np.minimum(_look(small, item.mask), item.look).sum())
        if score < _LOST:
            item.mask = np.zeros_like(item.mask)
        if not item.mask.any():
            return ObjectMask(None, 0.0)
        size = (frame.shape[1], frame.shape[0])
        soft = cv2.resize(item.mask.astype(np.float32), size)
        mask = soft > 0.5
        return ObjectMask(mask if mask.any() else None, score)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that the next step depends on."""
        state: dict[str, NDArray[np.generic]] = {}
        if self._last is not None:
            state["last"] = self._last
        for object_id, item in self._objects.items():
            state[f"{object_id}.mask"] = item.mask
            state[f"{object_id}.look"] = item.look
        return state

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes up a :meth:`state`."""
        self._last = state.get("last")  # type: ignore[assignment]
        ids = sorted(int(n.split(".")[0]) for n in state if n.endswith(".mask"))
        self._objects = {
            i: _Followed(state[f"{i}.mask"], state[f"{i}.look"])  # type: ignore[arg-type]
            for i in ids
        }


def _shrink(frame: Frame) -> Frame:
    """The frame with a longest side of at most ``_SIDE``."""
    scale = _SIDE / max(frame.shape[:2])
    if scale >= 1:
        return frame
    size = (
        max(round(frame.shape[1] * scale), 1),
        max(round(frame.shape[0] * scale), 1),
    )
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _look(small: Frame, mask: Mask) -> NDArray[np.float32]:
    """The colours under a mask: shares of a histogram, float (bins,)."""
    hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
    ranges = [0, 180, 0, 256, 0, 256]
    counts = cv2.calcHist([hsv], [0, 1, 2], mask.astype(np.uint8), _BINS, ranges)
    return (counts / max(counts.sum(), 1)).ravel().astype(np.float32)


def _cut_out(small: Frame, prompts: Sequence[Prompt], scale: float) -> Mask:
    """The mask that one object's prompts on a frame mark, bool (h, w)."""
    height, width = small.shape[:2]
    given = [prompt.mask for prompt in prompts if prompt.mask is not None]
    if given:
        full = np.logical_or.reduce(given).astype(np.float32)
        return cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA) > 0.5
    labels = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    for box in boxes or [(0, 0, width * scale, height * scale)]:
        _fill(labels, box, scale, cv2.GC_PR_FGD if boxes else cv2.GC_PR_BGD)
    radius = max(2, round(0.02 * max(height, width)))
    for prompt in prompts:
        if prompt.points is None:
            continue
        signs = True if prompt.point_signs is None else prompt.point_signs
        for (x, y), on in zip(
            prompt.points / scale,
            np.broadcast_to(signs, len(prompt.points)),
            strict=True,
        ):
            sign = cv2.GC_FGD if on else cv2.GC_BGD
            cv2.circle(labels, (int(x), int(y)), radius, sign, -1)
    marked = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    cut = _grab_cut(small, labels, rounds=5)
    return drop_fragments(cut if cut.any() else marked, _FRAGMENT)


def _fill(labels: NDArray[np.uint8], box: Box, scale: float, value: int) -> None:
    x1, y1, x2, y2 = (round(edge / scale) for edge in box)
    labels[max(y1, 0) : max(y2, y1 + 1, 1), max(x1, 0) : max(x2, x1 + 1, 1)] = value


def _refine(small: Frame, mask: Mask) -> Mask:
    """Pulls a carried mask's outline to the image's edges, within a narrow band."""
    box = box_of_mask(mask)
    if box is None:
        return mask
    x1, y1, x2, y2 = (int(edge) for edge in box)
    band = max(2, round(0.06 * min(x2 - x1, y2 - y1)))
    margin = 4 * band
    rows = slice(max(y1 - margin, 0), y2 + margin)
    columns = slice(max(x1 - margin, 0), x2 + margin)
    inner = mask[rows, columns].astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1,) * 2)
    labels = np.where(inner, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(inner, kernel) > 0] = cv2.GC_FGD
    labels[cv2.dilate(inner, kernel) == 0] = cv2.GC_BGD
    cut = _grab_cut(np.ascontiguousarray(small[rows, columns]), labels, rounds=1)
    # A cut that throws most of the object away has taken it for background.
    if cut.sum() < 0.5 * inner.sum():
        return mask
    refined = np.zeros_like(mask)
    refined[rows, columns] = cut
    return refined


def _grab_cut(image: Frame, labels: NDArray[np.uint8], rounds: int) -> Mask:
    """GrabCut from labels; what was marked as likely where it can't be computed."""
    inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if not inside.any() or inside.all():
        return inside
    cv2.setRNGSeed(0)  # it draws samples; the same job gives the same masks
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, labels, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
