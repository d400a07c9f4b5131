"""Validation of prompts, and the meaning of several prompts of one object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Frame, Prompt
from fiftyone_regioncap.propagation.grabcut import remove_around

if TYPE_CHECKING:
    from fiftyone_regioncap.propagation.base import Direction


@dataclass(frozen=True)
class PromptProblem:
    """A prompt that cannot be used.

    Attributes:
        prompt: Prompt that is refused.
        reason: Message for people on what is wrong and what to do; it names the object
            and the frame, counted from 1.
    """

    prompt: Prompt
    reason: str


def check_prompts(
    prompts: Iterable[Prompt],
    *,
    height: int,
    width: int,
    frame_count: int,
    start: int = 0,
    stop: int | None = None,
    direction: Direction = "both",
) -> tuple[list[Prompt], list[PromptProblem]]:
    """Separates the prompts that can be propagated from those that cannot.

    Args:
        prompts: Prompts of any objects.
        height: Height of the video's frames in pixels.
        width: Width of the video's frames in pixels.
        frame_count: Number of frames of the video.
        start: First frame of interest, 0-based.
        stop: One past the last frame of interest; None for the end of the video.
        direction: Which way the prompts are carried. A prompt that only says where
            its object is not corrects the mask that is carried there, so it needs
            another prompt of the object that gets there.

    Returns:
        The good prompts in their order, and a problem for each of the others.
    """
    end = frame_count if stop is None else stop
    reasons: dict[int, str] = {}
    labels: dict[int, str] = {}
    seeds: dict[int, list[int]] = {}
    prompts = list(prompts)
    for number, prompt in enumerate(prompts):
        try:
            prompt.check(height, width, frame_count)
            _check_place(prompt, labels, start, end)
        except PromptError as error:
            reasons[number] = str(error)
        else:
            if not prompt.negative_only:
                seeds.setdefault(prompt.object_id, []).append(prompt.frame)
    for number, prompt in enumerate(prompts):
        if prompt.negative_only and number not in reasons:
            frames = seeds.get(prompt.object_id)
            if not frames or not _reached(prompt.frame, frames, direction):
                reasons[number] = (
                    f"{prompt.name}: all points are off the object, and no other "
                    "prompt of it is carried there; give one on it"
                )
    good = [prompt for n, prompt in enumerate(prompts) if n not in reasons]
    return good, [PromptProblem(prompts[n], reasons[n]) for n in sorted(reasons)]


def _check_place(prompt: Prompt, labels: dict[int, str], start: int, end: int) -> None:
    """Checks what depends on the run and on the prompts before; notes the label."""
    if not start <= prompt.frame < end:
        raise PromptError(
            f"{prompt.name}: outside frames {start + 1} to {end}; "
            "widen the range or drop the prompt"
        )
    if prompt.label is not None:
        known = labels.setdefault(prompt.object_id, prompt.label)
        if known != prompt.label:
            raise PromptError(
                f"{prompt.name}: labeled {prompt.label!r}, elsewhere {known!r}; "
                "give different objects different ids"
            )


def _reached(frame: int, seeds: Sequence[int], direction: Direction) -> bool:
    """Returns whether an object prompted on the seeds is carried to a frame."""
    if direction == "both":
        return True
    return min(seeds) <= frame if direction == "forward" else frame <= max(seeds)


def merge_prompts(prompts: Iterable[Prompt]) -> dict[int, dict[int, Prompt]]:
    """Puts together what is said of each object on each frame, as one prompt.

    Points add up, boxes become the box around them, masks become their union.

    Args:
        prompts: Prompts of any objects.

    Returns:
        By object id in order of appearance, then by frame, ascending.
    """
    grouped: dict[int, dict[int, list[Prompt]]] = {}
    for prompt in prompts:
        frames = grouped.setdefault(prompt.object_id, {})
        frames.setdefault(prompt.frame, []).append(prompt)
    return {
        object_id: {
            frame: _merge(object_id, frame, frames[frame]) for frame in sorted(frames)
        }
        for object_id, frames in grouped.items()
    }


def _merge(object_id: int, frame: int, prompts: Sequence[Prompt]) -> Prompt:
    boxes = np.array([prompt.box for prompt in prompts if prompt.box is not None])
    masks = [prompt.mask for prompt in prompts if prompt.mask is not None]
    points = [prompt for prompt in prompts if prompt.points is not None]
    box = (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)) if len(boxes) else None
    return Prompt(
        object_id,
        frame,
        box=None if box is None else (box[0], box[1], box[2], box[3]),
        points=np.concatenate([p.points for p in points]) if points else None,
        point_signs=np.concatenate([p.signs for p in points]) if points else None,
        mask=np.logical_or.reduce(masks) if masks else None,
    )


def separate_prompts(frame: Frame, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Makes the prompts of one object on one frame independent of each other.

    The object is the union of what each of the results means. Points off the object
    hold for all of them, and no mask comes with points.

    Args:
        frame: RGB frame, uint8 (H, W, 3).
        prompts: Prompts of one object on it, one of them more than negative points.
    """
    pairs = [(p.points, p.signs) for p in prompts if p.points is not None]
    off = np.concatenate([np.zeros((0, 2)), *(xy[~signs] for xy, signs in pairs)])
    separate: list[Prompt] = []
    for prompt in prompts:
        on = np.zeros((0, 2))
        if prompt.points is not None:
            on = prompt.points[prompt.signs]
        if prompt.mask is not None:
            mask = remove_around(frame, prompt.mask, off)
            separate.append(Prompt(prompt.object_id, prompt.frame, mask=mask))
        box = prompt.box if prompt.mask is None else None
        if box is not None or len(on):
            separate.append(_with_points(prompt, box, on, off))
    return separate


def _with_points(
    prompt: Prompt,
    box: tuple[float, float, float, float] | None,
    on: NDArray[np.float64],
    off: NDArray[np.float64],
) -> Prompt:
    points = np.concatenate([on, off]) if len(on) + len(off) else None
    signs = np.arange(len(on) + len(off)) < len(on)
    return Prompt(
        prompt.object_id,
        prompt.frame,
        box=box,
        points=points,
        point_signs=None if points is None else signs,
    )
