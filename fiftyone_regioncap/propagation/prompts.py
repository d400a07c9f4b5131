"""Validation of the prompts of a run, one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Prompt


@dataclass(frozen=True)
class PromptProblem:
    """A prompt that cannot be used.

    Attributes:
        prompt: the prompt.
        reason: what is wrong with it and what to do, for people; it names the object
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
) -> tuple[list[Prompt], list[PromptProblem]]:
    """Separates the prompts that can be propagated from those that cannot.

    Args:
        prompts: Prompts of any objects.
        height: Height of the video's frames in pixels.
        width: Width of the video's frames in pixels.
        frame_count: Number of frames of the video.
        start: First frame of interest, 0-based.
        stop: One past the last frame of interest; None for the end of the video.

    Returns:
        The good prompts in their order, and a problem for each of the others.
    """
    end = frame_count if stop is None else stop
    good: list[Prompt] = []
    problems: list[PromptProblem] = []
    labels: dict[int, str] = {}
    for prompt in prompts:
        label = prompt.label
        try:
            prompt.check(height, width, frame_count)
            if not start <= prompt.frame < end:
                raise PromptError(
                    f"{prompt.name}: outside frames {start + 1} to {end}; "
                    "widen the range or drop the prompt"
                )
            if label is not None and labels.setdefault(prompt.object_id, label) != (
                label
            ):
                raise PromptError(
                    f"{prompt.name}: labeled {label!r}, elsewhere "
                    f"{labels[prompt.object_id]!r}; give different objects different "
                    "ids"
                )
        except PromptError as error:
            problems.append(PromptProblem(prompt, str(error)))
        else:
            good.append(prompt)
    return good, problems
