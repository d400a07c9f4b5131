"""The passes over a video that every propagator makes, and their checkpoints.

A propagator that looks at one frame after the other only writes a :class:`Tracker`;
:class:`StreamPropagation` does the rest. One that needs more derives from
:class:`PassIterator`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Frame, FrameMasks, ObjectMask, Prompt
from fiftyone_regioncap.propagation.base import Checkpoint, PropagationRequest
from fiftyone_regioncap.propagation.grabcut import remove_around
from fiftyone_regioncap.propagation.prompts import separate_prompts

Result = TypeVar("Result")

State: TypeAlias = Mapping[str, NDArray[np.generic]]
"""All that the next step depends on, as arrays by name."""

_STATE: Final = "state/"


@dataclass(frozen=True)
class Pass:
    """One pass over the video.

    Attributes:
        frames: The frames in the order of the pass.
        prompts: Prompts that take effect on the pass, by frame.
        entries: First frame of the pass on which an object is emitted, by object id.
    """

    frames: range
    prompts: Mapping[int, Sequence[Prompt]]
    entries: Mapping[int, int]

    def emitted(self, frame: int) -> frozenset[int]:
        """Returns the ids of the objects that results on this frame carry."""
        step = self.frames.step
        return frozenset(
            object_id
            for object_id, entry in self.entries.items()
            if frame * step >= entry * step
        )


def plan_passes(request: PropagationRequest) -> list[Pass]:
    """Splits a run into passes so that no (frame, object) is emitted twice.

    Prompts that only say where their object is not correct the mask that is carried to
    their frame, so they start nothing.

    Args:
        request: Video, prompts and range of the run.

    Returns:
        One pass, or two for ``both``; none of them is empty.
    """
    by_frame: dict[int, list[Prompt]] = {}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for prompt in request.prompts:
        by_frame.setdefault(prompt.frame, []).append(prompt)
        if not prompt.negative_only:
            object_id, frame = prompt.object_id, prompt.frame
            first[object_id] = min(first.get(object_id, frame), frame)
            last[object_id] = max(last.get(object_id, frame), frame)
    start = request.start
    if request.direction == "backward":
        return [Pass(range(max(last.values()), start - 1, -1), by_frame, last)]
    passes = [Pass(range(min(first.values()), request.end), by_frame, first)]
    early = {object_id: frame for object_id, frame in first.items() if frame > start}
    if request.direction == "both" and early:
        # Each starts again from its first prompt, which the forward pass has emitted.
        seeds = {
            frame: [p for p in prompts if frame <= early.get(p.object_id, -1)]
            for frame, prompts in by_frame.items()
        }
        before = {object_id: frame - 1 for object_id, frame in early.items()}
        frames = range(max(early.values()), start - 1, -1)
        passes.append(Pass(frames, seeds, before))
    return passes


class PassIterator(ABC, Generic[Result]):
    """Visits the frames of a run pass by pass, from the start or a checkpoint on."""

    def __init__(self, request: PropagationRequest, model: object) -> None:
        """Plans the run; nothing is computed before the first frame is asked for.

        Args:
            request: Video, prompts and range of the run.
            model: Description of the model, by its ``repr``: everything else that the
                results depend on.
        """
        self.frames = request.frames
        self.passes = plan_passes(request)
        self.pass_index = 0
        self.done_in_pass = 0
        self._fingerprint = _fingerprint(request, model)

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Goes on from a checkpoint; without one, from the start.

        Raises:
            BackendError: When the checkpoint belongs to a run with other arguments.
        """
        if checkpoint is None:
            return
        if not np.array_equal(checkpoint.get("run", ()), self._fingerprint):
            raise BackendError(
                "the checkpoint belongs to a run with another model, video or prompts; "
                "repeat that run's arguments, or start without the checkpoint"
            )
        self.pass_index, self.done_in_pass = map(int, checkpoint["position"])
        self._restore(
            {
                name.removeprefix(_STATE): array
                for name, array in checkpoint.items()
                if name.startswith(_STATE)
            }
        )

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """Returns the result of the next frame that carries an object."""
        while self.pass_index < len(self.passes):
            current = self.passes[self.pass_index]
            if self.done_in_pass == len(current.frames):
                self.pass_index, self.done_in_pass = self.pass_index + 1, 0
                self._end_pass()
                continue
            result = self._visit(current, current.frames[self.done_in_pass])
            self.done_in_pass += 1
            if result is not None:
                return result
        raise StopIteration

    def checkpoint(self) -> Checkpoint:
        """Returns the state after the last frame emitted."""
        state = {_STATE + name: array for name, array in self._state().items()}
        position = np.array([self.pass_index, self.done_in_pass], dtype=np.int64)
        return {"run": self._fingerprint, "position": position, **state}

    @abstractmethod
    def _visit(self, current: Pass, frame: int) -> Result | None:
        """Processes a frame; None when it emits no object."""

    @abstractmethod
    def _end_pass(self) -> None:
        """Prepares for the pass at ``pass_index``, or for the end of the run."""

    @abstractmethod
    def _state(self) -> State:
        """Returns all that the next visit depends on."""

    @abstractmethod
    def _restore(self, state: State) -> None:
        """Takes up a state."""


def _fingerprint(request: PropagationRequest, model: object) -> NDArray[np.uint8]:
    """Returns a hash of all that a run's results depend on, uint8 (32,)."""
    frames = request.frames
    shape = (len(frames), frames.height, frames.width)
    span = (request.direction, request.start, request.end, request.overlap)
    digest = hashlib.sha256(repr((model, shape, span)).encode())
    for prompt in request.prompts:
        box = None if prompt.box is None else tuple(map(float, prompt.box))
        digest.update(repr((prompt.object_id, prompt.frame, box)).encode())
        if prompt.points is not None:
            digest.update(np.asarray(prompt.points, dtype=np.float64).tobytes())
            digest.update(prompt.signs.tobytes())
        if prompt.mask is not None:
            digest.update(np.packbits(prompt.mask).tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)


class Tracker(Protocol):
    """Follows objects from frame to frame in one direction."""

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Processes the next frame.

        Args:
            index: 0-based index of the frame.
            frame: RGB frame, uint8 (H, W, 3).
            prompts: The prompts on this frame; new objects enter with their first. An
                object is the union of what its prompts mean, and each of them says
                where it is; masks come without points.

        Returns:
            Every object that was ever prompted, visible or not.
        """

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Returns all that the next step depends on, as arrays by name."""

    def restore(self, state: State) -> None:
        """Takes up a :meth:`state`."""


class StreamPropagation(PassIterator[FrameMasks]):
    """A :class:`~fiftyone_regioncap.propagation.base.Propagation` over a tracker."""

    def __init__(
        self,
        request: PropagationRequest,
        new_tracker: Callable[[], Tracker],
        model: object = None,
    ) -> None:
        """Starts or resumes a run.

        Args:
            request: Video, prompts and range of the run.
            new_tracker: Makes a new tracker without state, one for each pass.
            model: Description of the model, by its ``repr``: everything else that the
                results depend on.
        """
        super().__init__(request, model)
        self._new_tracker = new_tracker
        self._tracker = new_tracker()
        self.resume(request.checkpoint)

    def _visit(self, current: Pass, frame: int) -> FrameMasks | None:
        prompts = current.prompts.get(frame, ())
        objects = self._step(frame, self.frames[frame], prompts)
        emitted = current.emitted(frame)
        if not emitted:
            return None
        return FrameMasks(
            frame=frame,
            objects={k: v for k, v in objects.items() if k in emitted},
            prompted=frozenset(p.object_id for p in prompts) & emitted,
        )

    def _step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        by_object: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            by_object.setdefault(prompt.object_id, []).append(prompt)
        plain: list[Prompt] = []
        corrections: dict[int, list[Prompt]] = {}
        for object_id, given in by_object.items():
            if all(prompt.negative_only for prompt in given):
                corrections[object_id] = given
            else:
                plain += separate_prompts(frame, given)
        if not corrections:
            return self._tracker.step(index, frame, plain)
        # The mask that is carried here, corrected, becomes a prompt of the same step.
        before = self._tracker.state()
        carried = self._tracker.step(index, frame, plain)
        for object_id, given in corrections.items():
            mask = carried[object_id].mask
            if mask is not None:
                points = np.concatenate(
                    [p.points for p in given if p.points is not None]
                )
                corrected = remove_around(frame, mask, points)
                if corrected.any():
                    plain.append(Prompt(object_id, index, mask=corrected))
        self._tracker = self._new_tracker()
        self._tracker.restore(before)
        return self._tracker.step(index, frame, plain)

    def _end_pass(self) -> None:
        self._tracker = self._new_tracker()

    def _state(self) -> State:
        return self._tracker.state()

    def _restore(self, state: State) -> None:
        self._tracker.restore(state)
