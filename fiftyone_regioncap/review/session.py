"""Reviews captions with a person, and keeps the model's texts.

A :class:`ReviewQueue` holds of each caption of a view only its ids, its review and its
confidence, so that views of 100,000 captions open at once. :func:`apply` changes
captions, one or all of a view, and returns what :func:`undo` needs to undo it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Literal, TypeAlias, get_args

import fiftyone as fo
import fiftyone.core.clips as foc
import fiftyone.core.collections as foco
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray
from pymongo import UpdateOne

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.dataset.captions import Review, mirror_captions
from fiftyone_regioncap.dataset.fields import require_captions
from fiftyone_regioncap.dataset.geometry import labels_of
from fiftyone_regioncap.dataset.schema import declare_captions
from fiftyone_regioncap.dataset.store import Document, now, reload_sample

REVIEWS: tuple[Review, ...] = get_args(Review)
"""The reviews that a caption can have; the first is that it has none."""

Order: TypeAlias = Literal["view", "confidence"]
"""In the order of the view, or the least confident captions first."""

_SAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class Ref:
    """The ids of a caption.

    Attributes:
        sample_id: Id of the video.
        label_id: Id of the caption's label.
    """

    sample_id: str
    label_id: str


@dataclass(frozen=True)
class State:
    """The attributes of a caption that a review can change.

    Attributes:
        caption: The current text; empty when there is none.
        review: The person's verdict.
        source_caption: The model's text, once a person has written another one.
        error: Reason why the model gave no text.
    """

    caption: str = ""
    review: Review = "unreviewed"
    source_caption: str | None = None
    error: str | None = None

    @property
    def shown(self) -> str | None:
        """Text for the object's labels; None for rejected captions and errors."""
        hidden = self.review == "rejected" or self.error is not None
        return None if hidden else self.caption


Action: TypeAlias = Callable[[State], State]
"""Maps a caption's state to the next one."""


def accept(state: State) -> State:
    """Accepts the text; one that a person wrote stays ``edited``.

    Raises:
        RegionCapError: If there is no text.
    """
    if not state.caption.strip():
        raise RegionCapError(
            "there is no text to accept; write one, or reject the caption"
        )
    verdict: Review = "accepted" if state.source_caption is None else "edited"
    return replace(state, review=verdict)


def edit(text: str) -> Action:
    """Makes the action that replaces the model's text.

    Writing the model's own text again undoes the edit and accepts it.

    Args:
        text: The new text; space around it is removed.

    Raises:
        RegionCapError: If the text is empty.
    """
    text = text.strip()
    if not text:
        raise RegionCapError("an edited caption needs a text; or reject the caption")

    def write(state: State) -> State:
        source = state.caption if state.source_caption is None else state.source_caption
        if text == source.strip():
            return State(source, "accepted", None, state.error)
        return State(text, "edited", source)

    return write


def reject(state: State) -> State:
    """Rejects the caption; its text stays, but is removed from the object's labels."""
    return replace(state, review="rejected")


def reset(state: State) -> State:
    """Removes the review; the model's text comes back."""
    caption = state.caption if state.source_caption is None else state.source_caption
    return State(caption, "unreviewed", None, state.error)


@dataclass(frozen=True)
class Edit:
    """The change of one caption.

    Attributes:
        ref: Ids of the caption.
        index: Object id; None where the label has none.
        before: State before the change.
        after: State after the change.
    """

    ref: Ref
    index: int | None
    before: State
    after: State


@dataclass(frozen=True)
class Change:
    """The result of one action.

    Attributes:
        field: Field of the captions.
        tracks_field: Field of tracks that have the captions too; None for none.
        edits: One for each caption that changed.
        skipped: Number of captions that the action could not be applied to, such as
            accepting one without a text, or that are gone.
    """

    field: str
    tracks_field: str | None = None
    edits: tuple[Edit, ...] = ()
    skipped: int = 0


def apply(
    dataset: fo.Dataset,
    field: str,
    refs: Iterable[Ref],
    action: Action,
    *,
    tracks_field: str | None = None,
    seen: str | None = None,
) -> Change:
    """Applies an action to captions.

    Args:
        dataset: A dataset of videos.
        field: Field of the captions.
        refs: Ids of the captions, of any number of samples.
        action: :func:`accept`, :func:`edit` of a text, :func:`reject`, :func:`reset`,
            or one of your own.
        tracks_field: Field of tracks whose labels have the captions too and follow.
        seen: Text that the person had in front of them; None not to check it.

    Returns:
        What changed, for :func:`undo`.

    Raises:
        FieldError: If a field is absent or of another kind.
        RegionCapError: If somebody else changed the text that was ``seen``; and what
            the action raises, where there is one caption only.
    """
    require_captions(dataset, field)
    if not dataset.has_field(f"{field}.detections.source_caption"):
        declare_captions(dataset, field)
    refs = list(refs)
    states = {ref: (i, state) for ref, i, state in _states(dataset, field, refs)}
    if len(refs) == 1 and not states:
        raise RegionCapError("the caption is gone; refresh the review")
    edits = []
    skipped = len(refs) - len(states)
    for ref, (index, before) in states.items():
        if seen is not None and before.caption != seen:
            raise RegionCapError(
                "somebody changed this caption while you read it; look at it again"
            )
        try:
            after = action(before)
        except RegionCapError:
            if len(refs) == 1:
                raise
            skipped += 1
            continue
        if after != before:
            edits.append(Edit(ref, index, before, after))
    change = Change(field, tracks_field, tuple(edits), skipped)
    _write(dataset, change)
    return change


def undo(dataset: fo.Dataset, change: Change) -> Change:
    """Undoes a change, except where somebody changed a caption since.

    Args:
        dataset: The dataset that was changed.
        change: The result of :func:`apply`.

    Returns:
        What changed now; undoing it redoes the first change.
    """
    edits = {edit.ref: edit for edit in change.edits}
    back = tuple(
        Edit(ref, index, before=state, after=edits[ref].before)
        for ref, index, state in _states(dataset, change.field, edits)
        if state == edits[ref].after
    )
    undone = replace(change, edits=back, skipped=len(edits) - len(back))
    _write(dataset, undone)
    return undone


def _states(
    dataset: fo.Dataset, field: str, refs: Iterable[Ref]
) -> Iterator[tuple[Ref, int | None, State]]:
    """Reads the states of captions; those that are gone are left out."""
    wanted: dict[str, set[str]] = {}
    for ref in refs:
        wanted.setdefault(ref.sample_id, set()).add(ref.label_id)
    keys = ("_id", "index", "caption", "review", "source_caption", "error")
    projection = {f"{field}.detections.{key}": 1 for key in keys}
    ids = iter(wanted)
    while chunk := list(islice(ids, _SAMPLES_AT_ONCE)):
        query = {"_id": {"$in": [ObjectId(sample_id) for sample_id in chunk]}}
        for document in dataset._sample_collection.find(query, projection):
            sample_id = str(document["_id"])
            for label in labels_of(document.get(field)):
                ref = Ref(sample_id, str(label["_id"]))
                if ref.label_id in wanted[sample_id]:
                    state = State(
                        caption=label.get("caption") or "",
                        review=label.get("review") or REVIEWS[0],
                        source_caption=label.get("source_caption"),
                        error=label.get("error"),
                    )
                    yield ref, label.get("index"), state


def _write(dataset: fo.Dataset, change: Change) -> None:
    by_sample: dict[str, list[Edit]] = {}
    for change_edit in change.edits:
        by_sample.setdefault(change_edit.ref.sample_id, []).append(change_edit)
    samples = iter(by_sample.items())
    while chunk := list(islice(samples, _SAMPLES_AT_ONCE)):
        dataset._sample_collection.bulk_write(
            [_update(change.field, sample_id, edits) for sample_id, edits in chunk],
            ordered=False,
        )
    for sample_id in by_sample:
        reload_sample(dataset, sample_id)
    if change.tracks_field is None:
        return
    for sample_id, edits in by_sample.items():
        objects = {
            e.index
            for e in edits
            if e.index is not None and e.before.shown != e.after.shown
        }
        if objects:
            mirror_captions(
                dataset[sample_id], change.field, change.tracks_field, objects=objects
            )


def _update(field: str, sample_id: str, edits: Collection[Edit]) -> UpdateOne:
    """Makes the update that sets what differs, on these labels alone."""
    values: Document = {"last_modified_at": now()}
    filters: list[Mapping[str, Any]] = []
    for number, change in enumerate(edits):
        for key in ("caption", "review", "source_caption", "error"):
            value = getattr(change.after, key)
            if value != getattr(change.before, key):
                values[f"{field}.detections.$[e{number}].{key}"] = value
        filters.append({f"e{number}._id": ObjectId(change.ref.label_id)})
    return UpdateOne(
        {"_id": ObjectId(sample_id)}, {"$set": values}, array_filters=filters
    )


class ReviewQueue:
    """The captions of a view, in the order a person sees them."""

    def __init__(
        self,
        refs: list[Ref],
        reviews: Iterable[str | None],
        confidences: Iterable[float | None],
    ) -> None:
        """Takes the captions in order.

        Args:
            refs: Ids of the captions.
            reviews: Their reviews; None counts as unreviewed.
            confidences: Confidences of their models; None where unknown.
        """
        self._refs = refs
        self._positions = {ref.label_id: i for i, ref in enumerate(refs)}
        self._reviews: NDArray[np.uint8] = np.fromiter(
            (_code(review) for review in reviews), np.uint8, len(refs)
        )
        self._confidences: NDArray[np.float32] = np.fromiter(
            (np.nan if c is None else c for c in confidences), np.float32, len(refs)
        )

    @classmethod
    def of(
        cls, samples: foco.SampleCollection, field: str, *, order: Order = "view"
    ) -> ReviewQueue:
        """Reads the captions of a view.

        Args:
            samples: A dataset or a view of videos, whose filters of labels hold; or a
                clips view: of the captions, in the order of the clips, or any other,
                whose clips' captions are those that overlap them.
            field: Field of the captions.
            order: Order of the queue; captions of unknown confidence are the least
                confident.

        Raises:
            FieldError: If there is no such field.
        """
        found = (
            _of_clips(samples, field)
            if isinstance(samples, foc.ClipsView)
            else _labels(samples, require_captions(samples, field))
        )
        rows = list(found)
        if order == "confidence":
            rows.sort(key=lambda row: -1.0 if row[2] is None else row[2])
        return cls(
            [row[0] for row in rows], (row[1] for row in rows), (row[2] for row in rows)
        )

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


_Row: TypeAlias = tuple[Ref, str | None, float | None]


def _code(review: str | None) -> int:
    """Returns a review as a number; one that other tools made up counts as none."""
    return REVIEWS.index(review) if review in REVIEWS else 0


def _labels(samples: foco.SampleCollection, field: str) -> Iterator[_Row]:
    labels = f"{field}.detections"
    projection = {f"{labels}.{key}": 1 for key in ("_id", "review", "confidence")}
    # FiftyOne's own values() takes a pass for each of these.
    for document in samples._aggregate(post_pipeline=[{"$project": projection}]):
        sample_id = str(document["_id"])
        for label in labels_of(document.get(field)):
            yield (
                Ref(sample_id, str(label["_id"])),
                label.get("review"),
                label.get("confidence"),
            )


def _of_clips(clips: foc.ClipsView, field: str) -> Iterator[_Row]:
    dataset = clips._root_dataset
    require_captions(dataset, field)
    clip_ids, sample_ids, supports = clips.values(["id", "sample_id", "support"])
    view = dataset.select(list(dict.fromkeys(sample_ids)))
    rows = list(_labels(view, field))
    if clips._classification_field == field:
        # Clips of captions have the ids of their captions.
        by_id = {row[0].label_id: row for row in rows}
        yield from (by_id[clip_id] for clip_id in clip_ids if clip_id in by_id)
        return
    spans: dict[str, list[tuple[int, int]]] = {}
    for sample_id, (first, last) in zip(sample_ids, supports, strict=True):
        spans.setdefault(sample_id, []).append((first, last))
    of_labels = chain(*filter(None, view.values(f"{field}.detections.support")))
    for row, (first, last) in zip(rows, of_labels, strict=True):
        if any(a <= last and first <= b for a, b in spans[row[0].sample_id]):
            yield row


def reviewed_share(counts: dict[Review, int]) -> float:
    """Returns the share of captions that were reviewed, in [0, 1]; 1 for none."""
    total = sum(counts.values())
    return 1.0 if not total else 1 - counts[REVIEWS[0]] / total
