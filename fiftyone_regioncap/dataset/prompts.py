"""Reads from a sample where its objects are, and writes it there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fiftyone as fo
import numpy as np

from fiftyone_regioncap.core.errors import FieldError, PromptError
from fiftyone_regioncap.core.types import Prompt, crop_mask
from fiftyone_regioncap.dataset.fields import frames_field, require_prompts
from fiftyone_regioncap.dataset.geometry import Shape, labels_of, relative_box, shape_of
from fiftyone_regioncap.dataset.metadata import describe
from fiftyone_regioncap.dataset.objects import ObjectIds, identity
from fiftyone_regioncap.dataset.ownership import (
    free_field,
    owner_of_track_label,
    place_prefix,
    prompt_label_id,
)
from fiftyone_regioncap.dataset.store import FRAMES_PREFIX, Document, Store, frame_path


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one sample.

    Attributes:
        prompts: Prompts in the order of frames.
        labels: Labels of the objects, by object id; None where no prompt has one.
        instances: Ids of the objects' ``fo.Instance``, for those that have one.
    """

    prompts: list[Prompt]
    labels: Mapping[int, str | None]
    instances: Mapping[int, str]


def read_prompts(
    sample: fo.Sample | fo.SampleView,
    field: str,
    *,
    height: int,
    width: int,
    frame_count: int | None = None,
) -> PromptSet:
    """Reads where objects are from any boxes, masks, points or polylines.

    Frame numbers count, never the place of a frame's document among others. A label's
    ``index`` is its object id; several labels of one index are several prompts of that
    object. Without an index, labels that share an ``instance`` are one object, and any
    other label is an object of its own (see
    :class:`fiftyone_regioncap.dataset.objects.ObjectIds`). Filters of the view that the
    sample comes from hold.

    Args:
        sample: Video; of a clips view, prompts outside the clip are left out.
        field: ``frames.<name>``, or a sample-level field, which is about frame 1.
        height: Height of the video's frames in pixels.
        width: Width of the video's frames in pixels.
        frame_count: Number of frames; None leaves prompts past the end to the
            propagator.

    Returns:
        The prompts, with one for all points of an object on a frame.

    Raises:
        FieldError: When there is no such field, or it holds something else.
        PromptError: When a prompt doesn't fit its frame.
    """
    collection = sample._collection
    require_prompts(collection, field)
    found = _drawn(list(_labels(sample, field)))
    ids = ObjectIds.scan(identity(label) for _, label in found)
    prompts: dict[tuple[int, int, int], Prompt] = {}
    labels: dict[int, str | None] = {}
    instances: dict[int, str] = {}
    for number, (frame, label) in enumerate(found):
        shape = shape_of(label, height, width)
        if shape is None:
            continue
        own = identity(label)
        object_id = ids.of(own)
        if object_id is None:
            object_id = ids.new()
        name = label.get("label")
        labels[object_id] = labels.get(object_id) or name
        if own[1] is not None:
            instances.setdefault(object_id, own[1])
        prompt = _prompt(object_id, frame, shape, name)
        # Points off an object mean nothing without those on it, so all points of an
        # object on a frame make one prompt.
        place = (object_id, frame, -1 if shape.points is not None else number)
        if place in prompts:
            prompt = _joined(prompts[place], prompt)
        prompts[place] = prompt
    placed = {p.object_id for p in prompts.values() if not p.negative_only}
    for prompt in prompts.values():
        prompt.check(height, width, frame_count or prompt.frame + 1)
        if prompt.object_id not in placed:
            raise PromptError(
                f"{prompt.name}: all points are off the object; give one on it"
            )
    return PromptSet(list(prompts.values()), labels, instances)


def _drawn(found: list[tuple[int, Document]]) -> list[tuple[int, Document]]:
    """Returns the labels that a person placed, of those that FiftyOne's App stored.

    Its Annotate tab marks the drawn label by ``keyframe=True`` and holds copies of it
    on the following frames: where an object has keyframes, its other labels are none.
    """
    ids = ObjectIds.scan(identity(label) for _, label in found)
    keyed = {ids.of(identity(label)) for _, label in found if label.get("keyframe")}
    return [
        (frame, label)
        for frame, label in found
        if label.get("keyframe")
        or ids.of(identity(label)) not in keyed
        or (identity(label) == (None, None) and label.get("keyframe") is None)
    ]


def _labels(
    sample: fo.Sample | fo.SampleView, field: str
) -> Iterator[tuple[int, Document]]:
    store = Store.of(sample)
    if field.startswith(FRAMES_PREFIX):
        name = frame_path(field)
        for document in store.frames([name]):
            for label in labels_of(document.get(name)):
                yield document["frame_number"] - 1, label
    elif store.support is None or store.support[0] == 0:
        value = sample[field]
        for label in labels_of(None if value is None else value.to_mongo().to_dict()):
            yield 0, label


def _prompt(object_id: int, frame: int, shape: Shape, label: str | None) -> Prompt:
    return Prompt(
        object_id,
        frame,
        # A mask says more than its box, and a box of another tool may not fit it.
        box=shape.box if shape.mask is None else None,
        points=shape.points,
        point_signs=shape.point_signs,
        mask=shape.mask,
        label=label,
    )


def _joined(one: Prompt, other: Prompt) -> Prompt:
    """Joins two prompts of points on the same object and frame."""
    if one.label and other.label and one.label != other.label:
        raise PromptError(
            f"object {one.object_id} is {one.label!r} and {other.label!r} on frame "
            f"{one.frame + 1}; give different objects different indexes"
        )
    assert one.points is not None and other.points is not None
    assert one.point_signs is not None and other.point_signs is not None
    return replace(
        one,
        points=np.concatenate([one.points, other.points]),
        point_signs=np.concatenate([one.point_signs, other.point_signs]),
        label=one.label or other.label,
    )


def write_prompts(sample: fo.Sample, field: str, prompts: Sequence[Prompt]) -> None:
    """Puts prompts into a frame field in memory, in place of those that are there.

    Only frames with prompts are loaded, as the others may be many and full of masks.

    Args:
        sample: Video in a dataset; save it afterwards.
        field: Name of the field on the frames.
        prompts: Prompts, all with points (written as Keypoints), or all with boxes or
            masks (written as Detections).

    Raises:
        PromptError: When a prompt doesn't fit the video.
        FieldError: When the field holds labels that a person drew or edited.
    """
    store = Store.of(sample)
    by_frame = _labels_by_frame(sample, prompts)
    there = list(store.frames([field]))
    for document in there:
        place = place_prefix(store.sample_id, field, document["frame_number"])
        for label in labels_of(document.get(field)):
            if owner_of_track_label(label, place) != "own":
                raise FieldError(
                    f"frame {document['frame_number']} has labels in "
                    f"{frames_field(field)} that a person drew or edited; write to "
                    f"{free_field(store.dataset, frames_field(field))}, or delete them"
                )
    for number, labels in by_frame.items():
        place = place_prefix(store.sample_id, field, number)
        for label in labels[labels._LABEL_LIST_FIELD]:
            label.id = str(prompt_label_id(place, label))
    for document in there:
        if field in document and document["frame_number"] not in by_frame:
            sample.frames[document["frame_number"]][field] = None
    for number, labels in by_frame.items():
        sample.frames[number][field] = labels


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
