"""Writes captions as WebVTT subtitles, one file an object."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from fiftyone_regioncap.dataset.captions import CaptionRecord
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.records import VideoRecord, safe_name
from fiftyone_regioncap.exporters.staging import Part
from fiftyone_regioncap.video.timeline import Timeline

_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


@dataclass(frozen=True)
class WebVtt(Format):
    """Writes ``subtitles/<video>/<object>-<label>.vtt``, beside ``videos/``."""

    summary: ClassVar[str] = "WebVTT subtitles, one file an object"

    def write(self, video: VideoRecord, part: Part, media: Media) -> None:
        """Writes a video's subtitles."""
        media.video(video, part.folder)
        folder = part.folder / "subtitles" / video.name
        folder.mkdir(parents=True)
        for index, records in video.captions.items():
            label = video.label(index)
            suffix = f"-{safe_name(label)}" if label else ""
            cues = [_cue(record, video.timeline) for record in records]
            path = folder / f"{index}{suffix}.vtt"
            path.write_text("\n".join(["WEBVTT\n", *cues]), encoding="utf-8")
            part.counts.update(captions=len(records), tracks=1)


def _cue(record: CaptionRecord, timeline: Timeline) -> str:
    first, last = record.support
    times = f"{_time(timeline.at(first))} --> {_time(timeline.at(last + 1))}"
    # An empty line would end the cue, and tags are markup.
    lines = re.sub(r"[\r\n]+", "\n", record.caption).strip("\n")
    return f"{times}\n{re.sub('[&<>]', lambda m: _ESCAPES[m.group()], lines)}\n"


def _time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds / 1000:06.3f}"
