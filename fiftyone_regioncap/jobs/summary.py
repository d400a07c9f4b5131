"""Summaries of jobs: what was done, and what failed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fiftyone_regioncap.core.progress import Stage


@dataclass(frozen=True)
class Failure:
    """A sample that could not be done.

    Attributes:
        sample_id: in its dataset.
        filepath: of the media.
        stage: where it failed.
        error: what is wrong and what to do.
    """

    sample_id: str
    filepath: str
    stage: Stage
    error: str


@dataclass
class Report:
    """What any job says of itself.

    Attributes:
        samples: how many it was given.
        failures: samples that could not be done.
        seconds: how long it took.
        run: key of the dataset's custom run that records it.
        backends: name and reason of each backend used.
    """

    samples: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    run: str | None = None
    backends: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every sample is done."""
        return not self.failures

    @property
    def nothing_done(self) -> bool:
        """Whether every sample failed."""
        failed = {failure.sample_id for failure in self.failures}
        return len(failed) >= self.samples > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def remarks(self) -> list[str]:
        """Lines on backends and failures, for people."""
        lines = [f"- {line}" for line in self.backends]
        lines += [
            f"- FAILED {failure.filepath}: {failure.error}"
            for failure in self.failures[:10]
        ]
        if len(self.failures) > 10:
            lines.append(f"- and {len(self.failures) - 10} more")
        return lines


@dataclass
class Summary(Report):
    """What a job on objects and captions did.

    Attributes:
        frames: how many it propagated.
        tracks: how many it wrote.
        captions: how many it wrote, those with an error included.
        caption_errors: how many of these have an error.
        skipped: samples passed over because they were complete, once per stage.
    """

    frames: int = 0
    tracks: int = 0
    captions: int = 0
    caption_errors: int = 0
    skipped: int = 0

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
        """A few lines for people."""
        lines = [
            f"**{self.samples}** samples, **{self.frames}** frames propagated, "
            f"**{self.tracks}** tracks and **{self.captions}** captions written "
            f"in {self.seconds:.1f} s"
        ]
        if self.skipped:
            lines.append(f"- {self.skipped} skipped: complete already")
        if self.caption_errors:
            lines.append(f"- {self.caption_errors} captions failed; see their `error`")
        return "\n".join(lines + self.remarks())
