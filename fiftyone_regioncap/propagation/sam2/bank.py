"""Memory of one object: as much as the model can attend to, and no more."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor

from fiftyone_regioncap.core.types import Prompt

Step = Literal[1, -1]
"""Direction of a pass: 1 forward, -1 backward."""


_TABLES: Final = ("conditioning", "memories", "prompt_pointers", "pointers")


@dataclass(frozen=True)
class Outcome:
    """The model's answer for one object on one frame.

    Attributes:
        logits: Low-resolution mask logits, float32 (h, w).
        presence: Logit of the occlusion head, float32 scalar.
        iou: Predicted IoU in [0, 1], float32 scalar.
    """

    logits: Tensor
    presence: Tensor
    iou: Tensor


@dataclass(frozen=True)
class Limits:
    """Reach of the model's memory.

    Attributes:
        memories: Number of frames that the memory attention looks at, conditioning
            frames counted as one.
        pointers: Number of frames whose object pointers it looks at.
        conditioning: Maximum number of conditioning frames whose memories it looks at.
        kept_pointers: Maximum number of conditioning frames whose pointers it looks at.
    """

    memories: int
    pointers: int
    conditioning: int
    kept_pointers: int


def nearest(frames: Sequence[int], frame: int, count: int) -> list[int]:
    """Returns the conditioning frames that a frame looks at.

    The closest before, the closest at or after, then the closest of the rest. As a pass
    moves on, a frame that was left behind is never chosen again, so that it can be
    dropped.

    Args:
        frames: Indices of the conditioning frames, ascending.
        frame: Index of the current frame.
        count: Maximum number of frames; two are always taken where there are two.

    Returns:
        The chosen ones, ascending.
    """
    if len(frames) <= count:
        return list(frames)
    middle = bisect_left(frames, frame)
    chosen = list(frames[max(middle - 1, 0) : middle + 1])
    rest = [other for other in frames if other not in chosen]
    rest.sort(key=lambda other: abs(other - frame))
    return sorted(chosen + rest[: max(count - len(chosen), 0)])


@dataclass
class Bank:
    """The memory of one object.

    Attributes:
        object_id: Id of the object.
        prompts: Prompts that say where the object is, by frame, ascending.
        corrections: Prompts that only say where it is not, by frame.
        conditioning: Memory tokens (n, c) of conditioning frames.
        outcomes: Answers for conditioning frames that are still to be emitted.
        memories: Memory tokens (n, c) of tracked frames.
        prompt_pointers: Object pointers (C,) of conditioning frames.
        pointers: Object pointers (C,) of tracked frames.
        restarted: Frame and direction of the last prompt that contradicted what was
            remembered, which is not looked at since; None where none did.
    """

    object_id: int
    prompts: Mapping[int, Prompt]
    corrections: Mapping[int, Prompt]
    conditioning: dict[int, Tensor] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    memories: dict[int, Tensor] = field(default_factory=dict)
    prompt_pointers: dict[int, Tensor] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)
    restarted: tuple[int, Step] | None = None

    def __post_init__(self) -> None:
        self.prompted = sorted(self.prompts)

    @property
    def first(self) -> int:
        """Returns the first prompted frame."""
        return self.prompted[0]

    @property
    def last(self) -> int:
        """Returns the last prompted frame."""
        return self.prompted[-1]

    def is_hidden(self, frame: int) -> bool:
        """Returns whether a frame lies before the prompt that contradicted it."""
        if self.restarted is None:
            return False
        start, step = self.restarted
        return (frame - start) * step < 0

    def attended(self, frame: int, limits: Limits) -> list[int]:
        """Returns the conditioning frames whose memories ``frame`` uses, ascending."""
        visible = [t for t in self.prompted if not self.is_hidden(t)]
        return nearest(visible, frame, limits.conditioning)

    def missing(self, frame: int, limits: Limits) -> list[int]:
        """Conditioning frames that must be encoded before ``frame`` can be tracked."""
        known = self.conditioning
        wanted = [t for t in self.attended(frame, limits) if t not in known]
        if frame in self.prompts and frame not in self.outcomes and frame not in wanted:
            wanted.append(frame)
        return wanted

    def recall(
        self, frame: int, step: Step, limits: Limits, *, carried: bool = False
    ) -> tuple[tuple[int, ...], list[Tensor]]:
        """Returns the memories that a frame looks at.

        Args:
            frame: The frame.
            step: Direction of the pass.
            limits: Reach of the model's memory.
            carried: Whether to leave out the frame's own prompt and those to come.

        Returns:
            Their distances in frames (0 for conditioning frames) and tokens (n, c).
        """
        attended = self.attended(frame, limits)
        if carried:
            attended = [t for t in attended if (frame - t) * step > 0]
        offsets = [0] * len(attended)
        tokens = [self.conditioning[t] for t in attended]
        for offset in range(limits.memories - 1, 0, -1):
            other = frame - step * offset
            if self.is_hidden(other):
                continue
            memory = self.memories.get(other)
            if memory is None and other not in attended:
                memory = self.conditioning.get(other)
            if memory is not None:
                offsets.append(offset)
                tokens.append(memory)
        return tuple(offsets), tokens

    def recall_pointers(
        self, frame: int, step: Step, limits: Limits, *, carried: bool = False
    ) -> tuple[list[int], list[Tensor]]:
        """Returns the object pointers for a frame: distances in frames, and (C,).

        Args:
            frame: The frame.
            step: Direction of the pass.
            limits: Reach of the model's memory.
            carried: Whether to leave out that of the frame's own prompt.
        """
        # In order of time, so that a bank read from a file adds up to the same bits.
        behind = [
            t
            for t in sorted(self.prompt_pointers)
            if (frame - t) * step >= int(carried) and not self.is_hidden(t)
        ]
        offsets = [(frame - t) * step for t in behind]
        pointers = [self.prompt_pointers[t] for t in behind]
        for offset in range(1, limits.pointers):
            other = frame - step * offset
            pointer = self.pointers.get(other)
            if pointer is not None and not self.is_hidden(other):
                offsets.append(offset)
                pointers.append(pointer)
        return offsets, pointers

    def forget(
        self, following: int, step: Step, limits: Limits, *, returning: bool
    ) -> None:
        """Drops what neither the pass from here on nor the way back can look at.

        Args:
            following: The next frame of the pass.
            step: Direction of the pass.
            limits: Reach of the model's memory.
            returning: Whether a backward pass from the first prompt follows, which
                looks at the frames right after it.
        """

        def seen(frame: int, reach: int) -> bool:
            ahead = (following - frame) * step
            return ahead < reach or (returning and frame - self.first < reach - 1)

        attended = set(self.attended(following, limits))
        for frame in list(self.conditioning):
            if frame not in attended and not seen(frame, limits.memories):
                del self.conditioning[frame]
        for frame in list(self.outcomes):
            if (following - frame) * step > 0:
                del self.outcomes[frame]
        for frame in list(self.memories):
            if not seen(frame, limits.memories):
                del self.memories[frame]
        for frame in list(self.pointers):
            if not seen(frame, limits.pointers):
                del self.pointers[frame]
        if len(self.prompt_pointers) > limits.kept_pointers:
            kept = nearest(
                sorted(self.prompt_pointers), following, limits.kept_pointers
            )
            self.prompt_pointers = {t: self.prompt_pointers[t] for t in kept}

    def state(self) -> dict[str, Tensor]:
        """Returns all that is remembered, by table and frame."""
        state = {
            f"{table}/{frame}": tensor
            for table in _TABLES
            for frame, tensor in getattr(self, table).items()
        }
        for frame, outcome in self.outcomes.items():
            state |= {f"{part}/{frame}": t for part, t in vars(outcome).items()}
        if self.restarted is not None:
            frame, step = self.restarted
            state[f"restarted/{frame}"] = torch.tensor([float(step)])
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a :meth:`state`."""
        for name, tensor in state.items():
            table, _, frame = name.partition("/")
            if table in _TABLES:
                getattr(self, table)[int(frame)] = tensor
            elif table == "restarted":
                self.restarted = int(frame), 1 if float(tensor) > 0 else -1
            elif table == "logits":
                # Files tend to give scalars back as arrays of one.
                self.outcomes[int(frame)] = Outcome(
                    logits=tensor,
                    presence=state[f"presence/{frame}"].reshape(()),
                    iou=state[f"iou/{frame}"].reshape(()),
                )
