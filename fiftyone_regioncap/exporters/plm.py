"""PLM: captions of masklets, as PLM-VideoBench has them (Cho et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from fiftyone_regioncap.exporters.files import write_lines
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.records import VideoRecord
from fiftyone_regioncap.exporters.sav import SaV
from fiftyone_regioncap.exporters.staging import Merge, Part, with_values

RCAP_FILE = "rcap.jsonl"
RDCAP_FILE = "rdcap.jsonl"


@dataclass(frozen=True)
class Plm:
    """Writes ``rcap.jsonl``, ``rdcap.jsonl``, and the masklets as SA-V beside them.

    ``rcap`` has a line a caption; ``rdcap`` has a line an object, whose captions are in
    the order of time. Frames count from 0; both ends are inclusive. ``masklet_id`` is
    the one of the SA-V file of the video.

    Attributes:
        name: as it is asked for.
        stride: every how many frames masklets are annotated, as in SA-V.
    """

    name: str = "plm"
    stride: int = 4

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's captions and masklets."""
        SaV(stride=self.stride).write(video, part, media)
        suffix = ".mp4" if video.job.cut else video.path.suffix
        for index, records in video.captions.items():
            common = {
                "video": video.name + suffix,
                "masklet_id": index,
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
        for stream, file in (("rcap", RCAP_FILE), ("rdcap", RDCAP_FILE)):
            items = merge.items(stream)
            lines = (with_values(i.body, uid=number) for number, i in enumerate(items))
            write_lines(merge.folder / file, lines)
