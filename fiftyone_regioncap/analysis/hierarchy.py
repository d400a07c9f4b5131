"""Parts and wholes: which mask of a frame lies inside which.

The rule is that of URECA's training data (arXiv 2504.05305): masks are taken from large
to small, and each becomes a part of the deepest mask that holds most of it, found by
going down through the first that does on each level. So captions can be asked at any
level: of wholes (no parent), of their parts, and of the parts of those.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import fiftyone as fo
import numpy as np
from bson import ObjectId

from fiftyone_regioncap.core.types import Box, Mask, Track, crop_mask
from fiftyone_regioncap.dataset.clips import read_image
from fiftyone_regioncap.dataset.fields import require_regions, require_tracks
from fiftyone_regioncap.dataset.regions import read_regions
from fiftyone_regioncap.dataset.schema import Declared, declare
from fiftyone_regioncap.dataset.store import FrameUpdate, Store, frame_path, now
from fiftyone_regioncap.dataset.tracks import read_masks, read_tracks

CONTAINED = 0.8
"""Share of a mask that has to lie inside another one to be a part of it."""

FRAMES_AT_ONCE = 128
"""Number of frames that are written together."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Position(Generic[Key]):
    """The position of a mask in the hierarchy of its frame.

    Attributes:
        parent: Key of the mask that it is a part of; None for a whole.
        level: Number of masks that it lies inside of; 0 for a whole.
    """

    parent: Key | None
    level: int


@dataclass(frozen=True)
class _Node(Generic[Key]):
    """A mask in the tree.

    Attributes:
        key: Key of the mask; None for the root, which holds everything.
        box: Tight box in whole pixels.
        mask: Mask cropped to the box.
        parts: Masks directly inside it, in the order in which they came.
    """

    key: Key | None
    box: tuple[int, int, int, int]
    mask: Mask
    parts: list[_Node[Key]] = field(default_factory=list)

    def holds(self, other: _Node[Key], share: float) -> bool:
        """Returns whether at least a share of another mask lies inside this one."""
        left, top = max(self.box[0], other.box[0]), max(self.box[1], other.box[1])
        right, bottom = min(self.box[2], other.box[2]), min(self.box[3], other.box[3])
        if left >= right or top >= bottom:
            return False
        window = left, top, right, bottom
        common = np.count_nonzero(self._cut(window) & other._cut(window))
        return bool(common >= share * np.count_nonzero(other.mask))

    def _cut(self, window: tuple[int, int, int, int]) -> Mask:
        left, top, right, bottom = window
        x, y = self.box[:2]
        return self.mask[top - y : bottom - y, left - x : right - x]


def containment(
    masks: Mapping[Key, Mask], *, share: float = CONTAINED
) -> dict[Key, Position[Key]]:
    """Finds the parts and wholes among the masks of one frame.

    Of equally large masks, the one that comes first is taken first; of two that are the
    same, the second becomes a part of the first.

    Args:
        masks: Masks by key, bool (H, W) each, of one size; empty ones are wholes
            without parts.
        share: Share of a part's area within its whole; see :data:`CONTAINED`.

    Returns:
        The position of each, in the order of the masks.
    """
    nodes = {key: _node(key, mask) for key, mask in masks.items()}
    known = [node for node in nodes.values() if node is not None]
    known.sort(key=lambda node: -np.count_nonzero(node.mask))
    root: _Node[Key] = _Node(None, (0, 0, 0, 0), np.zeros((0, 0), dtype=bool))
    positions: dict[Key, Position[Key]] = {}
    for node in known:
        whole, level = root, 0
        while part := next((p for p in whole.parts if p.holds(node, share)), None):
            whole, level = part, level + 1
        whole.parts.append(node)
        assert node.key is not None
        positions[node.key] = Position(whole.key, level)
    return {key: positions.get(key, Position(None, 0)) for key in masks}


def _node(key: Key, mask: Mask) -> _Node[Key] | None:
    cropped = crop_mask(mask)
    return None if cropped is None else _Node(key, _whole(cropped[0]), cropped[1])


def _whole(box: Box) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (int(edge) for edge in box)
    return x1, y1, x2, y2


def write_hierarchy(
    sample: fo.Sample | fo.SampleView, field: str, *, share: float = CONTAINED
) -> int:
    """Writes ``parent`` and ``level`` onto the labels of a field.

    On the tracks of a video, frame by frame, ``parent`` is the ``index`` of the object
    that the label's object is a part of on that frame. On the regions of an image, it
    is the id of the label that the region is a part of. It is None for wholes.

    Args:
        sample: Video or image in a dataset.
        field: Name of a field of tracks (``frames.<name>``), or of regions with masks.
        share: Share of a part's area within its whole; see :data:`CONTAINED`.

    Returns:
        Number of labels that are parts.

    Raises:
        FieldError: When there is no such field, or ``parent`` or ``level`` exist with
            another type.
    """
    if sample.media_type == "video":
        return _write_tracks(sample, field, share)
    return _write_regions(sample, field, share)


def _write_tracks(sample: fo.Sample | fo.SampleView, field: str, share: float) -> int:
    store = Store.of(sample)
    name = frame_path(require_tracks(sample._collection, field))
    labels = f"{name}.detections"
    attributes = [Declared(f"{labels}.{n}", fo.IntField) for n in ("parent", "level")]
    declare(store.dataset, attributes, frames=True)
    tracks = {track.object_id: track for track in read_tracks(sample, field)}
    wanted: dict[int, list[int]] = {}
    for track in tracks.values():
        for frame in track.frames.tolist():
            wanted.setdefault(frame, []).append(track.object_id)
    parts = 0
    updates: list[FrameUpdate] = []
    for frame, masks in read_masks(sample, field, wanted):
        positions = containment(masks, share=share)
        parts += sum(position.parent is not None for position in positions.values())
        values: dict[str, object] = {"last_modified_at": now()}
        filters: list[Mapping[str, Any]] = []
        for number, (index, position) in enumerate(positions.items()):
            values[f"{labels}.$[o{number}].parent"] = position.parent
            values[f"{labels}.$[o{number}].level"] = position.level
            filters.append(_belongs(f"o{number}", tracks[index]))
        updates.append(
            FrameUpdate(
                {"_sample_id": store.sample_id, "frame_number": frame + 1},
                {"$set": values},
                array_filters=filters,
            )
        )
        if len(updates) >= FRAMES_AT_ONCE:
            store.write_frames(name, updates)
            updates.clear()
    store.write_frames(name, updates)
    store.reload_frames()
    return parts


def _belongs(name: str, track: Track) -> dict[str, object]:
    """Returns the array filter that finds a track's label among those of a frame."""
    if track.instance is None:
        return {f"{name}.index": track.object_id}
    # Tracks of other tools may have an instance in place of an index.
    return {
        "$or": [
            {f"{name}.index": track.object_id},
            {
                f"{name}.index": None,
                f"{name}.instance._id": ObjectId(track.instance),
            },
        ]
    }


def _write_regions(sample: fo.Sample | fo.SampleView, field: str, share: float) -> int:
    dataset = sample._dataset
    kind = dataset.get_field(require_regions(dataset, field)).document_type
    inner = getattr(kind, "_LABEL_LIST_FIELD", None)
    path = f"{field}.{inner}" if inner else field
    parent = Declared(f"{path}.parent", fo.StringField)
    declare(dataset, [parent, Declared(f"{path}.level", fo.IntField)])
    height, width = read_image(sample.filepath).shape[:2]
    masks = {
        region.id: region.shape.mask
        for region in read_regions(sample, field, height=height, width=width)
        if region.shape.mask is not None
    }
    positions = containment(masks, share=share)
    value = sample[field]
    for label in getattr(value, inner) if inner and value else filter(None, [value]):
        position = positions.get(label.id, Position(None, 0))
        label["parent"], label["level"] = position.parent, position.level
    sample.save()
    return sum(position.parent is not None for position in positions.values())
