"""Writes captions of masklets in PLM-VideoBench's format (Cho et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fiftyone_regioncap.core.options import option
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.files import write_lines
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.sav import STRIDE, SaV
from fiftyone_regioncap.exporters.staging import Merge, Part, with_values


@dataclass(frozen=True)
class Plm(Format):
    """Writes ``rcap.jsonl``, ``rdcap.jsonl``, and the masklets as SA-V beside them.

    ``rcap`` has a line a caption; ``rdcap`` has a line an object, whose captions are in
    the order of time. Frames count from 0; both ends are inclusive. ``masklet_id`` is
    the one of the SA-V file of the video.
    """

    summary: ClassVar[str] = "PLM region captions (RCap, RDCap) over SA-V masklets"

    stride: int = option(
        STRIDE,
        "Annotate one in so many frames; 1 keeps all masks.",
        unit="frames",
        minimum=1,
    )

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's captions and masklets."""
        for track in SaV(stride=self.stride).write_masklets(video, part, media):
            records = track.captions
            if not records:
                continue
            common = {
                "video": video.file_name,
                "masklet_id": track.index,
                "total_frames": video.frame_count,
            }
            spans = [
                {
                    "start_frame": record.support[0],
                    "end_frame": record.support[1],
                    "caption": record.caption,
                }
                for record in records
            ]
            for span in spans:
                part.add("rcap", {**common, **span})
            dense = {
                "start_frame": min(record.support[0] for record in records),
                "end_frame": max(record.support[1] for record in records),
                "dense_captions": spans,
            }
            part.add("rdcap", {**common, **dense})

    def finish(self, merge: Merge) -> None:
        """Writes both files of lines."""
        for stream in ("rcap", "rdcap"):
            items = enumerate(merge.bodies(stream))
            lines = (with_values(body, uid=number) for number, body in items)
            write_lines(merge.folder / f"{stream}.jsonl", lines)
