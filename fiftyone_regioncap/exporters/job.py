"""Runs an export: video by video into the staging folder, then all at once in place."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fiftyone.core.clips as foc
import fiftyone.core.collections as foco

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter, Stage
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.targets import Targets, video_targets
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.files import dumps, sha256_of, write_object
from fiftyone_regioncap.exporters.options import ExportOptions
from fiftyone_regioncap.exporters.records import Job, plan
from fiftyone_regioncap.exporters.staging import (
    GENERATOR,
    MANIFEST,
    ExportError,
    Merge,
    Staging,
    files_of,
)
from fiftyone_regioncap.exporters.tasks import Outcome, Task, VideoFailure, in_processes
from fiftyone_regioncap.jobs.checkpoints import signature
from fiftyone_regioncap.jobs.summary import first_lines

STAGE: Stage = "export"


@dataclass
class ExportSummary:
    """Counts what an export or import did.

    Attributes:
        verb: Verb of the job: ``"exported"`` or ``"imported"``.
        path: Path of the export.
        videos: Number of videos in it.
        resumed: Number of these that an earlier, interrupted run had done.
        counts: Number of masks, tracks, captions and so on, as far as the format has
            them.
        failures: Videos, and parts of imported ones, that are left out.
        notes: What a person should know of some videos.
        seconds: Duration in seconds.
    """

    verb: str
    path: str
    videos: int = 0
    resumed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[VideoFailure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every video is done."""
        return not self.failures

    @property
    def nothing_done(self) -> bool:
        """Whether every video failed."""
        return not self.videos

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Returns a few lines for people."""
        counts = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        lines = [
            f"**{self.videos}** videos {self.verb} in {self.seconds:.1f} s: "
            f"{counts or 'nothing'}",
            f"- {escape(self.path)}",
        ]
        if self.resumed:
            lines.append(f"- {self.resumed} videos were done before")
        failed = [f"FAILED {item.name}: {item.error}" for item in self.failures]
        for more in (self.notes, failed):
            lines += [f"- {escape(line)}" for line in first_lines(more)]
        return "\n".join(lines)


def run(
    samples: foco.SampleCollection,
    format: Format,
    options: ExportOptions,
    *,
    media: Sequence[str],
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> ExportSummary:
    """Exports videos; see :func:`fiftyone_regioncap.exporters.export`."""
    began = time.monotonic()
    targets = video_targets(samples)
    fields.require_tracks(targets.dataset, options.tracks)
    if options.captions is not None:
        fields.require_captions(targets.dataset, options.captions)
    jobs = plan(targets, options, exact=_made_of(samples, options.captions))
    if not jobs:
        raise ExportError("there is nothing to export: the view holds no videos")
    provenance = {
        "version": __version__,
        "dataset": targets.dataset.name,
        "format": [type(format).__name__, format.to_mapping()],
        "options": {
            key: value
            for key, value in options.to_mapping().items()
            if key not in ("format", "options", "path", "overwrite", "workers")
        },
        "view": [] if targets.view is None else _stages(targets),
    }
    path = Path(os.path.realpath(Path(options.path).expanduser()))
    summary = ExportSummary("exported", str(path))
    with Staging(
        path,
        signature(provenance),
        overwrite=options.overwrite,
        sources=media,
    ) as staging:
        try:
            progress = ProgressReporter([STAGE], len(jobs), listener, cancel)
            task = Task(format, options, staging.parts)
            outcomes = (
                _in_order(targets, jobs, task)
                if options.workers == 1
                else in_processes(targets, jobs, task, options.workers)
            )
            with closing(outcomes):
                for outcome in outcomes:
                    _count(outcome, summary)
                    progress.finish(STAGE, outcome.name)
                    progress.check_canceled()
            if not summary.videos:
                raise ExportError(_nothing(summary))
            merges = _finish(format, jobs, staging)
            if not any(m.counts["tracks"] or m.counts["captions"] for m in merges):
                staging.discard()
                raise ExportError(
                    "no track or caption was selected; export with fewer filters, or "
                    "with uncaptioned tracks"
                )
            _write_manifest(staging.tree, provenance, merges, summary)
            staging.publish()
        except OSError as error:
            raise ExportError(
                f"{path} can't be written ({error.strerror or error}); make room or "
                "choose another folder, and run the export again: videos that are done "
                "are kept"
            ) from error
    summary.seconds = time.monotonic() - began
    return summary


def _made_of(samples: foco.SampleCollection, captions: str | None) -> bool:
    """Returns whether the samples are the clips of the captions."""
    return (
        captions is not None
        and isinstance(samples, foc.ClipsView)
        and samples._clips_stage.field_or_expr == captions
    )


def _stages(targets: Targets) -> list[Any]:
    assert targets.view is not None
    return [str(stage) for stage in targets.view._stages]


def _in_order(
    targets: Targets, jobs: list[Job], task: Task
) -> Generator[Outcome, None, None]:
    """Exports one video after the other; the clips of one share their sample."""
    waiting = iter(jobs)
    job = next(waiting, None)
    for target, sample in targets.samples():
        while job is not None and job.sample_id == target.sample_id:
            yield task.run(job, sample)
            job = next(waiting, None)


def _count(outcome: Outcome, summary: ExportSummary) -> None:
    if outcome.failure is not None:
        summary.failures.append(outcome.failure)
    else:
        summary.videos += 1
        summary.resumed += outcome.resumed
        summary.notes += [
            note
            for note in outcome.notes
            if note not in summary.notes  # its clips
        ]


def _nothing(summary: ExportSummary) -> str:
    first = summary.failures[0]
    return f"no video could be exported; the first, {first.name}: {first.error}"


def _finish(format: Format, jobs: list[Job], staging: Staging) -> list[Merge]:
    splits: dict[str | None, list[int]] = {}
    for job in jobs:
        splits.setdefault(job.split, []).append(job.number)
    merges = []
    for split, numbers in sorted(splits.items(), key=lambda item: item[0] or ""):
        merge = staging.merge(split, numbers)
        format.finish(merge)
        merges.append(merge)
    return merges


def _write_manifest(
    tree: Path,
    provenance: Mapping[str, Any],
    merges: list[Merge],
    summary: ExportSummary,
) -> None:
    """Writes what is in the export, where it comes from, and the hash of every file."""
    counts: Counter[str] = Counter()
    for merge in merges:
        counts.update(merge.counts)
    summary.counts = dict(counts)
    models = sorted({model for merge in merges for model in merge.models})
    head = {
        "generator": f"{GENERATOR} {__version__}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "dataset": provenance["dataset"],
        "format": provenance["format"],
        "options": provenance["options"],
        "models": [{"model": m or None, "revision": r or None} for m, r in models],
        "counts": {"videos": summary.videos, **summary.counts},
        "splits": {merge.split or "all": dict(merge.counts) for merge in merges},
        "failures": [asdict(failure) for failure in summary.failures],
    }
    write_object(
        tree / MANIFEST,
        head,
        videos=(body for merge in merges for body in merge.bodies("manifest")),
        files=_files(tree),
    )


def _files(tree: Path) -> Iterator[bytes]:
    for path in files_of(tree):
        entry: dict[str, Any] = {"path": path.relative_to(tree).as_posix()}
        if entry["path"] == MANIFEST:
            continue
        if path.is_symlink():
            entry["link"] = os.readlink(path)
        else:
            entry["bytes"] = path.stat().st_size
            entry["sha256"] = sha256_of(path)
        yield dumps(entry)
