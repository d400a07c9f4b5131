"""Propagation without weights: optical flow, sharpened by GrabCut.

Good for slow, unhidden objects over some tens of frames; it is the fallback of machines
without MobileSAM's weights. T. Kroeger et al., "Fast Optical Flow using Dense Inverse
Search", ECCV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.core.types import Frame, Mask, ObjectMask, Prompt
from fiftyone_regioncap.models.registry import ModelCard
from fiftyone_regioncap.propagation.base import PropagationRequest, PropagatorInfo
from fiftyone_regioncap.propagation.competition import compete, drop_fragments
from fiftyone_regioncap.propagation.grabcut import grabcut, remove_around
from fiftyone_regioncap.propagation.stream import State, StreamPropagation

_BINS: Final = (8, 8, 8)
_VISIBLE: Final = 0.2
_FRAGMENT: Final = 0.1


@dataclass(frozen=True)
class FlowOptions(Options):
    """Options of propagation by optical flow."""

    sharpen: bool = option(
        True,
        "Move outlines to edges of the image by GrabCut on every frame; without it, "
        "propagation is faster and drifts sooner.",
    )


FLOW = ModelCard(
    name="flow",
    summary="optical flow and GrabCut; no weights, rough",
    model="fiftyone_regioncap.propagation.flow:FlowPropagator",
    license="Apache-2.0",
    commercial=True,
    options=FlowOptions,
)


class FlowPropagator:
    """Moves masks along the optical flow from each frame to the next.

    A :class:`~fiftyone_regioncap.propagation.base.Propagator`. The score compares the
    colors under the mask with those under the prompt, and an object that no longer
    looks like itself is lost for good.
    """

    info = PropagatorInfo(
        "flow", "none: optical flow and GrabCut", "none", "Apache-2.0"
    )

    def __init__(self, options: FlowOptions | None = None) -> None:
        """Takes the options; the defaults when None."""
        self.options = options or FlowOptions()

    @classmethod
    def from_pretrained(
        cls,
        weights: None = None,
        *,
        device: str | None = None,
        options: FlowOptions | None = None,
    ) -> FlowPropagator:
        """Makes a propagator, which needs neither weights nor a device."""
        return cls(options)

    def propagate(self, request: PropagationRequest) -> StreamPropagation:
        """Starts or resumes a run; see the protocol."""
        sharpen = self.options.sharpen
        return StreamPropagation(
            request,
            lambda: FlowTracker(request.overlap, sharpen),
            (self.info, self.options),
        )


class FlowTracker:
    """A :class:`~fiftyone_regioncap.propagation.stream.Tracker` over optical flow."""

    def __init__(self, overlap: bool, sharpen: bool = True) -> None:
        """Starts with nothing seen.

        Args:
            overlap: Whether objects may share pixels.
            sharpen: Whether GrabCut moves outlines to edges of the image.
        """
        self._overlap = overlap
        self._sharpen = sharpen
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._previous: NDArray[np.uint8] | None = None
        self._soft: dict[int, NDArray[np.float32]] = {}
        self._colors: dict[int, NDArray[np.float32]] = {}

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Processes the next frame; see the protocol."""
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if self._previous is not None and self._soft:
            back = self._flow.calc(gray, self._previous, None)
            self._soft = {
                object_id: moved(soft, back) for object_id, soft in self._soft.items()
            }
            if self._sharpen:
                for object_id, soft in self._soft.items():
                    mask = _sharpened(frame, soft > 0.5)
                    self._soft[object_id] = (0.5 * soft + 0.5 * mask).astype(np.float32)
        self._previous = gray
        prompted: dict[int, Mask] = {}
        for prompt in prompts:
            earlier = prompted.get(prompt.object_id)
            mask = prompted_mask(frame, prompt)
            prompted[prompt.object_id] = mask if earlier is None else mask | earlier
        for object_id, mask in prompted.items():
            self._soft[object_id] = mask.astype(np.float32)

        claims = np.stack([soft - 0.5 for soft in self._soft.values()])
        masks = claims > 0 if self._overlap else compete(claims)
        results = {}
        for object_id, mask in zip(list(self._soft), masks, strict=True):
            mask = drop_fragments(mask, _FRAGMENT)
            colors = _histogram(frame, mask)
            if object_id in prompted:
                self._colors[object_id] = colors
            # Bhattacharyya's coefficient: 1 for equal colors, 0 without any pixel.
            score = float(np.sqrt(colors * self._colors[object_id]).sum())
            visible = score >= _VISIBLE
            if not visible:
                self._soft[object_id] = np.zeros_like(self._soft[object_id])
            results[object_id] = ObjectMask(mask if visible else None, min(score, 1.0))
        return results

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Returns all that the next step depends on; see the protocol."""
        state: dict[str, NDArray[np.generic]] = {
            "ids": np.array(list(self._soft), dtype=np.int64)
        }
        if self._previous is not None:
            state["previous"] = self._previous
        for object_id in self._soft:
            state[f"soft.{object_id}"] = self._soft[object_id]
            state[f"colors.{object_id}"] = self._colors[object_id]
        return state

    def restore(self, state: State) -> None:
        """Takes up a :meth:`state`."""
        ids = state["ids"].tolist()
        self._previous = (
            np.array(state["previous"], dtype=np.uint8) if "previous" in state else None
        )
        self._soft = {i: np.array(state[f"soft.{i}"], dtype=np.float32) for i in ids}
        self._colors = {
            i: np.array(state[f"colors.{i}"], dtype=np.float32) for i in ids
        }


def moved(image: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.float32]:
    """Warps an image of the previous frame onto the new one.

    Args:
        image: Image of the previous frame, (H, W); pixels from outside the frame are 0.
        back: Backward optical flow, (H, W, 2): x and y offsets from each pixel of the
            new frame to its position in the previous one.

    Returns:
        (H, W).
    """
    height, width = image.shape
    x, y = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    return cv2.remap(
        image,
        x + back[..., 0],
        y + back[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )


def prompted_mask(frame: Frame, prompt: Prompt) -> Mask:
    """Returns the mask that a prompt stands for, as far as colors can tell.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        prompt: A mask is taken as it is; a box is cut out by color; points become the
            box around those on the object, at least a tenth of the frame wide. What is
            around points off the object is left out.

    Returns:
        bool (H, W), never empty.
    """
    if prompt.mask is not None:
        return prompt.mask
    height, width = frame.shape[:2]
    points = np.zeros((0, 2)) if prompt.points is None else prompt.points
    on, off = points[prompt.signs], points[~prompt.signs]
    box = prompt.box
    if box is None:
        reach = max(height, width) / 20
        (x1, y1), (x2, y2) = on.min(axis=0) - reach, on.max(axis=0) + reach
        box = (x1, y1, x2, y2)
    x1, y1, x2, y2 = box
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    if not inside.any():  # thinner than a pixel, or between two centers
        inside[min(max(int(y1), 0), height - 1), min(max(int(x1), 0), width - 1)] = True
    # Most objects touch their box in the middle of its sides and leave its corners.
    across = (2 * x - x1 - x2) / (x2 - x1)
    down = (2 * y - y1 - y2) / (y2 - y1)
    likely = inside & (across**2 + down**2 < 0.8)
    mask = grabcut(frame, likely, np.zeros_like(likely), inside)
    for candidate in (mask, inside):
        rest = remove_around(frame, candidate, off)
        if rest.any():
            return rest
    return inside


def _sharpened(frame: Frame, mask: Mask) -> Mask:
    """Returns a carried mask with its outline moved to edges a few pixels away."""
    reach = np.ones((9, 9), np.uint8)
    image = mask.astype(np.uint8)
    sure, possible = cv2.erode(image, reach), cv2.dilate(image, reach)
    return grabcut(frame, mask, sure.astype(bool), possible.astype(bool))


def _histogram(frame: Frame, mask: Mask) -> NDArray[np.float32]:
    """Returns the color histogram of a mask, (8, 8, 8), summing to 1 (0 if empty)."""
    counts = cv2.calcHist(
        [frame], [0, 1, 2], mask.astype(np.uint8), _BINS, [0, 256] * 3
    )
    return (counts / max(float(counts.sum()), 1.0)).astype(np.float32)
