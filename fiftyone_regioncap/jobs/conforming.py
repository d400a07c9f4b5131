"""The stage that makes copies of videos that FiftyOne's App shows frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import fiftyone as fo
import fiftyone.core.collections as foco

from fiftyone_regioncap.core.progress import Stage as StageName
from fiftyone_regioncap.dataset import schema
from fiftyone_regioncap.dataset.store import Store
from fiftyone_regioncap.dataset.targets import Sample, Target, name_of
from fiftyone_regioncap.jobs.base import RunContext, SampleStage
from fiftyone_regioncap.jobs.options import ConformOptions
from fiftyone_regioncap.jobs.summary import Report
from fiftyone_regioncap.models.registry import ModelRegistry
from fiftyone_regioncap.video.encoding import encode_video
from fiftyone_regioncap.video.reader import VideoReader, read_metadata

ORIGINAL = "original_filepath"
"""Field with the path of the video that a conformed one was made from."""


@dataclass
class ConformSummary(Report):
    """Counts what the job did.

    Attributes:
        conformed: Number of videos that were made anew.
        skipped: Number of videos that the App shows right.
    """

    conformed: int = 0
    skipped: int = 0

    def to_markdown(self) -> str:
        """Returns a few lines for people."""
        lines = [
            f"**{self.conformed}** of {self.samples} videos were written anew at a "
            f"constant rate in {self.seconds:.1f} s"
        ]
        if self.skipped:
            lines.append(f"- {self.skipped} are shown right by FiftyOne's App")
        if self.conformed:
            lines.append(f"- the originals stay, and their paths are in `{ORIGINAL}`")
        return "\n".join(lines + self.remarks())


class Conforming(SampleStage[ConformOptions]):
    """Writes videos anew at a constant rate, frame for frame; see :class:`Stage`.

    The number of every frame stays, so that all labels are about the same pictures.

    Args:
        options: Where the copies go.
    """

    name: ClassVar[StageName] = "conform"
    options = ConformOptions
    summary: ClassVar[type[Report]] = ConformSummary
    models: ClassVar[Mapping[str, ModelRegistry[Any]]] = {}

    @classmethod
    def writes(cls, options: ConformOptions) -> tuple[str, ...]:
        """Returns the field of the path; see :meth:`Stage.writes`."""
        return ("filepath",)

    def declare(self, samples: foco.SampleCollection) -> None:
        """Declares the field of the original's path; see :meth:`Stage.declare`."""
        schema.declare_text(samples._root_dataset, ORIGINAL)

    def process(self, target: Target, sample: Sample, context: RunContext) -> bool:
        """Conforms one video; False when the App shows it right."""
        original, name = Path(sample.filepath), name_of(sample)
        with VideoReader(original) as reader:
            if not reader.timeline.misplaced():
                return False
            folder = Path(self._options.output_dir or original.parent).expanduser()
            path = _free(folder / f"{original.stem}-constant.mp4")
            part = path.with_suffix(".part.mp4")
            try:
                frames = _watched(reader, name, context)
                encode_video(frames, part, reader.fps)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        metadata = fo.VideoMetadata(**asdict(read_metadata(path))).to_dict()
        values = {"filepath": str(path), "metadata": metadata, ORIGINAL: str(original)}
        Store.of(sample).write_sample(values)
        context.count(conformed=1)
        # What was said of the original no longer holds.
        context.summary.notes[:] = [
            note for note in context.summary.notes if not note.startswith(name)
        ]
        return True


def _free(path: Path) -> Path:
    """Returns a path that doesn't exist yet, in a folder that does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 2
    free = path
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free


def _watched(reader: VideoReader, name: str, context: RunContext) -> Iterator[Any]:
    """Yields the frames of a video, with progress."""
    for number, frame in enumerate(reader, start=1):
        context.reporter.update("conform", name, number, len(reader))
        yield frame
