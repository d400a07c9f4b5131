"""Measurements of a region, made by :mod:`measuring`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Side: TypeAlias = Literal["left", "right", "top", "bottom"]
"""An edge of the frame."""

SECONDARY_SHARE = 0.2
"""Share of the region's pixels from which a second color is named."""


@dataclass(frozen=True)
class Measurements:
    """Measurements of one object; None where they cannot be made.

    Attributes:
        first_frame: 0-based index of the first frame on which it is visible.
        last_frame: 0-based index of the last frame on which it is visible.
        visible_fraction: Share of the support's frames on which it is visible.
        visible_spans: Runs of frames on which it is visible, each (first, last),
            inclusive. Without a track, it is taken as visible from its first sampled
            frame to its last.
        mean_area: Share of the frame that its mask covers, over the sampled frames.
        colors: Color names with their shares of its pixels, the largest share first.
        first_place: Position in the frame at first, such as ``"upper left"``.
        last_place: Position in the frame at last.
        speed: Speed along the object's own path, camera motion removed, in frame widths
            per second.
        direction: Direction of the object's own motion: left, right, up, down, two of
            them joined by "and", "back and forth" for a path that returns, towards or
            away for a change of size alone, or still.
        depth: ``"towards"`` or ``"away"`` where its size changes steadily; else None.
        turns: Number of changes of direction by more than a right angle in its path
            over the sampled frames.
        camera_shift: Distance that the background under the middle of the view moved
            from the first sampled frame to the last, in frame widths.
        enters: The edge of the frame over which it comes into the picture.
        leaves: The edge of the frame over which it goes out of it.
    """

    first_frame: int | None = None
    last_frame: int | None = None
    visible_fraction: float = 0.0
    visible_spans: tuple[tuple[int, int], ...] = ()
    mean_area: float | None = None
    colors: tuple[tuple[str, float], ...] = ()
    first_place: str | None = None
    last_place: str | None = None
    speed: float | None = None
    direction: str | None = None
    depth: Literal["towards", "away"] | None = None
    turns: int | None = None
    camera_shift: float | None = None
    enters: Side | None = None
    leaves: Side | None = None

    @property
    def main_colors(self) -> tuple[tuple[str, float], ...]:
        """Returns the color with the largest share, and the second if it is strong."""
        strong = len(self.colors) > 1 and self.colors[1][1] >= SECONDARY_SHARE
        return self.colors[: 2 if strong else 1]

    @property
    def dominant_color(self) -> str | None:
        """Returns the name of the color with the largest share."""
        return self.colors[0][0] if self.colors else None

    @property
    def secondary_color(self) -> str | None:
        """Returns the name of the second color, if it is strong."""
        return self.main_colors[1][0] if len(self.main_colors) > 1 else None
