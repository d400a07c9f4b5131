"""States measured differences between objects that are described alike.

Nothing is invented: a difference is stated only where it was measured on both sides,
and what is not known of an object distinguishes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.confidence import similarity
from fiftyone_regioncap.measuring.regions import place

ALIKE = 0.8
"""Share of content words in common from which two captions are alike."""

LARGER = 1.1
"""Factor from which one area is larger than another."""

FASTER = 1.25
"""Factor from which one speed is higher than another."""

APART = 0.02
"""Shares of the frame between centers from which one is farther to a side."""

_STATED = re.compile(
    r" (?:Among the \d+ objects described alike, only this one|"
    r"Like \d+ others described alike, this one) [^.]+\.$"
)

_ORDINALS = ("second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

_MOTIONS = {
    "still": "stays still",
    "towards": "comes closer to the camera",
    "away": "gets farther from the camera",
}


def _nowhere() -> NDArray[np.float64]:
    return np.zeros((0, 4))


@dataclass(frozen=True)
class Subject:
    """A caption with the measurements of its object.

    Attributes:
        object_id: Object id; captions of one object need not differ.
        caption: The text.
        color: Dominant color.
        area: Area as a share of the frame.
        speed: Speed in frame widths per second.
        direction: Direction of its motion, as in :class:`measuring.Measurements`.
        frames: 0-based frames where it is visible, ascending; (0,) for images.
        boxes: (V, 4) edges in shares of the frame, on those frames.
        image: Whether this is a region of an image, where frames are not mentioned.
        stays: Whether the caption stays: a person has judged it, others wrote it, or
            the view hides it.
    """

    object_id: Hashable
    caption: str
    color: str | None = None
    area: float | None = None
    speed: float | None = None
    direction: str | None = None
    frames: tuple[int, ...] = ()
    boxes: NDArray[np.float64] = field(default_factory=_nowhere)
    image: bool = False
    stays: bool = False

    def box(self, frame: int) -> NDArray[np.float64]:
        """Returns its box on a frame on which it is visible, (4,)."""
        return self.boxes[self.frames.index(frame)]


class Clause(NamedTuple):
    """A statement about one subject.

    Attributes:
        text: Predicate that follows "this one".
        unlike: The rivals that it does not hold of.
    """

    text: str
    unlike: frozenset[int]


@dataclass(frozen=True)
class Uniqueness:
    """Measures how distinctive the captions of some objects are.

    Attributes:
        captions: Number of captions.
        same: Number of captions whose text another object has too.
        alike: Number of captions that share most of their words with one of another
            object, where neither of the two states the difference.
        similarity: Mean share of words in common over all pairs of different objects
            of one video or image, in [0, 1]; None when there are none.
    """

    captions: int = 0
    same: int = 0
    alike: int = 0
    similarity: float | None = None


def base(caption: str) -> str:
    """Removes the differences that were stated in a caption."""
    return _STATED.sub("", caption)


def groups(subjects: Sequence[Subject], threshold: float = ALIKE) -> list[list[int]]:
    """Groups captions of different objects that are alike, directly or through others.

    Args:
        subjects: The subjects of one video or image.
        threshold: Similarity from which captions are alike; see :data:`ALIKE`.

    Returns:
        Numbers of the subjects of each group that has two objects or more.
    """
    texts = [base(subject.caption) for subject in subjects]
    leaders = list(range(len(subjects)))

    def leader(number: int) -> int:
        while leaders[number] != number:
            number = leaders[number]
        return number

    for one, two in combinations(range(len(subjects)), 2):
        if (
            subjects[one].object_id != subjects[two].object_id
            and similarity(texts[one], texts[two]) >= threshold
        ):
            first, second = sorted((leader(one), leader(two)))
            leaders[second] = first
    found: dict[int, list[int]] = {}
    for number in range(len(subjects)):
        found.setdefault(leader(number), []).append(number)
    return [group for group in found.values() if len(group) > 1]


def tell_apart(
    subjects: Sequence[Subject], threshold: float = ALIKE
) -> tuple[list[str], set[int]]:
    """States in each caption what distinguishes its object from similar ones.

    As few statements as do are taken, those that exclude most first. The new captions
    of two objects of a group are never the same unless nothing that was measured
    differs.

    Args:
        subjects: The subjects of one video or image.
        threshold: Similarity from which captions are alike; see :data:`ALIKE`.

    Returns:
        All captions, and the numbers of those that nothing distinguishes.
    """
    captions = [base(subject.caption) for subject in subjects]
    alone: set[int] = set()
    for group in groups(subjects, threshold):
        objects = len({subjects[number].object_id for number in group})
        for number in group:
            rivals = [
                rival
                for rival in group
                if subjects[rival].object_id != subjects[number].object_id
            ]
            stated, left = _cover(list(_clauses(subjects, number, rivals)), rivals)
            beginning = f"Among the {objects} objects described alike, only this one"
            if left:
                alone.add(number)
                beginning = f"Like {objects - 1} others described alike, this one"
            if stated:
                end = "" if captions[number].endswith((".", "!", "?")) else "."
                captions[number] += f"{end} {beginning} {_listed(stated)}."
    return captions, alone


def uniqueness(
    videos: Sequence[Sequence[Subject]], threshold: float = ALIKE
) -> Uniqueness:
    """Measures how far captions distinguish their objects.

    Args:
        videos: The subjects of each video.
        threshold: Similarity from which captions are alike; see :data:`ALIKE`.
    """
    same = alike = total = 0
    shares: list[float] = []
    for subjects in videos:
        total += len(subjects)
        equal: set[int] = set()
        close: set[int] = set()
        for one, two in combinations(range(len(subjects)), 2):
            if subjects[one].object_id == subjects[two].object_id:
                continue
            first, second = subjects[one].caption, subjects[two].caption
            shares.append(similarity(first, second))
            stated = first != base(first) or second != base(second)
            if _plain(first) == _plain(second):
                equal |= {one, two}
                close |= {one, two}
            elif not stated and shares[-1] >= threshold:
                close |= {one, two}
        same += len(equal)
        alike += len(close)
    mean = sum(shares) / len(shares) if shares else None
    return Uniqueness(total, same, alike, mean)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _cover(
    clauses: Sequence[Clause], rivals: Collection[int]
) -> tuple[list[str], set[int]]:
    """Returns the fewest clauses that exclude rivals, greedily, and who is left."""
    left, stated = set(rivals), []
    while left:
        best = max(clauses, key=lambda clause: len(clause.unlike & left), default=None)
        if best is None or not best.unlike & left:
            break
        stated.append(best.text)
        left -= best.unlike
    return stated, left


def _listed(clauses: Sequence[str]) -> str:
    if len(clauses) < 3:
        return " and ".join(clauses)
    return f"{', '.join(clauses[:-1])}, and {clauses[-1]}"


# Statements, those that people would make first at the front.


def _clauses(
    subjects: Sequence[Subject], number: int, rivals: Sequence[int]
) -> Iterator[Clause]:
    """Iterates over statements about a subject and the rivals they don't hold of."""
    own = subjects[number]

    def unlike(attribute: str) -> frozenset[int]:
        value = getattr(own, attribute)
        return frozenset(
            rival
            for rival in rivals
            if getattr(subjects[rival], attribute) not in (None, value)
        )

    if own.color is not None:
        yield Clause(f"has {own.color} as its main color", unlike("color"))
    yield from _order(subjects, number, rivals)
    yield from _extremes(
        subjects, number, rivals, "area", LARGER, ("the largest", "the smallest")
    )
    if own.direction is not None:
        motion = _MOTIONS.get(own.direction, f"moves {own.direction}")
        yield Clause(motion, unlike("direction"))
    yield from _extremes(
        subjects, number, rivals, "speed", FASTER, ("the fastest", "the slowest")
    )
    yield from _sightings(subjects, number, rivals)


def _order(
    subjects: Sequence[Subject], number: int, rivals: Sequence[int]
) -> Iterator[Clause]:
    """Its rank from a side on the first frame on which all of them are visible."""
    everyone = [number, *rivals]
    common = set(subjects[number].frames)
    for rival in rivals:
        common &= set(subjects[rival].frames)
    if not common:
        return
    frame = min(common)
    when = "" if subjects[number].image else f" in frame {frame + 1}"
    boxes = np.array([subjects[one].box(frame) for one in everyone])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = (("left", "leftmost", "rightmost"), ("top", "topmost", "lowest"))
    # Several captions of one object count once.
    objects = {subjects[one].object_id: n for n, one in enumerate(everyone)}
    for axis, (side, first, last) in enumerate(sides):
        moved = centers[:, axis] - centers[0, axis]
        unlike = frozenset(
            rival
            for rival, by in zip(rivals, moved[1:], strict=True)
            if abs(by) >= APART
        )
        if len(unlike) < len(rivals):
            continue  # then its rank is not certain
        before = sum(moved[n] < 0 for n in objects.values())
        if before == 0:
            rank = f"the {first}"
        elif before == len(objects) - 1:
            rank = f"the {last}"
        elif before <= len(_ORDINALS):
            rank = f"the {_ORDINALS[before - 1]} from the {side}"
        else:
            rank = f"number {before + 1} from the {side}"
        yield Clause(f"is {rank}{when}", unlike)


def _extremes(
    subjects: Sequence[Subject],
    number: int,
    rivals: Sequence[int],
    attribute: str,
    factor: float,
    names: tuple[str, str],
) -> Iterator[Clause]:
    """Lists what an object has most or least of, by a factor, of all known ones."""
    own = getattr(subjects[number], attribute)
    others = [getattr(subjects[rival], attribute) for rival in rivals]
    if own is None or not others or None in others:
        return
    if own > factor * max(others):
        yield Clause(f"is {names[0]}", frozenset(rivals))
    if own * factor < min(others):
        yield Clause(f"is {names[1]}", frozenset(rivals))


def _sightings(
    subjects: Sequence[Subject], number: int, rivals: Sequence[int]
) -> Iterator[Clause]:
    """States where and when an object is first and last seen."""
    own = subjects[number]
    seen = [rival for rival in rivals if subjects[rival].frames]
    if not own.frames:
        return
    picture, verb = ("image", "is") if own.image else ("frame", "is first seen")
    where = _where(own)
    yield Clause(
        f"{verb} {where} of the {picture}",
        frozenset(rival for rival in seen if _where(subjects[rival]) != where),
    )
    if not own.image:
        for which, word in ((0, "first"), (-1, "last")):
            frame = own.frames[which]
            yield Clause(
                f"is {word} seen in frame {frame + 1}",
                frozenset(r for r in seen if subjects[r].frames[which] != frame),
            )
    middle = _middle(own)
    yield Clause(
        f"{verb} with its center at {middle[0]}% of the width and {middle[1]}% of the "
        "height",
        frozenset(rival for rival in seen if _middle(subjects[rival]) != middle),
    )


def _where(subject: Subject) -> str:
    x1, y1, x2, y2 = subject.boxes[0].tolist()
    # Thirds of the frame are the same in shares of it.
    found = place((x1, y1, x2, y2), 1, 1)
    preposition = {"left": "on", "right": "on", "top": "at", "bottom": "at"}
    return f"{preposition.get(found, 'in')} the {found}"


def _middle(subject: Subject) -> tuple[int, int]:
    x1, y1, x2, y2 = subject.boxes[0].tolist()
    return round(50 * (x1 + x2)), round(50 * (y1 + y2))
