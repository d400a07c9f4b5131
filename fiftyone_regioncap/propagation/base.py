"""Protocol of propagators: prompts in, masks through the video out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Frame, FrameMasks, Prompt
from fiftyone_regioncap.propagation.prompts import check_prompts

Direction: TypeAlias = Literal["forward", "backward", "both"]

Checkpoint: TypeAlias = Mapping[str, NDArray[np.generic]]
"""The state of a propagation between two frames, as plain arrays by name."""


class Frames(Protocol):
    """Random access to a video's frames by 0-based index."""

    @property
    def height(self) -> int:
        """Returns the height of the frames in pixels."""

    @property
    def width(self) -> int:
        """Returns the width of the frames in pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame:
        """Returns a frame, uint8 (H, W, 3) RGB."""


@dataclass(frozen=True)
class PropagationRequest:
    """A run of a propagator over a video; constructing it validates it.

    Attributes:
        frames: Frames of the video.
        prompts: Prompts of the objects, on any frames in [start, stop); several per
            object allowed, also on one frame.
        direction: Direction of propagation from the prompts: ``"forward"``,
            ``"backward"`` or ``"both"``.
        start: First frame of interest, 0-based.
        stop: One past the last frame of interest; None for the end of the video.
        overlap: Whether objects may share pixels; otherwise each pixel goes to the
            object with the strongest claim.
        checkpoint: State of an interrupted run with the same arguments, to resume it;
            None to start from the beginning.

    Raises:
        PromptError: When the video has no frames, the range holds none of them, the
            direction is unknown, there is no prompt, or one does not fit (see
            :func:`~fiftyone_regioncap.propagation.prompts.check_prompts`).
    """

    frames: Frames
    prompts: Sequence[Prompt]
    direction: Direction = "forward"
    start: int = 0
    stop: int | None = None
    overlap: bool = False
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        frame_count = len(self.frames)
        if frame_count == 0:
            raise PromptError("the video has no frames; check that it can be decoded")
        if not 0 <= self.start < self.end <= frame_count:
            raise PromptError(
                f"start {self.start} and stop {self.end} are no range of the video's "
                f"{frame_count} frames; give 0 <= start < stop <= the number of frames"
            )
        if self.direction not in get_args(Direction):
            raise PromptError(
                f"there is no direction {self.direction!r}; "
                f"choose one of {', '.join(get_args(Direction))}"
            )
        if not self.prompts:
            raise PromptError("no prompts; give at least one box, point or mask")
        _, problems = check_prompts(
            self.prompts,
            height=self.frames.height,
            width=self.frames.width,
            frame_count=frame_count,
            start=self.start,
            stop=self.end,
            direction=self.direction,
        )
        if problems:
            raise PromptError("; ".join(problem.reason for problem in problems))

    @property
    def end(self) -> int:
        """Returns the index one past the last frame of interest."""
        return len(self.frames) if self.stop is None else self.stop


@dataclass(frozen=True)
class PropagatorInfo:
    """Describes a propagator and its weights.

    Attributes:
        name: Name that users choose it by, such as ``"sam2"``.
        model: Published name of the weights (``"facebook/sam2.1-hiera-tiny"``).
        revision: Revision of the weights: a hub commit or a sha256.
        license: SPDX id of the weights' license, or a short name for others.
    """

    name: str
    model: str
    revision: str
    license: str


class Propagation(Protocol):
    """A run over a video: an iterator that can be interrupted and resumed."""

    def __iter__(self) -> Iterator[FrameMasks]: ...

    def __next__(self) -> FrameMasks:
        """Returns the masks of the next frame of the pass.

        Forward passes ascend, backward passes descend; ``both`` is a forward pass and
        then a backward pass over the frames before each object's first prompt, so that
        no (frame, object) comes twice. Frames before an object's first prompt (forward)
        or after its last (backward) don't carry that object.
        """

    def checkpoint(self) -> Checkpoint:
        """Returns the state after the last frame emitted, to resume the run from.

        Its size is bounded by the model's memory, never by the video's length.
        """


class Propagator(Protocol):
    """Carries prompts through a video in memory that doesn't grow with its length.

    A class that a :class:`~fiftyone_regioncap.models.registry.ModelCard` names also has
    a class method ``from_pretrained(weights, *, device, options)`` and an attribute
    ``options``; see
    :class:`fiftyone_regioncap.captioning.base.Captioner`.
    """

    @property
    def info(self) -> PropagatorInfo:
        """Returns the name, weights and license."""

    def propagate(self, request: PropagationRequest) -> Propagation:
        """Starts or resumes a run.

        Args:
            request: The video, the prompts, and how they are carried.

        Returns:
            An iterator over the masks of each frame.

        Raises:
            BackendError: When the request's checkpoint belongs to another run.
        """
