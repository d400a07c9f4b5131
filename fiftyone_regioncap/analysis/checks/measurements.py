"""Compares captions with the measurements of their regions."""

from __future__ import annotations

import re
from collections.abc import Collection

from fiftyone_regioncap.analysis.facets import Facets

MOVING = 0.05
"""Speed in frame widths a second from which nobody would say that it stands still."""

_NEIGHBORS = frozenset(
    frozenset(pair)
    for pair in (
        ("black", "gray"),
        ("white", "gray"),
        ("white", "beige"),
        ("beige", "brown"),
        ("beige", "yellow"),
        ("brown", "orange"),
        ("brown", "red"),
        ("brown", "black"),
        ("orange", "red"),
        ("orange", "yellow"),
        ("red", "pink"),
        ("pink", "purple"),
        ("purple", "blue"),
        ("blue", "teal"),
        ("teal", "green"),
        ("gray", "blue"),
        ("gray", "beige"),
        ("gray", "brown"),
        ("green", "yellow"),
    )
)
"""Colors that are often confused, by people or because of the light."""

_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
_OPPOSITE |= {"towards": "away", "away": "towards"}

# "to the left", "turns left", "leftwards", "moving quickly up"; but neither "on the
# left" nor "from the left", and not "left hand".
_VERB = (
    r"(?:mov|turn|walk|runn?|driv|head|fly|flies|slid|go|goes|drift|roll|swim|swimm|"
    r"rid|glid|climb|travel|pass|veer|shift|rac|speed|jump|ris|fall|sail)"
    r"(?:s|es|ed|ing|e|n)?"
)
_SIDE = r"(?:left|right|up|down)"
_WAYS = (
    re.compile(r"\b(?:to|towards?) the (left|right)\b(?! (?:of|side|hand)\b)"),
    re.compile(r"\b(left|right|up|down)wards?\b"),
    re.compile(rf"\b{_VERB}(?: \w+ly)? ({_SIDE})\b(?! (?:the|a|an|from|of)\b)"),
    re.compile(r"\bfrom (?:the )?(?:left|right) to (?:the )?(left|right)\b"),
    re.compile(r"\b(towards|away)(?: from)? the (?:camera|viewer)\b"),
    re.compile(r"\b(?:closer|toward) to?\s?the (camera)\b"),
)
_STILL = re.compile(
    r"\b(?:stands? still|stays? (?:nearly )?still|(?:is|are|remains?) (?:stationary|"
    r"still|motionless|parked)|stationary|motionless|does(?: not|n't) move)\b"
)


def color_conflict(
    facets: Facets, dominant: str | None, others: Collection[str] = ()
) -> float | None:
    """Scores how surely a caption gives its subject a color that it doesn't have.

    Args:
        facets: Nouns and attributes of the caption.
        dominant: The dominant measured color.
        others: Further colors that were measured.

    Returns:
        1 if no measured color is mentioned, 0.5 if one is that is often confused with
        a measured one, 0 if a measured one is; None if none is mentioned or measured.
    """
    if not facets.subject_colors or dominant is None:
        return None
    measured = {dominant, *others}
    if measured & set(facets.subject_colors):
        return 0.0
    near = any(
        frozenset((color, other)) in _NEIGHBORS
        for color in facets.subject_colors
        for other in measured
    )
    return 0.5 if near else 1.0


def mentioned_directions(caption: str) -> frozenset[str]:
    """Finds directions of motion: left, right, up, down, towards, away.

    Args:
        caption: An English caption.
    """
    text = " ".join(caption.lower().split())
    found = {match for way in _WAYS for match in way.findall(text)}
    return frozenset("towards" if way == "camera" else way for way in found)


def motion_conflict(
    caption: str, direction: str | None, speed: float | None
) -> float | None:
    """Scores how surely a caption has its subject move in another way than it does.

    Args:
        caption: An English caption.
        direction: Measured direction, such as ``"up and left"`` or ``"still"``.
        speed: Measured speed in frame widths per second.

    Returns:
        1 when the opposite is said, or that it stands still while it moves; 0.5 when
        a way is said and it stands still; 0 when what is said fits; None when nothing
        is said or measured.
    """
    if direction is None:
        return None
    if _STILL.search(caption.lower()):
        return float((speed or 0) >= MOVING and direction != "still")
    mentioned = mentioned_directions(caption)
    if not mentioned:
        return None
    if direction == "still":
        return 0.5
    measured = set(direction.split(" and "))
    if "back" in measured or mentioned & measured:  # "back and forth" goes every way
        return 0.0
    return float(any(_OPPOSITE[way] in measured for way in mentioned))
