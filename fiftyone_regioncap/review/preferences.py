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
from fiftyone_regioncap.dataset.fields import require_writable

PREFERRED = "preferred"
"""Attribute of the new captions that holds what a person preferred."""

OVER = "preferred_over"
"""Attribute with the field of the captions that they were compared with."""

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
        samples: A dataset or a view.
        captions: Field of the captions that were there.
        output: Field of the new captions.

    Raises:
        FieldError: When a field is absent or of another kind.
    """
    old = CaptionField.of(samples, captions)
    new = CaptionField.of(samples, output)
    wanted = ("caption", *PLACE, new.error)
    known: dict[tuple[Any, ...], str] = {}
    for document, labels in old.in_view(samples, wanted):
        for label in labels:
            if label.get("caption") and not label.get(old.error):
                key = (str(document["_id"]), *place_of(label))
                known[key] = label["caption"]
    has = new.dataset.has_field(f"{new.labels}.{PREFERRED}")
    for document, labels in new.in_view(
        samples, (*wanted, *([PREFERRED] if has else []))
    ):
        for label in labels:
            said = known.get((str(document["_id"]), *place_of(label)))
            if said is None or not label.get("caption") or label.get(new.error):
                continue
            yield Pair(str(label["_id"]), said, label["caption"], label.get(PREFERRED))


PLACE = ("index", "support", "bounding_box", "points")
"""Attributes that say what a caption is about."""


def place_of(label: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns what a caption is about: an object and its window, or a region."""
    if label.get("support"):
        return label.get("index", -1), *label["support"]
    shape = label.get("bounding_box") or label.get("points") or ()
    return tuple(map(str, shape))


def prefer(
    samples: foco.SampleCollection,
    output: str,
    choices: Mapping[str, Preference],
    *,
    over: str | None = None,
) -> None:
    """Records which captions a person preferred.

    Args:
        samples: The dataset, or a view of it.
        output: Field of the new captions.
        choices: ``"new"``, ``"old"`` or ``"same"`` by the id of the new caption.
        over: Field of the old captions; None leaves it open.

    Raises:
        FieldError: When there is no such field, it is read-only, or a choice is none
            of these.
    """
    odd = sorted(set(choices.values()) - set(get_args(Preference)))
    if odd:
        raise FieldError(f"{odd[0]!r} is no preference; give new, old or same")
    field = CaptionField.of(samples, output)
    require_writable(field.dataset, output)
    field.write(PREFERRED, choices, fo.StringField)
    if over is not None:
        field.write(OVER, dict.fromkeys(choices, over), fo.StringField)


def preferences(
    samples: foco.SampleCollection, captions: str, output: str
) -> Preferences:
    """Counts pairs, and what people preferred.

    Captions that were judged in the review panel beside one of other windows count too.
    """
    found = list(pairs(samples, captions, output))
    equal = sum(pair.old.strip() == pair.new.strip() for pair in found)
    judged = counts(samples, output, over=captions)
    return Preferences(captions, output, len(found), equal, judged)


def counts(
    samples: foco.SampleCollection, output: str, *, over: str | None = None
) -> dict[str, int]:
    """Counts the captions of a field by what people preferred.

    Args:
        samples: A dataset or a view.
        output: Field of the new captions.
        over: Field of the old captions; captions that were compared with another one
            don't count. None counts all.

    Raises:
        FieldError: When there is no such field.
    """
    field = CaptionField.of(samples, output)
    if not field.dataset.has_field(f"{field.labels}.{PREFERRED}"):
        return {}
    judged = (
        label.get(PREFERRED)
        for _, labels in field.in_view(samples, [PREFERRED, OVER])
        for label in labels
        if over is None or label.get(OVER) in (None, over)
    )
    return dict(Counter(choice for choice in judged if choice is not None))
