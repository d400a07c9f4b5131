"""Stops following lost objects, whatever propagator follows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.core.types import Frame, FrameMasks, ObjectMask
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Frames,
    Propagation,
    PropagationRequest,
    Propagator,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.histograms import hsv_histogram, overlap
from fiftyone_regioncap.video.scene_cuts import SceneCutDetector

PREFIX = "policy/"
SHARED_FRAMES = 8
"""Decoded frames kept, so that the propagator and the policy don't both decode them."""

ALIKE = 0.6
"""Overlap of two color histograms above which they count as the same object's."""

_BINS = (8, 4, 4)


@dataclass(frozen=True)
class Policy(Options):
    """Options that end tracks before the video ends."""

    max_frames: int | None = option(
        None,
        "Follow each object for this many frames from its first prompt (backward: from "
        "its last); its later prompts are left out.",
        unit="frames",
        minimum=1,
        advanced=True,
    )
    min_score: float | None = option(
        None,
        "Stop following an object, until its next prompt, after its score stays below "
        "this for as many frames as patience says.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    patience: int = option(
        5,
        "Stop following an object after its score stays below min_score for this "
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
        """Returns name, weights and license of the propagator underneath."""
        return self._propagator.info

    def propagate(self, request: PropagationRequest) -> Propagation:
        """Starts or resumes a run; see :meth:`Propagator.propagate`."""
        policy, checkpoint = self._policy, request.checkpoint
        windows: dict[int, range] = {}
        if policy.max_frames is not None:
            windows = _windows(request, policy.max_frames)
            request = _narrowed(request, windows)
        if policy.scene_cuts != "ignore":
            request = replace(request, frames=_SharedFrames(request.frames))
        if checkpoint is not None:
            inner = {k: v for k, v in checkpoint.items() if not k.startswith(PREFIX)}
            request = replace(request, checkpoint=inner)
        run = self._propagator.propagate(request)
        supervised = _Supervised(run, request, policy, windows)
        if checkpoint is not None:
            supervised.restore(checkpoint)
        return supervised


def _windows(request: PropagationRequest, max_frames: int) -> dict[int, range]:
    """Returns the frames on which each object is followed.

    Each is counted from the object's own first (backward: last) prompt, so that what
    becomes of it depends on no other.
    """
    frames: dict[int, list[int]] = {}
    for prompt in request.prompts:
        if not prompt.negative_only:
            frames.setdefault(prompt.object_id, []).append(prompt.frame)
    windows = {}
    for object_id, own in frames.items():
        seed = max(own) if request.direction == "backward" else min(own)
        start, stop = seed, seed + 1
        if request.direction != "forward":
            start = max(request.start, seed - max_frames + 1)
        if request.direction != "backward":
            stop = min(request.end, seed + max_frames)
        windows[object_id] = range(start, stop)
    return windows


def _narrowed(
    request: PropagationRequest, windows: Mapping[int, range]
) -> PropagationRequest:
    """Returns the request cut to the windows of its objects."""
    return replace(
        request,
        prompts=[p for p in request.prompts if p.frame in windows.get(p.object_id, ())],
        start=min(window.start for window in windows.values()),
        stop=max(window.stop for window in windows.values()),
    )


@dataclass
class _ObjectStatus:
    """The status of one object.

    Attributes:
        weak: Number of frames in a row with a score that is too low.
        lost: Whether it is no longer emitted until it is prompted.
        doubted: Whether it is hidden until it looks like itself again.
        colors: Color histogram where it was last seen well, float32 (n,); empty if
            never.
    """

    weak: int = 0
    lost: bool = False
    doubted: bool = False
    colors: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(0, dtype=np.float32)
    )

    def reset(self) -> None:
        """Trusts the object again, as it was prompted."""
        self.weak, self.lost, self.doubted = 0, False, False


class _Supervised:
    def __init__(
        self,
        run: Propagation,
        request: PropagationRequest,
        policy: Policy,
        windows: Mapping[int, range],
    ) -> None:
        self._run = run
        self._windows = windows
        self._frames = request.frames
        self._prompted = {prompt.frame for prompt in request.prompts}
        self._direction = direction = request.direction
        self._policy = policy
        self._statuses: dict[int, _ObjectStatus] = {}
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
            if self._windows and found.frame not in self._windows[object_id]:
                continue
            status = self._judge(object_id, item, found, cut)
            if not status.lost:
                hidden = ObjectMask(None, item.score)
                objects[object_id] = hidden if status.doubted else item
        return FrameMasks(found.frame, objects, found.prompted)

    def _turn(self) -> None:
        """Starts the backward pass, which begins at the prompts again."""
        self._backward = True
        self._cuts = SceneCutDetector(self._policy.cut_sensitivity)
        for status in self._statuses.values():
            status.reset()

    def _finished(self) -> bool:
        """Returns whether every object is lost and none is prompted again."""
        statuses = self._statuses.values()
        if self._last is None or not statuses or not all(w.lost for w in statuses):
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
    ) -> _ObjectStatus:
        policy = self._policy
        status = self._statuses.setdefault(object_id, _ObjectStatus())
        if object_id in found.prompted:
            status.reset()
        elif cut and policy.scene_cuts == "stop":
            status.lost = True
        elif cut:
            status.doubted = True
        if status.lost:
            return status
        if policy.scene_cuts == "redetect" and item.mask is not None:
            colors = hsv_histogram(self._frames[found.frame], item.mask, _BINS)
            if status.doubted and status.colors.size:
                status.doubted = overlap(colors, status.colors) < ALIKE
            if not status.doubted and item.score >= (policy.min_score or 0.5):
                status.colors = colors
        if policy.min_score is not None:
            status.weak = status.weak + 1 if item.score < policy.min_score else 0
            status.lost = status.weak >= policy.patience
        return status

    def checkpoint(self) -> Checkpoint:
        """See :meth:`Propagation.checkpoint`."""
        arrays = dict(self._run.checkpoint())
        if self._last is None:
            return arrays
        arrays[PREFIX + "position"] = np.array([self._last, self._backward])
        arrays[PREFIX + "cuts"] = self._cuts.state
        for object_id, status in self._statuses.items():
            key = f"{PREFIX}{object_id}"
            arrays[f"{key}/flags"] = np.array(
                [status.weak, status.lost, status.doubted]
            )
            arrays[f"{key}/colors"] = status.colors
        return arrays

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes up the state of a checkpoint."""
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
            self._statuses[object_id] = _ObjectStatus(
                weak, bool(lost), bool(doubted), colors
            )


class _SharedFrames:
    """The frames of a video, the last ones kept for readers in several threads."""

    def __init__(self, frames: Frames) -> None:
        self.height, self.width = frames.height, frames.width
        self._count = len(frames)
        self._lock = threading.Lock()
        self._read = lru_cache(SHARED_FRAMES)(frames.__getitem__)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Frame:
        with self._lock:
            return self._read(index)
