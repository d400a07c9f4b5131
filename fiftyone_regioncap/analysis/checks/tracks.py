"""Compares the captions of one video with each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from fiftyone_regioncap.analysis.checks.measurements import color_conflict
from fiftyone_regioncap.analysis.facets import Facets, facets_of
from fiftyone_regioncap.analysis.vocabulary import STOPWORDS
from fiftyone_regioncap.dataset.store import Document

ALIKE = 0.9
"""Share of two captions' words that both have, from which they say the same."""

_LARGER = 1.5


@dataclass(frozen=True)
class Statement:
    """A caption with the measurements of its region.

    Attributes:
        id: Id of the label.
        index: Id of the object.
        support: (first, last) frames as FiftyOne counts them; None on images.
        caption: The text.
        facets: Nouns and attributes of the text.
        color: Measured color.
        direction: Measured direction of motion.
        area: Measured area as a share of the frame.
    """

    id: str
    index: int | None
    support: tuple[int, int] | None
    caption: str
    facets: Facets
    color: str | None
    direction: str | None
    area: float | None

    @classmethod
    def of(cls, label: Document) -> Statement:
        """Reads a label."""
        caption, support = label.get("caption") or "", label.get("support")
        return cls(
            id=str(label["_id"]),
            index=label.get("index"),
            support=tuple(support) if support else None,
            caption=caption,
            facets=facets_of(caption),
            color=label.get("dominant_color"),
            direction=label.get("direction"),
            area=label.get("mean_area"),
        )

    @property
    def words(self) -> frozenset[str]:
        """The content words."""
        plain = "".join(c if c.isalnum() else " " for c in self.caption.lower())
        return frozenset(plain.split()) - STOPWORDS


def contradictions(captions: Sequence[Statement]) -> Iterator[tuple[str, float, str]]:
    """Finds captions that contradict that of the window before.

    Args:
        captions: The captions of one video.

    Yields:
        Label id, score, and why: 1 for another noun and another color, 0.7 for
        another noun or color.
    """
    for index in sorted({c.index for c in captions if c.index is not None}):
        own = sorted(
            (c for c in captions if c.index == index and c.support),
            key=lambda c: c.support or (0, 0),
        )
        for before, after in pairwise(own):
            why = []
            nouns = before.facets.subject_noun, after.facets.subject_noun
            # Where the other window speaks of this noun too, it is the same thing.
            if (
                None not in nouns
                and nouns[0] not in after.facets.nouns
                and nouns[1] not in before.facets.nouns
            ):
                why.append(f"{nouns[1]}, but {nouns[0]} in the window before")
            was, now = before.facets.subject_colors, after.facets.subject_colors
            if was and color_conflict(after.facets, was[0], was[1:]) == 1.0:
                why.append(f"{now[0]}, but {was[0]} in the window before")
            if why:
                yield after.id, (1.0 if len(why) > 1 else 0.7), "; ".join(why)


def indistinct(captions: Sequence[Statement]) -> Iterator[tuple[str, float, str]]:
    """Finds captions that another object of the same video has too, or nearly.

    A description of a region should fit no other region (URECA's rule).

    Args:
        captions: The captions of one video or image.

    Yields:
        Label id, share of words in common, and what distinguishes the objects.
    """
    words = {caption.id: caption.words for caption in captions}
    for one, other in combinations(captions, 2):
        if one.index == other.index and one.index is not None:
            continue
        mine, theirs = words[one.id], words[other.id]
        union = len(mine | theirs)
        alike = len(mine & theirs) / union if union else 0.0
        if alike >= ALIKE:
            yield one.id, alike, _difference(one, other)
            yield other.id, alike, _difference(other, one)


def _difference(one: Statement, other: Statement) -> str:
    """States what distinguishes one object from the other."""
    name = "another object" if other.index is None else f"object {other.index}"
    if one.color and other.color and one.color != other.color:
        apart = f"it is {one.color}, not {other.color}"
    elif one.direction and other.direction and one.direction != other.direction:
        ways = [
            "still" if d == "still" else f"moving {d}"
            for d in (one.direction, other.direction)
        ]
        apart = f"it is {ways[0]}, not {ways[1]}"
    elif one.area and other.area and one.area >= _LARGER * other.area:
        apart = "it is the larger one"
    elif one.area and other.area and other.area >= _LARGER * one.area:
        apart = "it is the smaller one"
    elif one.support and other.support and one.support[0] != other.support[0]:
        earlier = one.support[0] < other.support[0]
        apart = f"it is seen {'first' if earlier else 'later'}"
    else:
        apart = "nothing measured tells them apart"
    return f"same as {name}: {apart}"
