"""Summaries of jobs: what was done, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fiftyone_regioncap.core.markdown import counted, escape
from fiftyone_regioncap.core.progress import Stage

MOST_LINES = 10
"""Number of notes or failures that a summary for people lists."""


def first_lines(lines: Sequence[str]) -> list[str]:
    """Returns the first of some lines, and how many more there are."""
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"and {more} more"] if more > 0 else [])]


@dataclass(frozen=True)
class Failure:
    """A sample, or a part of one, that could not be done.

    Attributes:
        sample_id: Id of the sample in its dataset.
        filepath: Path of the media.
        stage: Stage that failed.
        error: Message that says what is wrong and what to do.
        whole: Whether nothing of the sample was done, in place of all but a part, such
            as one prompt.
    """

    sample_id: str
    filepath: str
    stage: Stage
    error: str
    whole: bool = True


@dataclass
class Report:
    """Summary that every job returns.

    Attributes:
        samples: Number of samples that it was given.
        failures: Samples, and parts of samples, that could not be done.
        seconds: Duration in seconds.
        run: Key of the dataset's custom run that records it.
        backends: Name and reason of each backend used.
        notes: What a person should know of some samples, such as metadata that was
            wrong.
    """

    samples: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    run: str | None = None
    backends: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every sample is done."""
        return not self.failures

    @property
    def nothing_done(self) -> bool:
        """Whether every sample failed."""
        failed = {one.sample_id for one in self.failures if one.whole}
        return len(failed) >= self.samples > 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return asdict(self)

    def remarks(self) -> list[str]:
        """Lines on backends, notes and failures, for people."""
        failed = [f"FAILED {one.filepath}: {one.error}" for one in self.failures]
        listed = [*self.backends, *first_lines(self.notes), *first_lines(failed)]
        return [f"- {escape(line)}" for line in listed]


_WRITTEN = {
    "propose": "objects",
    "propagate": "tracks",
    "caption": "captions",
    "embed": "embeddings",
}
"""What stages write, by their names."""


@dataclass
class Summary(Report):
    """Summary of a job on objects and captions.

    Attributes:
        frames: Number of frames propagated.
        tracks: Number of tracks written.
        captions: Number of captions written, those with an error included.
        caption_errors: Number of these that have an error.
        skipped: Number of complete samples passed over, once per stage.
        complete_before: These by stage.
        unmarked: Number of samples passed over as nothing is marked on them.
        stages: Names of the job's stages.
    """

    frames: int = 0
    tracks: int = 0
    captions: int = 0
    caption_errors: int = 0
    skipped: int = 0
    complete_before: dict[str, int] = field(default_factory=dict)
    unmarked: int = 0
    stages: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every sample is done and every caption was made."""
        return not self.failures and not self.caption_errors

    @property
    def nothing_done(self) -> bool:
        """Whether every sample, or every caption and nothing else, failed."""
        silent = self.captions == self.caption_errors > 0 and not self.frames
        return silent or super().nothing_done

    def to_markdown(self) -> str:
        """Returns a few lines for people."""
        made = {
            "propose": f"{counted(self.tracks, 'object')} proposed",
            "propagate": (
                f"{counted(self.tracks, 'track')} on {counted(self.frames, 'frame')}"
            ),
            "caption": counted(self.captions, "caption"),
        }
        what = " and ".join(made[name] for name in self.stages if name in made)
        lines = [
            f"{what or 'Done'}, for {counted(self.samples, 'sample')} in "
            f"{self.seconds:.1f} s"
        ]
        for stage, count in self.complete_before.items():
            lines.append(f"- {count} skipped: {_WRITTEN[stage]} complete already")
        if self.unmarked:
            lines.append(f"- {self.unmarked} skipped: nothing is marked")
        if self.caption_errors:
            lines.append(f"- {self.caption_errors} captions failed; see their `error`")
        return "\n".join(lines + self.remarks())
