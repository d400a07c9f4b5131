"""Writes DAM's WebDataset shards of described regions, and DLC-Bench's COCO."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.captions import caption_to_json
from fiftyone_regioncap.exporters.files import dumps, write_mapping
from fiftyone_regioncap.exporters.gathering import (
    coco_region,
    coco_rle,
    on_best_frames,
    write_coco,
)
from fiftyone_regioncap.exporters.media import Media, jpeg, read_frames
from fiftyone_regioncap.exporters.reading import NO_LABEL
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part

FILE = "annotations.json"


@dataclass(frozen=True)
class Dam(Format):
    """Writes ``shards/<number>.tar`` as WebDataset reads them.

    A sample is an image, ``<key>.jpg``, and ``<key>.json``, a list of its regions with
    the keys of DAM's data: ``mask_rle``, ``img_id``, ``image`` and ``caption``. JSON
    takes the place of the pickle there, which nobody should load from outside. A
    caption is shown on the frame where its object is largest.
    """

    summary: ClassVar[str] = (
        "WebDataset shards of images with described regions, as DAM is trained on"
    )

    shard_bytes: int = option(
        2**29, "Size at which the next shard is begun.", unit="bytes", minimum=1
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's samples, each image a file until it is packed."""
        if media.mode == "none":
            raise ExportError("the shards of dam hold images; export with media")
        regions = dict(on_best_frames(video))
        name = video.name
        if "." in name:  # WebDataset would take the rest for a suffix
            name = f"{name.replace('.', '_')}-{video.job.number:06d}"
        for frame, picture in read_frames(video, regions):
            key = f"{name}-{frame:06d}"
            items = [
                {
                    "img_id": key,
                    "image": f"{key}.jpg",
                    "height": video.height,
                    "width": video.width,
                    "mask_rle": coco_rle(item.best[1].rle),
                    "label": item.label,
                    "object_id": item.record.index,
                    "caption": item.record.caption,
                }
                for item in regions[frame]
            ]
            part.add("samples", {"key": key, "regions": items})
            (part.scratch / f"{key}.jpg").write_bytes(jpeg(picture))
            part.counts.update(captions=len(items), masks=len(items), frames=1)

    def finish(self, merge: Merge) -> None:
        """Packs the shards."""
        shards = _Shards(merge.folder / "shards", self.shard_bytes)
        for item in merge.items("samples"):
            sample = json.loads(item.body)
            image = merge.scratch(item.part) / sample["regions"][0]["image"]
            shards.add(sample["key"], image.read_bytes(), dumps(sample["regions"]))
        shards.close()


class _Shards:
    """Tar files of about one size; the same samples give the same bytes."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._limit = shard_bytes
        self._number = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, image: bytes, regions: bytes) -> None:
        if self._tar is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._number:06d}.tar"
            self._tar = tarfile.open(path, "w")  # noqa: SIM115
            self._number += 1
        for suffix, data in (("jpg", image), ("json", regions)):
            info = tarfile.TarInfo(f"{key}.{suffix}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        if self._tar.offset >= self._limit:
            self.close()

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


@dataclass(frozen=True)
class DlcBench(Format):
    """Writes ``annotations.json`` and ``images/`` as DLC-Bench has them.

    One COCO annotation a caption, on the frame where its object is largest. A model's
    predictions are ``{"<annotation id>": "<text>"}``; ``captions.json`` has the
    captions in that form, so that they can be judged as they are.
    """

    summary: ClassVar[str] = "COCO with a caption a region, as DLC-Bench reads it"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's images."""
        paths: dict[int, str] = {}
        for frame, items in on_best_frames(video):
            file_name = f"{video.name}-{frame:06d}.jpg"
            paths[frame] = f"images/{file_name}"
            image = {
                "file_name": file_name,
                "height": video.height,
                "width": video.width,
                "video": video.name,
                "frame_id": frame,
            }
            number = part.add("images", image)
            for item in items:
                annotation = {
                    **coco_region(item.best[1]),
                    "caption": item.record.caption,
                    "record": caption_to_json(item.record),
                }
                category = item.label or NO_LABEL
                part.add("annotations", annotation, number, category)
                part.labels.add(category)
            part.counts.update(captions=len(items), masks=len(items), frames=1)
        media.frames(video, part.folder, paths.items())

    def finish(self, merge: Merge) -> None:
        """Writes ``annotations.json`` and ``captions.json``."""
        write_coco(
            merge,
            FILE,
            "described regions",
            images=merge.numbered("images"),
            annotations=merge.numbered(
                "annotations", image_id="images", category_id="labels"
            ),
        )
        captions = (
            (str(number), dumps(json.loads(item.body)["caption"]))
            for number, item in enumerate(merge.items("annotations", references=2), 1)
        )
        write_mapping(merge.folder / "captions.json", captions)
