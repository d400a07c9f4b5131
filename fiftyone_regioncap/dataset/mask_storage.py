"""Moves the masks of tracks from the database to files and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import fiftyone as fo

from fiftyone_regioncap.core.errors import FieldError
from fiftyone_regioncap.dataset import locks
from fiftyone_regioncap.dataset.fields import require_tracks
from fiftyone_regioncap.dataset.geometry import (
    inline_mask,
    save_mask,
    stored_mask,
    sync_masks,
)
from fiftyone_regioncap.dataset.store import (
    Document,
    FrameUpdate,
    Store,
    frame_path,
    now,
)
from fiftyone_regioncap.dataset.tracks import CHUNK_FRAMES, VIDEO_BYTES, mask_folder


def move_masks(
    sample: fo.Sample | fo.SampleView,
    field: str,
    to: Literal["disk", "inline"],
    output_dir: str | Path | None = None,
) -> Iterator[int]:
    """Moves masks some frames at a time; stopping in between loses none.

    All labels of the field are moved, whoever made them and whether or not a view hides
    them; nothing else of them changes. Of files, only those are removed that lie where
    this package writes them.

    Args:
        sample: Sample of a dataset of videos.
        field: Field of the tracks, with or without ``frames.`` in front.
        to: ``"disk"`` for PNG files, ``"inline"`` for the database.
        output_dir: Folder for masks on disk; None means FiftyOne's folder of the
            dataset.

    Yields:
        Number of masks moved since the last time.

    Raises:
        FieldError: When there is no such field, a mask on disk can't be read, or the
            masks of the video are too many for the database.
        OSError: When the disk is full.
    """
    require_tracks(sample._collection, field)
    store, name = Store.of(sample), frame_path(field)
    folder = mask_folder(store, name, output_dir)
    room = VIDEO_BYTES - store.frame_bytes()
    key = "mask" if to == "disk" else "mask_path"
    documents = store.frames([name], unfiltered=True)
    while chunk := list(islice(documents, CHUNK_FRAMES)):
        updates, files = [], []
        moved = 0
        for document in chunk:
            number = document["frame_number"]
            labels = [
                label
                for label in (document.get(name) or {}).get("detections") or []
                if label.get(key)
            ]
            if not labels:
                continue
            values: Document = {}
            absent: Document = {}
            for rank, label in enumerate(labels):
                path = f"{name}.detections.$[l{rank}]"
                mask = stored_mask(label)
                assert mask is not None
                if to == "disk":
                    file = folder / f"{number:06d}-{label['_id']}.png"
                    save_mask(mask, file)
                    files.append(file)
                    values[f"{path}.mask_path"] = str(file)
                else:
                    values[f"{path}.mask"] = inline_mask(mask)
                    room -= len(values[f"{path}.mask"])
                    files.append(Path(label["mask_path"]))
                absent[f"{path}.{key}"] = ""
            values["last_modified_at"] = now()
            query = {"_sample_id": store.sample_id, "frame_number": number}
            chosen: list[Mapping[str, Any]] = [
                {f"l{i}._id": label["_id"]} for i, label in enumerate(labels)
            ]
            changes = {"$set": values, "$unset": absent}
            updates.append(FrameUpdate(query, changes, array_filters=chosen))
            moved += len(labels)
        if to == "inline" and room < 0:
            raise FieldError(
                f"the masks of this video need more than {VIDEO_BYTES >> 20} MB, with "
                "which FiftyOne's own queries fail; leave them on disk"
            )
        # A mask is never left at neither place, should the power fail.
        if to == "disk":
            sync_masks(files)
        store.write_frames(name, updates)
        if to == "inline":
            locks.sync()
            for file in files:
                if file.parent == folder:
                    file.unlink(missing_ok=True)
        yield moved
    store.reload_frames()
