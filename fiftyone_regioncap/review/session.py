"""Reviews captions with a person, and keeps the model's texts.

:func:`apply` changes captions, one or all of a view, and keeps with each who decided
what and when; :func:`undo_last` undoes the last change, after a restart too.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import asdict, dataclass, replace
from dataclasses import field as dataclass_field
from itertools import islice
from typing import Any, TypeAlias, get_args
from uuid import uuid4

import fiftyone as fo
from bson import ObjectId

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.captions import Review, mirror_captions
from fiftyone_regioncap.dataset.fields import (
    frames_field,
    require_tracks,
    require_writable,
)
from fiftyone_regioncap.dataset.schema import declare_review
from fiftyone_regioncap.dataset.store import Document, SampleUpdate, write_samples
from fiftyone_regioncap.review import history

REVIEWS: tuple[Review, ...] = get_args(Review)
"""The reviews that a caption can have; the first is that it has none."""

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
        decisions: The decisions that were kept with the caption before the change.
    """

    ref: Ref
    index: int | None
    before: State
    after: State
    decisions: tuple[Document, ...] = ()


@dataclass(frozen=True)
class Change:
    """The result of one action.

    Attributes:
        field: Field of the captions.
        tracks_field: Field of tracks that have the captions too; None for none.
        edits: One for each caption that changed.
        skipped: Number of captions that the action could not be applied to, such as
            accepting one without a text, or that are gone.
        id: Id of the change, which decisions kept with captions name.
        by: Who changed them.
        undoes: Id of the change that this one undid; None for none.
    """

    field: str
    tracks_field: str | None = None
    edits: tuple[Edit, ...] = ()
    skipped: int = 0
    id: str = dataclass_field(default_factory=lambda: uuid4().hex)
    by: str = dataclass_field(default_factory=history.reviewer)
    undoes: str | None = None


def apply(
    dataset: fo.Dataset,
    field: str,
    refs: Iterable[Ref],
    action: Action,
    *,
    tracks_field: str | None = None,
    seen: str | None = None,
    reviews: Collection[Review] = REVIEWS,
    by: str | None = None,
    part_of: str | None = None,
) -> Change:
    """Applies an action to captions, and keeps with each who did it and when.

    Args:
        dataset: A dataset of videos or images.
        field: Field of the captions.
        refs: Ids of the captions, of any number of samples.
        action: :func:`accept`, :func:`edit` of a text, :func:`reject`, :func:`reset`,
            or one of your own.
        tracks_field: Field of tracks whose labels have the captions too and follow.
        seen: Text that the person had in front of them; None not to check it.
        reviews: Reviews of the captions that are changed, all by default; others, such
            as those that somebody judged meanwhile, are skipped.
        by: Who decides; None for the user that this process runs as.
        part_of: Id of the change that this is a part of, so that both are undone
            together; None for a change of its own.

    Returns:
        What changed, for :func:`undo`.

    Raises:
        FieldError: If a field is absent, of another kind, or read-only.
        RegionCapError: If somebody else changed the text that was ``seen``; and what
            the action raises, where there is one caption only.
    """
    captions = _writable(dataset, field, tracks_field)
    refs = list(refs)
    states = {edit.ref: edit for edit in _states(captions, refs)}
    if len(refs) == 1 and not states:
        raise RegionCapError("the caption is gone; refresh the review")
    edits = []
    skipped = len(refs) - len(states)
    for found in states.values():
        if found.before.review not in reviews:
            skipped += 1
            continue
        if seen is not None and found.before.caption != seen:
            raise RegionCapError(
                "somebody changed this caption while you read it; look at it again"
            )
        try:
            after = action(found.before)
        except RegionCapError:
            if len(refs) == 1:
                raise
            skipped += 1
            continue
        if after != found.before:
            edits.append(replace(found, after=after))
    change = Change(
        field,
        tracks_field,
        tuple(edits),
        skipped,
        id=part_of or uuid4().hex,
        by=by or history.reviewer(),
    )
    _write(captions, change)
    if edits:
        samples = sorted({edit.ref.sample_id for edit in edits})
        history.remember(
            dataset, change.id, change.by, field, tracks_field, samples, len(edits)
        )
    return change


def undo(dataset: fo.Dataset, change: Change) -> Change:
    """Undoes a change, except where somebody changed a caption since.

    Args:
        dataset: The dataset that was changed.
        change: The result of :func:`apply`.

    Returns:
        What changed now; undoing it redoes the first change.

    Raises:
        FieldError: If a field is gone, or read-only by now.
    """
    captions = _writable(dataset, change.field, change.tracks_field)
    edits = {edit.ref: edit for edit in change.edits}
    back = tuple(
        replace(found, after=edits[found.ref].before)
        for found in _states(captions, edits)
        if found.before == edits[found.ref].after
    )
    return _undone(captions, change, back, len(edits) - len(back))


def undo_last(
    dataset: fo.Dataset, field: str | None = None, *, by: str | None = None
) -> Change | None:
    """Undoes the last change that is remembered with a dataset, by any process.

    Args:
        dataset: The dataset.
        field: Field of the captions; None for any.
        by: Whose change; None for anybody's.

    Returns:
        What changed now, which :func:`undo` redoes; None where nothing is remembered.

    Raises:
        FieldError: If a field is gone, or read-only by now.
    """
    found = history.last(dataset, field, by)
    if found is None:
        return None
    tracks = found.tracks_field
    if tracks is not None and not dataset.has_field(frames_field(tracks)):
        tracks = None
    captions = _writable(dataset, found.field, tracks)
    back = tuple(
        replace(now, after=replace(now.before, **before))
        for now in _states(captions, dict.fromkeys(found.sample_ids))
        if (before := history.undone(now.decisions, found.change, now.before))
        is not None
    )
    change = Change(found.field, tracks, id=found.change, by=found.by)
    return _undone(captions, change, back, found.count - len(back))


def _undone(
    captions: CaptionField, change: Change, back: tuple[Edit, ...], skipped: int
) -> Change:
    undone = replace(
        change, edits=back, skipped=skipped, id=uuid4().hex, undoes=change.id
    )
    _write(captions, undone)
    history.forget(captions.dataset, change.id)
    return undone


def _writable(
    dataset: fo.Dataset, field: str, tracks_field: str | None
) -> CaptionField:
    """Finds the captions, and declares what a review writes.

    Raises:
        FieldError: If a field is absent, of another kind, or read-only.
    """
    captions = CaptionField.of(dataset, field)
    require_writable(dataset, field)
    if tracks_field is not None:
        require_writable(dataset, require_tracks(dataset, tracks_field))
    declare_review(dataset, captions.labels)
    return captions


def _names(captions: CaptionField) -> dict[str, str]:
    """Returns the attributes of labels by those of a :class:`State`."""
    names = {name: name for name in ("caption", "review", "source_caption")}
    return {**names, "error": captions.error}


def _states(
    captions: CaptionField, refs: Iterable[Ref] | Mapping[str, None]
) -> Iterator[Edit]:
    """Reads the states of captions; those that are gone are left out.

    Args:
        captions: The field.
        refs: Ids of the captions, or of samples whose captions are all read.
    """
    wanted: dict[str, set[str] | None] = {}
    for ref in refs:
        if isinstance(ref, str):
            wanted[ref] = None
        else:
            own = wanted.setdefault(ref.sample_id, set())
            assert own is not None
            own.add(ref.label_id)
    names = _names(captions)
    ids = iter(wanted)
    while chunk := list(islice(ids, _SAMPLES_AT_ONCE)):
        query = {"_id": {"$in": [ObjectId(sample_id) for sample_id in chunk]}}
        read = ("index", *names.values(), history.DECISIONS)
        for document, labels in captions.documents(read, query=query):
            sample_id = str(document["_id"])
            chosen = wanted[sample_id]
            for label in labels:
                ref = Ref(sample_id, str(label["_id"]))
                if chosen is None or ref.label_id in chosen:
                    values: dict[str, Any] = {
                        key: label.get(name) for key, name in names.items()
                    }
                    values["caption"] = values["caption"] or ""
                    values["review"] = values["review"] or REVIEWS[0]
                    state = State(**values)
                    decisions = tuple(label.get(history.DECISIONS) or ())
                    yield Edit(ref, label.get("index"), state, state, decisions)


def _write(captions: CaptionField, change: Change) -> None:
    dataset = captions.dataset
    by_sample: dict[str, list[Edit]] = {}
    for edited in change.edits:
        by_sample.setdefault(edited.ref.sample_id, []).append(edited)
    samples = iter(by_sample.items())
    while chunk := list(islice(samples, _SAMPLES_AT_ONCE)):
        updates = [
            update
            for sample_id, edits in chunk
            for update in _updates(captions, change, sample_id, edits)
        ]
        write_samples(dataset, captions.name, updates)
    if change.tracks_field is None or captions.of_images:
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


def _updates(
    captions: CaptionField, change: Change, sample_id: str, edits: Collection[Edit]
) -> Iterator[SampleUpdate]:
    """Makes updates that set what differs, on labels that are as they were read."""
    names = _names(captions)
    listed = captions.labels != captions.name
    values: Document = {}
    absent: list[str] = []
    filters: list[Document] = []
    for number, one in enumerate(edits):
        path = f"{captions.labels}.$[e{number}]" if listed else captions.name
        before, after = asdict(one.before), asdict(one.after)
        changed = {key: after[key] for key in names if after[key] != before[key]}
        kept = history.following(
            one.decisions,
            change.id,
            change.by,
            {key: before[key] for key in changed},
            changed,
            change.undoes,
        )
        values |= {f"{path}.{names[key]}": value for key, value in changed.items()}
        for key, value in kept.items():
            if value is None:
                absent.append(f"{path}.{key}")
            else:
                values[f"{path}.{key}"] = value
        same = {names[key]: _equal(before[key]) for key in names}
        if not listed:
            query = {f"{captions.name}.{key}": value for key, value in same.items()}
            query[f"{captions.name}._id"] = ObjectId(one.ref.label_id)
            yield SampleUpdate(ObjectId(sample_id), values, absent, None, query)
            return
        own: Document = {"_id": ObjectId(one.ref.label_id), **same}
        filters.append({f"e{number}.{key}": value for key, value in own.items()})
    yield SampleUpdate(ObjectId(sample_id), values, absent, filters)


def _equal(value: Any) -> Any:
    """Returns a condition on what is stored; what is absent reads as the default."""
    return {"$in": [value, None]} if value in ("", REVIEWS[0], None) else {"$eq": value}
