"""The captions that a person reviews, in the order they are shown.

A :class:`ReviewQueue` holds of each caption of a view only its ids and its review, so
that views of 100,000 captions open at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import fiftyone.core.clips as foc
import fiftyone.core.collections as foco
import fiftyone.core.patches as fop
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.captions import Review
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.review.session import REVIEWS, Change, Ref

Order: TypeAlias = Literal[
    "view",
    "suspicion",
    "check_score",
    "triage",
    "confidence",
    "agreement",
    "similarity",
]

ORDERS: Mapping[Order, str] = {
    "view": "as in the view",
    "suspicion": "most suspicious first, by all that is known",
    "check_score": "worst score of the checks first",
    "triage": "dropped by triage first, kept last",
    "confidence": "least sure first",
    "agreement": "least agreement of repeated samples first",
    "similarity": "least similar to its region first",
}
"""The orders of captions, in words."""

_TRIAGED = {"drop": 1.0, "review": 0.5, "keep": 0.0}

_SCORES: Mapping[str, tuple[str, Callable[[Any], float | None]]] = {
    "check_score": ("check_score", lambda value: value),
    "triage": ("triage", _TRIAGED.get),
    "confidence": ("confidence", lambda value: None if value is None else -value),
    "agreement": ("agreement", lambda value: None if value is None else -value),
    "similarity": (
        "image_text_similarity",
        lambda value: None if value is None else -value,
    ),
}
"""Attributes that tell how suspicious a caption is, and how: more is worse."""


class ReviewQueue:
    """The captions of a view, in the order a person sees them."""

    def __init__(
        self,
        refs: list[Ref],
        reviews: Iterable[str | None],
    ) -> None:
        """Takes the captions in order.

        Args:
            refs: Ids of the captions.
            reviews: Their reviews; None counts as unreviewed.
        """
        self._refs = refs
        self._positions = {ref.label_id: i for i, ref in enumerate(refs)}
        self._reviews: NDArray[np.uint8] = np.fromiter(
            (_code(review) for review in reviews), np.uint8, len(refs)
        )

    @classmethod
    def of(
        cls, samples: foco.SampleCollection, field: str, *, order: Order = "view"
    ) -> ReviewQueue:
        """Reads the captions of a view.

        Args:
            samples: A dataset or a view, whose filters of labels hold; or a view of
                clips or patches: of the captions, in its order, or any other, whose
                captions are those that overlap its clips, or of its samples.
            field: Field of the captions.
            order: Order of the queue, out of :data:`ORDERS`; what is unknown of a
                caption counts as most suspicious.

        Raises:
            FieldError: If there is no such field, or its captions lack what they shall
                be ordered by.
        """
        captions = CaptionField.of(samples, field)
        known = available_orders(captions)
        if order not in known:
            raise FieldError(
                f"the captions of {field} can't be ordered by {order}; choose one of "
                f"{', '.join(known)}"
            )
        wanted = [
            (_scored_attribute(captions, name), _SCORES[name][1])
            for name in known
            if name in _SCORES and order in (name, "suspicion")
        ]
        rows = list(_rows(samples, captions, [name for name, _ in wanted]))
        refs, reviews = [row[0] for row in rows], [row[1] for row in rows]
        if wanted and rows:
            columns = zip(*(row[2] for row in rows), strict=True)
            suspicion = np.nanmean(
                [
                    ranks([scale(value) for value in column])
                    for column, (_, scale) in zip(columns, wanted, strict=True)
                ],
                axis=0,
            )
            places = np.argsort(-suspicion, kind="stable")
            refs, reviews = [refs[i] for i in places], [reviews[i] for i in places]
        return cls(refs, reviews)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, position: int) -> Ref:
        return self._refs[position]

    def position(self, label_id: str) -> int | None:
        """Finds the position of a caption; None when it is not in the queue."""
        return self._positions.get(label_id)

    def counts(self) -> dict[Review, int]:
        """Counts the captions by review."""
        counted = np.bincount(self._reviews, minlength=len(REVIEWS)).tolist()
        return dict(zip(REVIEWS, counted, strict=True))

    def select(self, reviews: Collection[Review] = REVIEWS) -> list[Ref]:
        """Selects the captions that have one of these reviews, in order."""
        return [self._refs[i] for i in self._matching(reviews)]

    def find(
        self, start: int, step: Literal[1, -1], reviews: Collection[Review] = REVIEWS
    ) -> int | None:
        """Finds the next caption that has one of some reviews.

        Args:
            start: Position to begin at; that position itself counts too.
            step: Forward or backward; the search wraps around at the ends.
            reviews: The reviews.

        Returns:
            Its position, or None when there is none at all.
        """
        matching = self._matching(reviews)
        if not len(matching):
            return None
        if step > 0:
            rank = np.searchsorted(matching, start)
            return int(matching[rank % len(matching)])
        rank = np.searchsorted(matching, start, side="right") - 1
        return int(matching[rank])

    def mark(self, change: Change) -> None:
        """Updates the reviews after a change, without asking the database."""
        for done in change.edits:
            position = self._positions.get(done.ref.label_id)
            if position is not None:
                self._reviews[position] = _code(done.after.review)

    def _matching(self, reviews: Collection[Review]) -> NDArray[np.intp]:
        codes = [_code(review) for review in reviews]
        return np.flatnonzero(np.isin(self._reviews, codes))


_Row: TypeAlias = tuple[Ref, str | None, tuple[Any, ...]]
"""A caption's ids, its review, and what it may be ordered by."""


def available_orders(captions: CaptionField) -> tuple[Order, ...]:
    """Returns the orders that a field's captions can be reviewed in.

    Args:
        captions: The field; what its labels have not been given can't order them.
    """
    known = tuple(
        name
        for name in _SCORES
        if captions.dataset.has_field(
            f"{captions.labels}.{_scored_attribute(captions, name)}"
        )
    )
    return ("view", *(("suspicion",) if known else ()), *known)


def ranks(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Ranks values from 0 for the smallest to 1 for the greatest; equal ones alike.

    Args:
        values: The values; unknown ones count as the greatest.
    """
    array = np.array([np.inf if value is None else value for value in values])
    array[np.isnan(array)] = np.inf
    found, places = np.unique(array, return_inverse=True)
    return places / max(len(found) - 1, 1)


def _scored_attribute(captions: CaptionField, order: str) -> str:
    return captions.confidence if order == "confidence" else _SCORES[order][0]


def _code(review: str | None) -> int:
    """Returns a review as a number; one that other tools made up counts as none."""
    return REVIEWS.index(review) if review in REVIEWS else 0


def _rows(
    samples: foco.SampleCollection, captions: CaptionField, attributes: Sequence[str]
) -> Iterator[_Row]:
    """Yields the captions of a view, in its order."""
    if isinstance(samples, foc.ClipsView):
        own = [samples._classification_field]
    elif isinstance(samples, fop.PatchesView):
        own = samples._label_fields
    else:
        yield from _labels(samples, captions, attributes)
        return
    found = dict.fromkeys(samples.values("sample_id"))
    rows = list(_labels(captions.dataset.select(list(found)), captions, attributes))
    if captions.name in own:
        # Clips and patches of captions have the ids of their captions.
        by_id = {row[0].label_id: row for row in rows}
        yield from (by_id[i] for i in samples.values("id") if i in by_id)
    elif isinstance(samples, foc.ClipsView):
        yield from _overlapping(samples, captions, rows)
    else:
        yield from rows


def _labels(
    samples: foco.SampleCollection, captions: CaptionField, attributes: Sequence[str]
) -> Iterator[_Row]:
    # Of images, regions that nothing was said of are left out.
    said = ("caption", captions.error) if captions.of_images else ()
    keys = ("_id", "review", *attributes, *said)
    projection = {f"{captions.labels}.{key}": 1 for key in keys}
    # FiftyOne's own values() takes a pass for each of these.
    for document in samples._aggregate(post_pipeline=[{"$project": projection}]):
        sample_id = str(document["_id"])
        for label in labels_of(document.get(captions.name)):
            if said and not any(label.get(key) for key in said):
                continue
            yield (
                Ref(sample_id, str(label["_id"])),
                label.get("review"),
                tuple(label.get(attribute) for attribute in attributes),
            )


def _overlapping(
    clips: foc.ClipsView, captions: CaptionField, rows: list[_Row]
) -> Iterator[_Row]:
    """Yields the captions that overlap any clip of their video."""
    sample_ids, supports = clips.values(["sample_id", "support"])
    spans: dict[str, list[tuple[int, int]]] = {}
    for sample_id, (first, last) in zip(sample_ids, supports, strict=True):
        spans.setdefault(sample_id, []).append((first, last))
    query = {"_id": {"$in": [ObjectId(sample_id) for sample_id in spans]}}
    of_labels = {
        str(label["_id"]): label["support"]
        for _, labels in captions.documents(["support"], query=query)
        for label in labels
    }
    for row in rows:
        first, last = of_labels[row[0].label_id]
        if any(a <= last and first <= b for a, b in spans[row[0].sample_id]):
            yield row


def reviewed_share(counts: dict[Review, int]) -> float:
    """Returns the share of captions that were reviewed, in [0, 1]; 1 for none."""
    total = sum(counts.values())
    return 1.0 if not total else 1 - counts[REVIEWS[0]] / total
