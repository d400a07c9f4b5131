"""Preferences between two fields of captions, judged blind if wanted, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import comb
from typing import Any, Literal, TypeAlias, get_args

import fiftyone as fo
import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.caption_fields import CaptionField

PREFERRED = "preferred"
"""Attribute of the new captions that holds what a person preferred."""

Preference: TypeAlias = Literal["new", "old", "same"]


def is_swapped(label_id: str) -> bool:
    """Returns whether a new caption is shown first, when it is not to be recognized.

    It depends on the caption's id alone, so that it looks the same each time.
    """
    return bool(sha256(label_id.encode()).digest()[0] % 2)


@dataclass(frozen=True)
class Pair:
    """Two captions of one object and window.

    Attributes:
        id: Id of the new caption's label.
        old: Caption of the field that was there.
        new: Caption of the new field.
        preferred: What a person preferred; None where nobody has chosen.
    """

    id: str
    old: str
    new: str
    preferred: Preference | None = None

    @property
    def blind(self) -> tuple[str, str]:
        """Returns both captions in an order that tells nothing."""
        return (self.new, self.old) if is_swapped(self.id) else (self.old, self.new)

    def choice(self, place: int) -> Preference:
        """Returns the preference for the caption at a place of :attr:`blind`."""
        return choice(self.id, place)


def choice(label_id: str, place: int) -> Preference:
    """Returns the preference for the caption that is shown at a place, 0 or 1."""
    return "new" if (place == 0) == is_swapped(label_id) else "old"


@dataclass(frozen=True)
class Preferences:
    """What is known of two fields of captions.

    Attributes:
        captions: Field of the captions that were there.
        output: Field of the new captions.
        pairs: Number of objects and windows with both captions.
        equal: Number of pairs with the same text.
        preferred: Number of pairs by preference.
    """

    captions: str
    output: str
    pairs: int
    equal: int
    preferred: Mapping[str, int] = field(default_factory=dict)

    @property
    def chance(self) -> float | None:
        """Probability of preferences as uneven if both were as good (sign test)."""
        new, old = self.preferred.get("new", 0), self.preferred.get("old", 0)
        count = new + old
        if not count:
            return None
        tail = sum(comb(count, n) for n in range(max(new, old), count + 1))
        return min(1.0, 2 * tail / 2**count)

    def to_markdown(self) -> str:
        """Returns the preferences for people."""
        lines = [
            f"**{self.pairs}** pairs of captions in {self.captions} and {self.output}, "
            f"{self.equal} of them alike"
        ]
        if self.preferred:
            counts = ", ".join(f"{n} {name}" for name, n in self.preferred.items())
            lines.append(f"preferred: {counts}")
        if self.chance is not None:
            lines.append(
                f"if both were as good, so uneven a result had p = {self.chance:.3g}"
            )
        return "\n\n".join(lines) + "\n"


def pairs(samples: foco.SampleCollection, captions: str, output: str) -> Iterator[Pair]:
    """Yields captions of two fields that are about the same object and window.

    Args:
        samples: A dataset or a view of videos.
        captions: Field of the captions that were there.
        output: Field of the new captions.

    Raises:
        FieldError: When a field is absent or of another kind.
    """
    wanted = ("caption", "index", "support", "error")
    old = CaptionField.of(samples, captions)
    new = CaptionField.of(samples, output)
    known: dict[tuple[str, int, tuple[int, int]], str] = {}
    for document, labels in old.in_view(samples, wanted):
        for label in labels:
            if label.get("caption") and not label.get("error"):
                known[_key(document, label)] = label["caption"]
    has = new.dataset.has_field(f"{new.labels}.{PREFERRED}")
    for document, labels in new.in_view(
        samples, (*wanted, *([PREFERRED] if has else []))
    ):
        for label in labels:
            said = known.get(_key(document, label))
            if said is None or not label.get("caption") or label.get("error"):
                continue
            key = str(label["_id"])
            yield Pair(key, said, label["caption"], label.get(PREFERRED))


def _key(
    document: Mapping[str, Any], label: Mapping[str, Any]
) -> tuple[str, int, tuple[int, int]]:
    first, last = label["support"]
    return str(document["_id"]), label.get("index", -1), (first, last)


def prefer(
    samples: foco.SampleCollection, output: str, choices: Mapping[str, Preference]
) -> None:
    """Records which captions a person preferred.

    Args:
        samples: The dataset, or a view of it.
        output: Field of the new captions.
        choices: ``"new"``, ``"old"`` or ``"same"`` by the id of the new caption.

    Raises:
        FieldError: When there is no such field, or a choice is none of these.
    """
    odd = sorted(set(choices.values()) - set(get_args(Preference)))
    if odd:
        raise FieldError(f"{odd[0]!r} is no preference; give new, old or same")
    CaptionField.of(samples, output).write(PREFERRED, choices, fo.StringField)


def preferences(
    samples: foco.SampleCollection, captions: str, output: str
) -> Preferences:
    """Counts pairs, and what people preferred.

    Captions that were judged in the review panel beside one of other windows count too.
    """
    found = list(pairs(samples, captions, output))
    equal = sum(pair.old.strip() == pair.new.strip() for pair in found)
    return Preferences(captions, output, len(found), equal, counts(samples, output))


def counts(samples: foco.SampleCollection, output: str) -> dict[str, int]:
    """Counts the captions of a field by what people preferred."""
    field = CaptionField.of(samples, output)
    if not field.dataset.has_field(f"{field.labels}.{PREFERRED}"):
        return {}
    judged = (
        label.get(PREFERRED)
        for _, labels in field.in_view(samples, [PREFERRED])
        for label in labels
    )
    return dict(Counter(choice for choice in judged if choice is not None))
