"""When to stop following an object, whatever propagator follows it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.core.types import Frame, FrameMasks, Mask, ObjectMask
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Frames,
    Propagation,
    PropagationRequest,
    Propagator,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.prompts import check_prompts
from fiftyone_regioncap.video.scene_cuts import SceneCutDetector

PREFIX = "policy/"
SHARED_FRAMES = 8
"""Decoded frames kept, so that the propagator and the policy don't both decode them."""

ALIKE = 0.6
"""Overlap of two color histograms above which they count as the same object's."""


@dataclass(frozen=True)
class Policy(Options):
    """What ends a track before the video does."""

    max_frames: int | None = option(
        None,
        "Follow objects for this many frames from their first prompt (backward: from "
        "the last); later prompts are left out.",
        unit="frames",
        minimum=1,
    )
    min_score: float | None = option(
        None,
        "Stop following an object, until its next prompt, after its score stays below "
        "this for --patience frames.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    patience: int = option(
        5,
        "Stop following an object after its score stays below --min-score for this "
        "many frames.",
        unit="frames",
        minimum=1,
        advanced=True,
    )
    scene_cuts: Literal["ignore", "stop", "redetect"] = option(
        "ignore",
        "What happens to tracks at a scene cut.",
        choices={
            "ignore": "go on across it",
            "stop": "stop every object until its next prompt",
            "redetect": "hide an object until something has its colors again",
        },
        advanced=True,
    )
    cut_sensitivity: float = option(
        0.5,
        "Sensitivity of scene cut detection; higher finds more cuts.",
        minimum=0.01,
        maximum=1,
        advanced=True,
    )


class PolicyPropagator:
    """A propagator that keeps to a policy; see :class:`Propagator`."""

    def __init__(self, propagator: Propagator, policy: Policy) -> None:
        self._propagator = propagator
        self._policy = policy

    @property
    def info(self) -> PropagatorInfo:
        """Of the propagator underneath."""
        return self._propagator.info

    def propagate(self, request: PropagationRequest) -> Propagation:
        """Starts or resumes a run; see :meth:`Propagator.propagate`."""
        policy, checkpoint = self._policy, request.checkpoint
        if policy.max_frames is not None:
            request = _narrowed(request, policy.max_frames)
        if policy.scene_cuts != "ignore":
            request = replace(request, frames=_SharedFrames(request.frames))
        if checkpoint is not None:
            inner = {k: v for k, v in checkpoint.items() if not k.startswith(PREFIX)}
            request = replace(request, checkpoint=inner)
        supervised = _Supervised(self._propagator.propagate(request), request, policy)
        if checkpoint is not None:
            supervised.restore(checkpoint)
        return supervised


def _narrowed(request: PropagationRequest, max_frames: int) -> PropagationRequest:
    """The request over at most so many frames from the first (last) prompt."""
    start, stop = request.start, request.end
    frames = [p.frame for p in request.prompts if not p.negative_only]
    if request.direction != "forward":
        seed = max(frames) if request.direction == "backward" else min(frames)
        start = max(start, seed - max_frames + 1)
    if request.direction != "backward":
        stop = min(stop, min(frames) + max_frames)
    prompts, _ = check_prompts(
        request.prompts,
        height=request.frames.height,
        width=request.frames.width,
        frame_count=len(request.frames),
        start=start,
        stop=stop,
        direction=request.direction,
    )
    return replace(request, prompts=prompts, start=start, stop=stop)


@dataclass
class _Watch:
    """How one object is doing.

    Attributes:
        weak: frames in a row with a score that is too low.
        lost: whether it is given out no more until it is prompted.
        doubted: whether it is hidden until it looks like itself again.
        colors: float32 (n,), of it where it was last seen well; empty if never.
    """

    weak: int = 0
    lost: bool = False
    doubted: bool = False
    colors: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(0, dtype=np.float32)
    )


class _Supervised:
    def __init__(
        self, run: Propagation, request: PropagationRequest, policy: Policy
    ) -> None:
        self._run = run
        self._frames = request.frames
        self._prompted = {prompt.frame for prompt in request.prompts}
        self._direction = direction = request.direction
        self._policy = policy
        self._watches: dict[int, _Watch] = {}
        self._last: int | None = None
        self._backward = direction == "backward"
        self._cuts = SceneCutDetector(policy.cut_sensitivity)

    def __iter__(self) -> Iterator[FrameMasks]:
        return self

    def __next__(self) -> FrameMasks:
        if self._finished():
            raise StopIteration
        found = next(self._run)
        if self._last is not None and found.frame < self._last and not self._backward:
            self._turn()
        self._last = found.frame
        cut = self._policy.scene_cuts != "ignore" and self._cuts.is_cut(
            self._frames[found.frame]
        )
        objects = {}
        for object_id, item in found.objects.items():
            watch = self._judge(object_id, item, found, cut)
            if not watch.lost:
                hidden = ObjectMask(None, item.score)
                objects[object_id] = hidden if watch.doubted else item
        return FrameMasks(found.frame, objects, found.prompted)

    def _turn(self) -> None:
        """A backward pass begins: it starts from the prompts anew."""
        self._backward = True
        self._cuts = SceneCutDetector(self._policy.cut_sensitivity)
        for watch in self._watches.values():
            watch.weak, watch.lost, watch.doubted = 0, False, False

    def _finished(self) -> bool:
        """Whether every object is lost and none is prompted again."""
        watches = self._watches.values()
        if self._last is None or not watches or not all(w.lost for w in watches):
            return False
        if self._direction == "both":
            # The way back is still to come, or other objects may join on it.
            return False
        last = self._last
        return not any(
            frame < last if self._backward else frame > last for frame in self._prompted
        )

    def _judge(
        self, object_id: int, item: ObjectMask, found: FrameMasks, cut: bool
    ) -> _Watch:
        policy = self._policy
        watch = self._watches.setdefault(object_id, _Watch())
        if object_id in found.prompted:
            watch.weak, watch.lost, watch.doubted = 0, False, False
        elif cut and policy.scene_cuts == "stop":
            watch.lost = True
        elif cut:
            watch.doubted = True
        if watch.lost:
            return watch
        if policy.scene_cuts == "redetect" and item.mask is not None:
            colors = _colors(self._frames[found.frame], item.mask)
            if watch.doubted and watch.colors.size:
                overlap = float(np.minimum(colors, watch.colors).sum())
                watch.doubted = overlap < ALIKE
            if not watch.doubted and item.score >= (policy.min_score or 0.5):
                watch.colors = colors
        if policy.min_score is not None:
            watch.weak = watch.weak + 1 if item.score < policy.min_score else 0
            watch.lost = watch.weak >= policy.patience
        return watch

    def checkpoint(self) -> Checkpoint:
        """See :meth:`Propagation.checkpoint`."""
        arrays = dict(self._run.checkpoint())
        if self._last is None:
            return arrays
        arrays[PREFIX + "position"] = np.array([self._last, self._backward])
        arrays[PREFIX + "cuts"] = self._cuts.state
        for object_id, watch in self._watches.items():
            key = f"{PREFIX}{object_id}"
            arrays[f"{key}/flags"] = np.array([watch.weak, watch.lost, watch.doubted])
            arrays[f"{key}/colors"] = watch.colors
        return arrays

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on where the checkpoint was made."""
        if PREFIX + "position" not in checkpoint:
            return
        last, backward = (int(value) for value in checkpoint[PREFIX + "position"])
        self._last, self._backward = last, bool(backward)
        if self._policy.scene_cuts != "ignore":
            self._cuts.restore(self._frames[last], checkpoint[PREFIX + "cuts"].tolist())
        for name, array in checkpoint.items():
            if not (name.startswith(PREFIX) and name.endswith("/flags")):
                continue
            object_id = int(name.removeprefix(PREFIX).removesuffix("/flags"))
            weak, lost, doubted = (int(value) for value in array)
            colors = checkpoint[f"{PREFIX}{object_id}/colors"].astype(np.float32)
            self._watches[object_id] = _Watch(weak, bool(lost), bool(doubted), colors)


def _colors(frame: Frame, mask: Mask) -> NDArray[np.float32]:
    """Histogram of hue and saturation and value inside a mask; its sum is 1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    hsv = cv2.cvtColor(np.ascontiguousarray(frame[crop]), cv2.COLOR_RGB2HSV)
    counts = cv2.calcHist(
        [hsv],
        [0, 1, 2],
        mask[crop].astype(np.uint8),
        [8, 4, 4],
        [0, 180, 0, 256, 0, 256],
    ).ravel()
    return counts / counts.sum()


class _SharedFrames:
    """The last decoded frames, for two readers in different threads."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Frame] = OrderedDict()

    @property
    def height(self) -> int:
        return self._frames.height

    @property
    def width(self) -> int:
        return self._frames.width

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        with self._lock:
            frame = self._kept.get(index)
            if frame is None:
                frame = self._frames[index]
                self._kept[index] = frame
            self._kept.move_to_end(index)
            while len(self._kept) > SHARED_FRAMES:
                self._kept.popitem(last=False)
            return frame
