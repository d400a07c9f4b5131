"""Reads from a sample where its objects are, and writes it there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import fiftyone as fo
import numpy as np

from fiftyone_regioncap.core.errors import FieldError, PromptError
from fiftyone_regioncap.core.types import Prompt, crop_mask
from fiftyone_regioncap.dataset.fields import frames_field, require_prompts
from fiftyone_regioncap.dataset.geometry import (
    POINT_SIGNS,
    Shape,
    labels_of,
    point_signs,
    relative_box,
    shape_of,
)
from fiftyone_regioncap.dataset.metadata import describe
from fiftyone_regioncap.dataset.objects import (
    IDENTITY_PATHS,
    Identity,
    ObjectNumbers,
)
from fiftyone_regioncap.dataset.ownership import (
    free_field,
    owner_of_track_label,
    place_prefix,
    prompt_label_id,
)
from fiftyone_regioncap.dataset.schema import declare_labels
from fiftyone_regioncap.dataset.status import Span, is_inside
from fiftyone_regioncap.dataset.store import FRAMES_PREFIX, Document, Store, frame_path
from fiftyone_regioncap.propagation.base import Direction
from fiftyone_regioncap.propagation.prompts import check_prompts

_BOX_SIGNS = ("sam_label", "sam3_label")
"""Attributes of a Detection that FiftyOne's SAM 3 reads: whether the box is on what is
looked for."""


WHOLE: tuple[Span, ...] = ((0, None),)
"""All of a video, as ranges."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one sample.

    Attributes:
        prompts: Prompts in the order of frames.
        labels: Labels of the objects, by object id; None where no prompt has one.
        instances: Ids of the objects' ``fo.Instance``, for those that have one.
        problems: A message for each label that is no prompt, which names it.
        numbers: Numbers of the objects, also of those that a view hides.
        unlinked: Frames of the labels that are objects by themselves, 0-based.
        sources: Ids of the labels that each prompt was made of, as text.
        size: Height and width of the frames, and their number.
    """

    prompts: list[Prompt]
    labels: Mapping[int, str | None]
    instances: Mapping[int, str]
    problems: list[str]
    numbers: ObjectNumbers
    unlinked: list[int]
    sources: list[str]
    size: tuple[int, int, int]

    def inside(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        direction: Direction = "both",
        objects: Collection[int] | None = None,
    ) -> PromptSet:
        """Returns the prompts that can be propagated over a range.

        Args:
            start: First frame of the range, 0-based.
            stop: One past its last frame; None for the end of the video.
            direction: Direction of the propagation.
            objects: Ids of the objects; None means all.

        Returns:
            These prompts, with the problems of the range's others alone.
        """
        height, width, frame_count = self.size
        end = frame_count if stop is None else stop
        chosen = [
            number
            for number, prompt in enumerate(self.prompts)
            if start <= prompt.frame
            and (stop is None or prompt.frame < stop)
            and (objects is None or prompt.object_id in objects)
        ]
        good, problems = check_prompts(
            [self.prompts[number] for number in chosen],
            height=height,
            width=width,
            frame_count=frame_count,
            start=start,
            stop=min(end, frame_count),
            direction=direction,
        )
        # Prompts hold arrays, which can't be compared.
        sources = {id(self.prompts[number]): self.sources[number] for number in chosen}
        return replace(
            self,
            prompts=good,
            sources=[sources[id(prompt)] for prompt in good],
            problems=[
                f"{problem.reason} (label {sources[id(problem.prompt)]})"
                for problem in problems
            ],
        )


@dataclass(frozen=True)
class _Mark:
    """A label of a field of prompts.

    Attributes:
        frame: Frame that it is on, 0-based.
        label: The label, as far as it was read.
        off: Whether its points are off the object unless they say otherwise.
    """

    frame: int
    label: Document
    off: bool = False

    @cached_property
    def identity(self) -> Identity:
        """What names its object."""
        return Identity.of(self.label, alone=True)

    @property
    def key(self) -> tuple[int, Any]:
        """Its frame and the id of its label."""
        return self.frame, self.label["_id"]

    @property
    def only_off(self) -> bool:
        """Whether it says only where its object is not."""
        try:
            signs = point_signs(self.label)
        except FieldError:
            return False
        return self.off if signs is None else not signs.any()

    @property
    def follows(self) -> bool:
        """Whether it is about an object that other labels mark."""
        return self.off or (not self.identity.linked and self.only_off)


def read_prompts(
    sample: fo.Sample | fo.SampleView,
    field: str,
    *,
    height: int,
    width: int,
    frame_count: int | None = None,
    negative: str | None = None,
    known: Mapping[str, int] | None = None,
    taken: Collection[int] = (),
) -> PromptSet:
    """Reads where objects are from any boxes, masks, points or polylines.

    Frame numbers count, never the place of a frame's document among others.
    :class:`~fiftyone_regioncap.dataset.objects.ObjectNumbers` says which labels are of
    one object. A label without index and instance is an object by itself; if all its
    points are off the object, it is about the only object of its label, or the only one
    there is. Filters of the view that the sample comes from hold, but change no number.

    Args:
        sample: Video; of a clips view, prompts outside the clip are left out.
        field: ``frames.<name>``, or a sample-level field, which is about frame 1.
        height: Height of the video's frames in pixels.
        width: Width of the video's frames in pixels.
        frame_count: Number of frames; None leaves prompts past the end to the
            propagator.
        negative: Field of more points, which are off the objects unless they have a
            sign of 1; None for none.
        known: Record of the numbers that objects were given before.
        taken: Numbers that new objects don't get.

    Returns:
        The prompts, with one for all points of an object on a frame, and a message for
        each label that can't be used.

    Raises:
        FieldError: When there is no such field, it holds something else, or all that it
            holds is damaged.
        PromptError: When none of the prompts fits its frame.
    """
    store = Store.of(sample)
    for one in filter(None, (field, negative)):
        require_prompts(sample._collection, one)
    every = _drawn(_marks(replace(store, support=None), field, all_labels=True))
    naming = [mark for mark in every if mark.identity.linked or not mark.only_off]
    numbers = ObjectNumbers.scan(
        ((mark.frame, mark.identity) for mark in naming), known, taken
    )
    drawn = {mark.key for mark in every}
    reading = _Reading(numbers, height, width)
    marks = [mark for mark in _marks(store, field) if mark.key in drawn]
    if negative is not None:
        marks += _drawn(_marks(store, negative, off=True))
    # What is about an object that others mark comes after these.
    for mark in sorted(marks, key=lambda mark: mark.follows):
        reading.add(mark)
    found = sorted(reading.prompts, key=lambda place: place[1])
    prompts = [reading.prompts[place] for place in found]
    last = max((prompt.frame for prompt in prompts), default=0)
    read = PromptSet(
        prompts,
        reading.labels,
        reading.instances,
        [],
        numbers,
        [m.frame for m in marks if not (m.identity.linked or m.follows)],
        [", ".join(reading.sources[place]) for place in found],
        (height, width, frame_count or last + 1),
    ).inside()
    if not read.prompts and (reading.problems or read.problems):
        error = FieldError if not read.problems else PromptError
        raise error("; ".join([*reading.problems, *read.problems]))
    return replace(read, problems=[*reading.problems, *read.problems])


@dataclass
class _Reading:
    """Makes prompts of labels."""

    numbers: ObjectNumbers
    height: int
    width: int
    prompts: dict[tuple[int, int, int], Prompt] = field(default_factory=dict)
    sources: dict[tuple[int, int, int], list[str]] = field(default_factory=dict)
    labels: dict[int, str | None] = field(default_factory=dict)
    instances: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, mark: _Mark) -> None:
        """Adds a label's prompt, or its problem."""
        own = mark.identity
        object_id = self.numbers.of(own)
        if mark.follows:
            object_id = self.numbers.find(own)
            if object_id is not None and object_id not in self.labels:
                return  # the view hides its object
        who = "a prompt" if object_id is None else f"prompt of object {object_id}"
        try:
            if object_id is None:
                raise FieldError(
                    "no other label says which object its points are off; give it the "
                    "`index` of that object"
                )
            shape = _shape(mark, self.height, self.width)
            if shape is not None:
                self._place(object_id, mark, shape)
        except FieldError as error:
            self.problems.append(
                f"{who} on frame {mark.frame + 1}: {error} (label {mark.label['_id']})"
            )

    def _place(self, object_id: int, mark: _Mark, shape: Shape) -> None:
        name = mark.label.get("label")
        if mark.off:
            name = None
        self.labels[object_id] = self.labels.get(object_id) or name
        if mark.identity.instance is not None:
            self.instances.setdefault(object_id, mark.identity.instance)
        prompt = Prompt(
            object_id,
            mark.frame,
            # A mask says more than its box, and a box of another tool may not fit it.
            box=shape.box if shape.mask is None else None,
            points=shape.points,
            point_signs=shape.point_signs,
            mask=shape.mask,
            # An object has one label, also where it changes over time.
            label=None if name is None else self.labels[object_id],
        )
        # Points off an object mean nothing without those on it, so all points of an
        # object on a frame make one prompt.
        alone = -1 if shape.points is not None else len(self.prompts)
        place = (object_id, mark.frame, alone)
        if place in self.prompts:
            prompt = _joined(self.prompts[place], prompt)
        self.prompts[place] = prompt
        self.sources.setdefault(place, []).append(str(mark.label["_id"]))


def _shape(mark: _Mark, height: int, width: int) -> Shape | None:
    """Reads the geometry of a prompt; None when all its points are NaN.

    Raises:
        FieldError: When it has none that can be used.
    """
    label = mark.label
    shape = shape_of(label, height, width, sign=not mark.off)
    if shape is None and label.get("points"):
        return None
    if shape is None:
        what = {"Detection": "box", "Keypoint": "point"}.get(label["_cls"], "vertex")
        raise FieldError(f"it has no {what}; draw one, or delete the label")
    off = next((label[key] for key in _BOX_SIGNS if label.get(key) is not None), True)
    if shape.points is None and (mark.off or not off):
        raise FieldError(
            "only points can be off an object; mark what does not belong to it by "
            "points or an open line"
        )
    return shape


def _drawn(marks: Iterable[_Mark]) -> list[_Mark]:
    """Returns the labels that a person placed, of those that FiftyOne's App stored.

    Its Annotate tab marks the drawn label by ``keyframe=True`` and holds copies of it
    on the following frames: where an object has keyframes, its other labels are none.
    """
    marks = list(marks)
    numbers = ObjectNumbers.scan((mark.frame, mark.identity) for mark in marks)
    keyed = {
        numbers.of(mark.identity) if mark.identity.linked else None
        for mark in marks
        if mark.label.get("keyframe")
    }

    def is_copy(mark: _Mark) -> bool:
        if mark.label.get("keyframe"):
            return False
        if mark.identity.linked:
            return numbers.of(mark.identity) in keyed
        return None in keyed and mark.label.get("keyframe") is not None

    return [mark for mark in marks if not is_copy(mark)]


def _marks(
    store: Store, field: str, *, all_labels: bool = False, off: bool = False
) -> Iterator[_Mark]:
    """Yields the labels of a field of prompts, in the order of frames.

    Args:
        store: Store of the sample.
        field: Field of the prompts.
        all_labels: Whether to read those that a view hides too, without their shapes.
        off: Whether points are off their objects unless they say otherwise.
    """
    name = frame_path(field)
    if field.startswith(FRAMES_PREFIX):
        paths = [name]
        if all_labels:
            kind = store.dataset.get_field(field).document_type
            inner = getattr(kind, "_LABEL_LIST_FIELD", None)
            path = f"{name}.{inner}" if inner else name
            kept = ("_cls", "_id", *IDENTITY_PATHS, "keyframe", *POINT_SIGNS)
            paths = [f"{path}.{key}" for key in kept]
        for document in store.frames(paths, unfiltered=all_labels):
            for label in labels_of(document.get(name)):
                yield _Mark(document["frame_number"] - 1, label, off)
    elif store.support is None or store.support[0] == 0:
        value = store.sample_document(field).get(field)
        if not all_labels:
            shown = store.sample[field]
            value = None if shown is None else shown.to_mongo().to_dict()
        for label in labels_of(value):
            yield _Mark(0, label, off)


def _joined(one: Prompt, other: Prompt) -> Prompt:
    """Joins two prompts of points on the same object and frame."""
    assert one.points is not None and other.points is not None
    assert one.point_signs is not None and other.point_signs is not None
    return replace(
        one,
        points=np.concatenate([one.points, other.points]),
        point_signs=np.concatenate([one.point_signs, other.point_signs]),
        label=one.label or other.label,
    )


def require_own_prompts(
    sample: fo.Sample | fo.SampleView, field: str, spans: Sequence[Span] = WHOLE
) -> None:
    """Makes sure that a frame field holds only prompts that this package wrote.

    Args:
        sample: Video in a dataset.
        field: Name of the field on the frames.
        spans: Ranges to look at; by default the whole video.

    Raises:
        FieldError: When somebody drew or edited a label there.
    """
    store = Store.of(sample)
    _require_own(store, field, _written(store, field, spans))


def _require_own(store: Store, field: str, frames: Iterable[Document]) -> None:
    for document in frames:
        place = place_prefix(store.sample_id, field, document["frame_number"])
        for label in labels_of(document.get(field)):
            if owner_of_track_label(label, place) != "own":
                raise FieldError(
                    f"frame {document['frame_number']} has labels in "
                    f"{frames_field(field)} that a person drew or edited; write to "
                    f"{free_field(store.dataset, frames_field(field))}, or delete them"
                )


def prompt_numbers(
    sample: fo.Sample | fo.SampleView, field: str, *, outside: Sequence[Span]
) -> set[int]:
    """Reads the numbers of the prompts of a frame field outside some ranges."""
    store = Store.of(sample)
    path = f"{field}.detections.index"
    return {
        label["index"]
        for document in store.frames([path], unfiltered=True)
        if not is_inside(document["frame_number"] - 1, outside)
        for label in labels_of(document.get(field))
        if label.get("index") is not None
    }


def _written(store: Store, field: str, spans: Sequence[Span]) -> list[Document]:
    """Reads the frames of ranges that have labels, those that a view hides too."""
    return [
        document
        for document in store.frames([field], unfiltered=True)
        if document.get(field) is not None
        and is_inside(document["frame_number"] - 1, spans)
    ]


def write_prompts(
    sample: fo.Sample | fo.SampleView,
    field: str,
    prompts: Sequence[Prompt],
    *,
    spans: Sequence[Span] = WHOLE,
) -> int:
    """Writes prompts into a frame field, in place of those that are there.

    Args:
        sample: Video in a dataset.
        field: Name of the field on the frames.
        prompts: Prompts, all with points (written as Keypoints), or all with boxes or
            masks (written as Detections).
        spans: Ranges whose prompts are replaced; by default the whole video.

    Returns:
        Number of labels that were replaced.

    Raises:
        PromptError: When a prompt doesn't fit the video.
        FieldError: When the field holds labels that a person drew or edited, exists
            with another type, or is read-only.
    """
    store = Store.of(sample)
    by_frame = _labels_by_frame(sample, prompts)
    there = _written(store, field, spans)
    _require_own(store, field, there)
    for number, labels in by_frame.items():
        place = place_prefix(store.sample_id, field, number)
        for label in labels[labels._LABEL_LIST_FIELD]:
            label.id = str(prompt_label_id(place, label))
    values: dict[int, Document | None] = {
        document["frame_number"]: None for document in there
    }
    for number, labels in by_frame.items():
        values[number] = labels.to_mongo().to_dict()
        declare_labels(store.dataset, field, type(labels))
    store.write_frames(
        field,
        [
            store.frame_update(number, field, {"$literal": value})
            for number, value in values.items()
        ],
        filter(None, values.values()),
    )
    store.reload_frames()
    return sum(len(labels_of(document[field])) for document in there)


def same_prompts(
    sample: fo.Sample | fo.SampleView, field: str, prompts: Sequence[Prompt]
) -> bool:
    """Returns whether a frame field holds just these prompts.

    Raises:
        PromptError: When a prompt doesn't fit the video.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k != "_id"}
        return [plain(v) for v in value] if isinstance(value, list) else value

    there = {
        document["frame_number"]: plain(document[field])
        for document in Store.of(sample).frames([field])
        if document.get(field) is not None
    }
    wanted = {
        number: plain(labels.to_mongo().to_dict())
        for number, labels in _labels_by_frame(sample, prompts).items()
    }
    return there == wanted


def _labels_by_frame(
    sample: fo.Sample | fo.SampleView, prompts: Sequence[Prompt]
) -> dict[int, fo.Detections | fo.Keypoints]:
    metadata = describe(sample).metadata
    height, width = metadata.frame_height, metadata.frame_width
    by_frame: dict[int, list[fo.Label]] = {}
    for prompt in prompts:
        prompt.check(height, width, metadata.total_frame_count)
        label = _label_of(prompt, height, width)
        by_frame.setdefault(prompt.frame + 1, []).append(label)
    return {
        number: fo.Keypoints(keypoints=labels)
        if isinstance(labels[0], fo.Keypoint)
        else fo.Detections(detections=labels)
        for number, labels in by_frame.items()
    }


def _label_of(prompt: Prompt, height: int, width: int) -> fo.Label:
    if prompt.points is not None:
        signs = True if prompt.point_signs is None else prompt.point_signs
        return fo.Keypoint(
            label=prompt.label,
            index=prompt.object_id,
            points=(prompt.points / [width, height]).tolist(),
            sam_labels=np.broadcast_to(signs, len(prompt.points)).astype(int).tolist(),
        )
    box, mask = prompt.box, None
    if prompt.mask is not None:
        cropped = crop_mask(prompt.mask)
        if cropped is not None:
            box, mask = cropped
    assert box is not None  # a prompt that passed its check has one
    x1, y1, x2, y2 = np.clip(box, 0, [width, height, width, height]).tolist()
    return fo.Detection(
        label=prompt.label,
        index=prompt.object_id,
        bounding_box=relative_box((x1, y1, x2, y2), height, width),
        mask=mask,
    )
