"""The passes over a video that every streaming propagator makes.

A propagator that looks at one frame after the other only writes a :class:`Tracker`; the
order of frames, what is emitted when, and checkpoints are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, FrameMasks, ObjectMask, Prompt
from fiftyone_regioncap.propagation.base import Checkpoint, PropagationRequest

_TRACKER: Final = "tracker."


class Tracker(Protocol):
    """Follows objects from frame to frame in one direction."""

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Takes the next frame.

        Args:
            index: 0-based index of the frame.
            frame: uint8 (H, W, 3) RGB.
            prompts: those on this frame; new objects enter with their first.

        Returns:
            every object that was ever prompted, visible or not.
        """

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that the next step depends on, as arrays by name."""

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes up a :meth:`state`."""


@dataclass(frozen=True)
class Pass:
    """One pass over the video.

    Attributes:
        order: the frames in the order of the pass.
        prompts: that take effect on the pass, by frame.
        entries: by object id, the first frame of the pass on which it is emitted.
    """

    order: range
    prompts: Mapping[int, Sequence[Prompt]]
    entries: Mapping[int, int]

    def emitted(self, frame: int) -> frozenset[int]:
        """The ids of the objects that results on this frame carry."""
        sign = self.order.step
        return frozenset(
            object_id
            for object_id, entry in self.entries.items()
            if frame * sign >= entry * sign
        )


def plan_passes(request: PropagationRequest) -> list[Pass]:
    """Splits a run into passes so that no (frame, object) is emitted twice.

    Args:
        request: The run.

    Returns:
        One pass, or two for ``both``; none of them is empty.
    """
    by_frame: dict[int, list[Prompt]] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for prompt in request.prompts:
        by_frame.setdefault(prompt.frame, []).append(prompt)
        object_id, frame = prompt.object_id, prompt.frame
        first[object_id] = min(first.get(object_id, frame), frame)
        last[object_id] = max(last.get(object_id, frame), frame)
    start = request.start
    if request.direction == "backward":
        return [Pass(range(max(by_frame), start - 1, -1), by_frame, last)]
    passes = [Pass(range(min(by_frame), request.end), by_frame, first)]
    early = {object_id: frame for object_id, frame in first.items() if frame > start}
    if request.direction == "both" and early:
        seeds = {
            frame: [
                prompt
                for prompt in by_frame[frame]
                if early.get(prompt.object_id) == frame
            ]
            for frame in early.values()
        }
        # The prompted frame itself was emitted by the forward pass.
        before = {object_id: frame - 1 for object_id, frame in early.items()}
        passes.append(Pass(range(max(seeds), start - 1, -1), seeds, before))
    return passes


class StreamPropagation:
    """A :class:`~fiftyone_regioncap.propagation.base.Propagation` over a tracker."""

    def __init__(
        self,
        request: PropagationRequest,
        new_tracker: Callable[[], Tracker],
    ) -> None:
        """Starts or resumes a run.

        Args:
            request: The run.
            new_tracker: Makes a tracker that has seen nothing, one for each pass.
        """
        self._frames = request.frames
        self._passes = plan_passes(request)
        self._new_tracker = new_tracker
        self._tracker = new_tracker()
        self._pass = 0
        self._step = 0
        checkpoint = request.checkpoint
        if checkpoint is not None:
            self._pass, self._step = (int(n) for n in checkpoint["position"])
            self._tracker.restore(
                {
                    name[len(_TRACKER) :]: array
                    for name, array in checkpoint.items()
                    if name.startswith(_TRACKER)
                }
            )

    def __iter__(self) -> Iterator[FrameMasks]:
        return self

    def __next__(self) -> FrameMasks:
        """The next frame; see :class:`~fiftyone_regioncap.propagation.base`."""
        while self._pass < len(self._passes):
            current = self._passes[self._pass]
            if self._step == len(current.order):
                self._pass, self._step = self._pass + 1, 0
                self._tracker = self._new_tracker()
                continue
            index = current.order[self._step]
            prompts = current.prompts.get(index, ())
            objects = self._tracker.step(index, self._frames[index], prompts)
            self._step += 1
            emitted = current.emitted(index)
            if emitted:
                return FrameMasks(
                    frame=index,
                    objects={k: v for k, v in objects.items() if k in emitted},
                    prompted=frozenset(p.object_id for p in prompts) & emitted,
                )
        raise StopIteration

    def checkpoint(self) -> Checkpoint:
        """The state after the last frame emitted."""
        state = {_TRACKER + name: a for name, a in self._tracker.state().items()}
        return {"position": np.array([self._pass, self._step]), **state}
