"""Writes Hugging Face ``datasets``: parquet with images, masks and captions."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.captions import caption_to_json
from fiftyone_regioncap.exporters.files import dumps
from fiftyone_regioncap.exporters.gathering import Captioned, captioned
from fiftyone_regioncap.exporters.media import Media, jpeg, read_frames
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.staging import ExportError, Merge, Part

CARD = """---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: data/*.parquet
---
# Captioned regions of videos

Written by fiftyone-regioncap; `manifest.json` says from what. One row a caption:
`image` is the frame where the object is largest (`frame`, from 0), `mask` its mask
there in COCO run lengths, `masks` those of `mask_frames`, `record` all else that is
kept, as JSON.
"""


@dataclass(frozen=True)
class HuggingFace(Format):
    """Writes ``data/<video>.parquet`` and a card, which ``load_dataset`` reads."""

    summary: ClassVar[str] = "parquet with images, for Hugging Face datasets"

    frames: int | None = option(
        8,
        "Number of masks of each object, evenly over its frames; none keeps all.",
        unit="frames",
        minimum=1,
    )

    def __post_init__(self) -> None:
        """Checks the options, and that the package is there.

        Raises:
            ExportError: When the package isn't installed.
        """
        super().__post_init__()
        _datasets()

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's rows."""
        items = list(captioned(video, self.frames))
        if not items:
            return
        wanted = {item.best[0] for item in items} if media.mode != "none" else set()
        images = {frame: jpeg(picture) for frame, picture in read_frames(video, wanted)}
        rows = [_row(video, item, images.get(item.best[0])) for item in items]
        path = part.folder / "data" / f"{video.name}.parquet"
        path.parent.mkdir(parents=True)
        _datasets().Dataset.from_list(rows, features=_features()).to_parquet(path)
        part.counts.update(
            captions=len(items), masks=sum(len(item.masks) for item in items)
        )

    def finish(self, merge: Merge) -> None:
        """Writes the card."""
        split = "validation" if merge.split == "val" else "train"
        (merge.folder / "README.md").write_text(CARD.replace("{split}", split))


def _row(video: VideoRecord, item: Captioned, image: bytes | None) -> dict[str, Any]:
    frame, best = item.best
    record = item.record
    return {
        "video": video.name,
        "object_id": record.index,
        "label": item.label,
        "caption": record.caption,
        "confidence": record.confidence,
        "review": record.review,
        "first_frame": record.support[0],
        "last_frame": record.support[1],
        "fps": video.fps,
        "height": video.height,
        "width": video.width,
        "frame": frame,
        "image": None if image is None else {"bytes": image, "path": None},
        "bbox": list(best.box),
        "mask": best.rle.counts.decode("ascii"),
        "mask_frames": list(item.masks),
        "masks": [label.rle.counts.decode("ascii") for label in item.masks.values()],
        "record": dumps(caption_to_json(record)).decode(),
    }


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:  # an optional extra
        raise ExportError(
            "the format hf-datasets needs the package datasets; run "
            "`pip install datasets`"
        ) from error


def _features() -> Any:
    datasets = _datasets()
    text, number = datasets.Value("string"), datasets.Value("int64")
    real = datasets.Value("float64")
    return datasets.Features(
        {
            "video": text,
            "object_id": number,
            "label": text,
            "caption": text,
            "confidence": real,
            "review": text,
            "first_frame": number,
            "last_frame": number,
            "fps": real,
            "height": number,
            "width": number,
            "frame": number,
            "image": datasets.Image(),
            "bbox": datasets.List(real),
            "mask": text,
            "mask_frames": datasets.List(number),
            "masks": datasets.List(text),
            "record": text,
        }
    )
