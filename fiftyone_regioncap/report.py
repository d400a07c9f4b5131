"""Shows what a job made: a table for the shell and a contact sheet."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fiftyone.core.collections as foco

from fiftyone_regioncap.labels.captions import read_captions
from fiftyone_regioncap.targets import name_of, video_targets


@dataclass(frozen=True)
class TrackRow:
    """One caption in the table.

    Attributes:
        video: name of the file.
        track: the object id.
        label: short name; empty when there is none.
        support: (first, last) frame numbers as FiftyOne counts them, from 1.
        caption: the text, or what went wrong.
    """

    video: str
    track: int
    label: str
    support: tuple[int, int]
    caption: str


def track_rows(samples: foco.SampleCollection, captions: str) -> list[TrackRow]:
    """The captions of a few videos, by video, track and time.

    Args:
        samples: videos.
        captions: field of the captions.
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
        rows: to show.
        width: of the table in characters; None for the terminal's.
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
