"""The passes over a video that every streaming propagator makes.

A propagator that looks at one frame after the other only writes a :class:`Tracker`; the
order of frames, what is given out when, validation and checkpoints are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Frame, FrameMasks, ObjectMask, Prompt
from fiftyone_regioncap.propagation.base import Checkpoint, Direction, Frames

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
    """One walk over the video.

    Attributes:
        order: the frames in the order of the walk.
        prompts: that take effect on the walk, by frame.
        entries: by object id, the first frame of the walk on which it is given out.
    """

    order: range
    prompts: Mapping[int, Sequence[Prompt]]
    entries: Mapping[int, int]

    def given_out(self, frame: int) -> frozenset[int]:
        """The ids of the objects that results on this frame carry."""
        sign = self.order.step
        return frozenset(
            object_id
            for object_id, entry in self.entries.items()
            if frame * sign >= entry * sign
        )


def check_prompts(
    prompts: Sequence[Prompt], frames: Frames, start: int, stop: int | None
) -> int:
    """Validates a run's arguments.

    Args:
        prompts: of the run.
        frames: the video.
        start: first frame of interest.
        stop: one past the last frame of interest, or None.

    Returns:
        the actual ``stop``.

    Raises:
        PromptError: as :meth:`Propagator.propagate` says.
    """
    end = len(frames) if stop is None else stop
    if not 0 <= start < end <= len(frames):
        raise PromptError(
            f"frames {start} to {end} were asked for, the video has {len(frames)}; "
            "give 0 <= start < stop <= the number of frames"
        )
    if not prompts:
        raise PromptError("no prompts; give at least one box, point or mask")
    labels: dict[int, str] = {}
    for prompt in prompts:
        prompt.check(frames.height, frames.width, len(frames))
        who = f"prompt of object {prompt.object_id} on frame {prompt.frame}"
        if not start <= prompt.frame < end:
            raise PromptError(
                f"{who}: outside the frames of interest, {start} to {end - 1}; "
                "widen them or drop the prompt"
            )
        if prompt.label is not None:
            known = labels.setdefault(prompt.object_id, prompt.label)
            if known != prompt.label:
                raise PromptError(
                    f"{who}: labeled {prompt.label!r}, elsewhere {known!r}; "
                    "give different objects different ids"
                )
    return end


def plan_passes(
    prompts: Sequence[Prompt], direction: Direction, start: int, stop: int
) -> list[Pass]:
    """Splits a run into walks so that no (frame, object) is given out twice.

    Args:
        prompts: validated by :func:`check_prompts`.
        direction: which way from the prompts.
        start: first frame of interest.
        stop: one past the last frame of interest.

    Returns:
        one walk, or two for ``both`` (none of them empty).
    """
    by_frame: dict[int, list[Prompt]] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for prompt in prompts:
        by_frame.setdefault(prompt.frame, []).append(prompt)
        object_id, frame = prompt.object_id, prompt.frame
        first[object_id] = min(first.get(object_id, frame), frame)
        last[object_id] = max(last.get(object_id, frame), frame)
    if direction == "backward":
        return [Pass(range(max(by_frame), start - 1, -1), by_frame, last)]
    passes = [Pass(range(min(by_frame), stop), by_frame, first)]
    early = {object_id: frame for object_id, frame in first.items() if frame > start}
    if direction == "both" and early:
        seeds = {
            frame: [
                prompt
                for prompt in by_frame[frame]
                if early.get(prompt.object_id) == frame
            ]
            for frame in early.values()
        }
        # The prompted frame itself was given out by the forward walk.
        before = {object_id: frame - 1 for object_id, frame in early.items()}
        passes.append(Pass(range(max(seeds), start - 1, -1), seeds, before))
    return passes


class StreamPropagation:
    """A :class:`~fiftyone_regioncap.propagation.base.Propagation` over a tracker."""

    def __init__(
        self,
        frames: Frames,
        passes: Sequence[Pass],
        new_tracker: Callable[[], Tracker],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Starts a run or goes on with one.

        Args:
            frames: the video.
            passes: from :func:`plan_passes`.
            new_tracker: makes a tracker that has seen nothing, one for each pass.
            checkpoint: of :meth:`checkpoint`, to go on from.
        """
        self._frames = frames
        self._passes = passes
        self._new_tracker = new_tracker
        self._tracker = new_tracker()
        self._pass = 0
        self._step = 0
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
            walk = self._passes[self._pass]
            if self._step == len(walk.order):
                self._pass, self._step = self._pass + 1, 0
                self._tracker = self._new_tracker()
                continue
            index = walk.order[self._step]
            prompts = walk.prompts.get(index, ())
            objects = self._tracker.step(index, self._frames[index], prompts)
            self._step += 1
            shown = walk.given_out(index)
            if shown:
                return FrameMasks(
                    frame=index,
                    objects={k: v for k, v in objects.items() if k in shown},
                    prompted=frozenset(p.object_id for p in prompts) & shown,
                )
        raise StopIteration

    def checkpoint(self) -> Checkpoint:
        """The state after the last frame given out."""
        state = {_TRACKER + name: a for name, a in self._tracker.state().items()}
        return {"position": np.array([self._pass, self._step]), **state}
