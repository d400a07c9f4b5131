"""What a propagator is: prompts in, masks through the video out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.types import Frame, FrameMasks, Prompt

Direction: TypeAlias = Literal["forward", "backward", "both"]

Checkpoint: TypeAlias = Mapping[str, NDArray[np.generic]]
"""The state of a propagation between two frames, as plain arrays by name."""


class Frames(Protocol):
    """Random access to a video's frames by 0-based index."""

    @property
    def height(self) -> int:
        """Of every frame, in pixels."""

    @property
    def width(self) -> int:
        """Of every frame, in pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame:
        """The frame, uint8 (H, W, 3) RGB."""


@dataclass(frozen=True)
class PropagatorInfo:
    """What a propagator says of itself.

    Attributes:
        name: as users choose it, such as ``"sam2"``.
        model: the published name of the weights (``"facebook/sam2.1-hiera-tiny"``).
        revision: of the weights: a hub commit or a sha256.
        license: SPDX id of the weights' license.
    """

    name: str
    model: str
    revision: str
    license: str


class Propagation(Protocol):
    """One run over a video: an iterator that can be put aside and taken up again."""

    def __iter__(self) -> Iterator[FrameMasks]: ...

    def __next__(self) -> FrameMasks:
        """The next frame of the pass.

        Forward passes ascend, backward passes descend; ``both`` is a forward pass and
        then a backward pass over the frames before each object's first prompt, so that
        no (frame, object) comes twice. Frames before an object's first prompt (forward)
        or after its last (backward) don't carry that object.
        """

    def checkpoint(self) -> Checkpoint:
        """The state after the last frame given out; continuing from it changes nothing.

        Its size is bounded by the model's memory, never by the video's length.
        """


class Propagator(Protocol):
    """Carries prompts through a video in memory that doesn't grow with its length."""

    @property
    def info(self) -> PropagatorInfo:
        """Name, weights and license."""

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
    ) -> Propagation:
        """Starts a run.

        Args:
            frames: the video.
            prompts: on any frames in [start, stop), several per object allowed.
            direction: which way from the prompts.
            start: first frame of interest, 0-based.
            stop: one past the last frame of interest; None means the end.
            overlap: whether objects may share pixels; else each pixel goes to the
                object that claims it most.
            checkpoint: of an interrupted run with the same arguments, to go on from.

        Returns:
            an iterator over frames.

        Raises:
            PromptError: when a prompt doesn't fit (see :meth:`Prompt.check`), lies
                outside [start, stop), or one object has two different labels.
        """
