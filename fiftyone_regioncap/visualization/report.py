"""Reports the results of a job: a table for the shell and a contact sheet."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fiftyone.core.collections as foco
import numpy as np

from fiftyone_regioncap.dataset.captions import CaptionRecord, read_captions
from fiftyone_regioncap.dataset.clips import iter_clips
from fiftyone_regioncap.dataset.targets import Sample, name_of, video_targets
from fiftyone_regioncap.dataset.tracks import read_masks, read_tracks
from fiftyone_regioncap.video.clips import plan_clip
from fiftyone_regioncap.video.reader import VideoReader
from fiftyone_regioncap.video.sampling import sample_frames
from fiftyone_regioncap.visualization.contact_sheet import (
    Scene,
    SheetRow,
    contact_sheet,
    save_contact_sheet,
)

SHEET_ROWS = 12
"""The most captions on a contact sheet."""

SHEET_COLUMNS = 4
"""Frames of each."""


@dataclass(frozen=True)
class TrackRow:
    """One caption in the table.

    Attributes:
        video: Name of the file.
        track: Object id.
        label: Short name; empty when there is none.
        support: (first, last) frame numbers as FiftyOne counts them, from 1.
        caption: The text, or the error.
    """

    video: str
    track: int
    label: str
    support: tuple[int, int]
    caption: str


def track_rows(samples: foco.SampleCollection, captions: str) -> list[TrackRow]:
    """Returns the captions of a few videos, by video, track and time.

    Args:
        samples: Videos.
        captions: Field of the captions.
    """
    return [
        TrackRow(
            video=name_of(sample),
            track=record.index,
            label=record.label or "",
            support=(record.support[0] + 1, record.support[1] + 1),
            caption=record.caption or f"(error: {record.error})",
        )
        for _, sample in video_targets(samples).samples()
        for record in read_captions(sample, captions)
    ]


def table(rows: Sequence[TrackRow], width: int | None = None) -> str:
    """Rows as a text table.

    Args:
        rows: The rows.
        width: Width of the table in characters; None for the terminal's.
    """
    width = width or max(shutil.get_terminal_size((100, 24)).columns, 60)
    head = ("video", "track", "label", "support", "caption")
    cells = [
        (row.video, str(row.track), row.label, f"{row.support[0]}-{row.support[1]}")
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=False)]
    room = max(width - sum(widths) - 2 * len(widths), 24)

    def lines() -> Iterator[str]:
        def line(values: Sequence[str], last: str) -> str:
            pairs = zip(values, widths, strict=True)
            return "  ".join([*(v.ljust(w) for v, w in pairs), last]).rstrip()

        yield line(head[:4], head[4])
        yield line(["-" * w for w in widths], "-" * room)
        for values, row in zip(cells, rows, strict=True):
            first, *more = textwrap.wrap(row.caption, room) or [""]
            yield line(values, first)
            for rest in more:
                yield line([""] * 4, rest)

    return "\n".join(lines())


def write_sheet(
    samples: foco.SampleCollection, tracks: str, captions: str, path: Path
) -> None:
    """Draws the first captions of a few videos with their masks.

    Args:
        samples: Videos.
        tracks: Field of the tracks.
        captions: Field of the captions.
        path: Path of the PNG file.
    """
    rows: list[SheetRow] = []
    scenes: list[Scene] = []
    titles = []
    for _, sample in video_targets(samples).samples():
        if len(rows) >= SHEET_ROWS:
            break
        titles.append(name_of(sample))
        records = read_captions(sample, captions)[: SHEET_ROWS - len(rows)]
        rows += _sheet_rows(sample, tracks, records)
        with VideoReader(sample.filepath) as reader:
            scenes += _scenes(sample, tracks, records, reader)
    if rows:
        sheet = contact_sheet(rows, scenes, title=", ".join(titles))
        save_contact_sheet(path, sheet)


def _sheet_rows(
    sample: Sample, tracks: str, records: Sequence[CaptionRecord]
) -> Iterator[SheetRow]:
    """Yields a row for each caption: some of its frames, and what it says."""
    by_id = {track.object_id: track for track in read_tracks(sample, tracks)}
    by_key = {record.key: record for record in records if record.index in by_id}
    plans = [
        plan_clip(by_id[index], support, SHEET_COLUMNS) for index, support in by_key
    ]
    for plan, clip in iter_clips(sample, tracks, plans):
        record = by_key[plan.track.object_id, plan.support]
        yield SheetRow(
            object_id=record.index,
            clip=clip,
            title=f"#{record.index} {record.label or ''}",
            caption=record.caption or f"(error: {record.error})",
        )


def _scenes(
    sample: Sample,
    tracks: str,
    records: Sequence[CaptionRecord],
    reader: VideoReader,
) -> Iterator[Scene]:
    """Yields whole frames, evenly spaced over what the captions describe."""
    if not records:
        return
    first = min(record.support[0] for record in records)
    last = max(record.support[1] for record in records)
    frames = sample_frames(np.arange(first, last + 1), SHEET_COLUMNS)
    ids = {record.index for record in records}
    masks = dict(read_masks(sample, tracks, {frame: ids for frame in frames}))
    for frame, picture in reader.read(frames):
        yield Scene(picture, masks.get(frame, {}), frame)
