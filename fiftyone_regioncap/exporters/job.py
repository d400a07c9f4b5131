"""Runs an export: video by video into the staging folder, then all at once in place."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import fiftyone.core.collections as foco

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.checkpoints import signature
from fiftyone_regioncap.errors import Cancelled
from fiftyone_regioncap.exporters.base import Format
from fiftyone_regioncap.exporters.files import dumps, sha256_of, write_object
from fiftyone_regioncap.exporters.media import Media
from fiftyone_regioncap.exporters.records import Job, Source, VideoRecord, plan
from fiftyone_regioncap.exporters.staging import (
    ExportError,
    Merge,
    Staging,
    is_target_error,
)
from fiftyone_regioncap.labels import fields
from fiftyone_regioncap.progress import Listener, Meter, Stage
from fiftyone_regioncap.targets import Targets, name_of, video_targets

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

STAGE = cast(Stage, "export")


@dataclass(frozen=True)
class VideoFailure:
    """A video that could not be exported or imported.

    Attributes:
        name: of its file.
        error: what is wrong and what to do.
    """

    name: str
    error: str


@dataclass
class ExportSummary:
    """What an export or import did.

    Attributes:
        verb: what was done.
        path: of the export.
        videos: how many are in it.
        resumed: how many of these an earlier, interrupted run had done.
        counts: of masks, tracks, captions, ..., as far as the format has them.
        failures: videos that are left out.
        seconds: how long it took.
    """

    verb: str
    path: str
    videos: int = 0
    resumed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[VideoFailure] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every video is done."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A few lines for people."""
        counts = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        lines = [
            f"**{self.videos}** videos {self.verb} in {self.seconds:.1f} s: "
            f"{counts or 'nothing'}",
            f"- {self.path}",
        ]
        if self.resumed:
            lines.append(f"- {self.resumed} videos were done before")
        lines += [f"- FAILED {item.name}: {item.error}" for item in self.failures[:10]]
        if len(self.failures) > 10:
            lines.append(f"- and {len(self.failures) - 10} more")
        return "\n".join(lines)


def run(
    samples: foco.SampleCollection,
    format: Format,
    path: Path,
    *,
    source: Source,
    media: Media,
    overwrite: bool = False,
    listener: Listener | None = None,
    cancel: threading.Event | None = None,
) -> ExportSummary:
    """Exports videos; see :func:`fiftyone_regioncap.exporters.export`."""
    began = time.monotonic()
    targets = video_targets(samples)
    fields.require_tracks(targets.dataset, source.tracks)
    if source.captions is not None:
        fields.require_captions(targets.dataset, source.captions)
    if not 0 <= source.val <= 1:
        raise ExportError(f"val is {source.val}; give a share between 0 and 1")
    jobs = plan(targets, source)
    if not jobs:
        raise ExportError("there is nothing to export: the view holds no videos")
    facts = {
        "version": __version__,
        "dataset": targets.dataset.name,
        "format": [type(format).__name__, asdict(cast(Any, format))],
        "source": {**asdict(source), "selection": _plain(source)},
        "media": asdict(media),
        "view": [] if targets.view is None else _stages(targets),
    }
    path = Path(os.path.abspath(path.expanduser()))
    summary = ExportSummary("exported", str(path))
    with Staging(path, signature(facts), overwrite=overwrite) as staging:
        try:
            meter = Meter([STAGE], len(jobs), listener, cancel)
            for job, sample in _samples(targets, jobs):
                meter.check()
                _export_one(job, sample, format, source, media, staging, summary)
                meter.finish(STAGE, job.name)
            if not summary.videos:
                raise ExportError(_nothing(summary))
            merges = _finish(format, jobs, staging)
            if not any(m.counts["tracks"] or m.counts["captions"] for m in merges):
                raise ExportError(
                    "no track or caption was selected; export with fewer filters, or "
                    "with uncaptioned tracks"
                )
            _write_manifest(staging.tree, facts, merges, summary)
            staging.publish()
        except OSError as error:
            raise ExportError(
                f"{path} can't be written ({error.strerror or error}); make room or "
                "choose another folder, and run the export again: videos that are done "
                "are kept"
            ) from error
    summary.seconds = time.monotonic() - began
    return summary


def _plain(source: Source) -> dict[str, Any]:
    """The selection with its set in order, so that it is signed the same each time."""
    values = asdict(source.selection)
    return {**values, "reviews": sorted(source.selection.reviews)}


def _stages(targets: Targets) -> list[Any]:
    assert targets.view is not None
    return [str(stage) for stage in targets.view._stages]


def _samples(targets: Targets, jobs: list[Job]) -> Iterator[tuple[Job, Any]]:
    """Each job with its sample; the clips of one video share it."""
    waiting = iter(jobs)
    job = next(waiting, None)
    for target, sample in targets.samples():
        while job is not None and job.sample_id == target.sample_id:
            yield job, sample
            job = next(waiting, None)


def _export_one(
    job: Job,
    sample: Any,
    format: Format,
    source: Source,
    media: Media,
    staging: Staging,
    summary: ExportSummary,
) -> None:
    """Exports one video, unless that was done; what is wrong with it is recorded."""
    facts = {
        "sample_id": job.sample_id,
        "name": job.name,
        "filepath": sample.filepath,
        "ranges": [list(span) for span in job.ranges or ()],
        "modified": str(sample.last_modified_at),
    }
    if staging.has(job.number, facts):
        summary.videos += 1
        summary.resumed += 1
        return
    part = staging.part(job.number)
    try:
        video = VideoRecord.load(sample, job, source)
        format.write(video, part, media)
        part.models.update(
            (record.model or "", record.revision or "")
            for records in video.captions.values()
            for record in records
        )
        entry = {**facts, "split": job.split}
        part.add("manifest", {"name": job.name, **entry})
        part.close(facts)
    except Cancelled:
        part.abandon()
        raise
    except Exception as error:
        part.abandon()
        if is_target_error(error):
            raise
        staging.drop(job.number)
        logger.warning("%s: %s", sample.filepath, error, exc_info=True)
        message = f"{type(error).__name__}: {error}"
        summary.failures.append(VideoFailure(name_of(sample), message))
    else:
        summary.videos += 1


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
    tree: Path, facts: Mapping[str, Any], merges: list[Merge], summary: ExportSummary
) -> None:
    """Writes what is in the export, where it comes from, and the hash of every file."""
    counts: Counter[str] = Counter()
    for merge in merges:
        counts.update(merge.counts)
    summary.counts = dict(counts)
    models = sorted({model for merge in merges for model in merge.models})
    head = {
        "generator": f"fiftyone-regioncap {__version__}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "dataset": facts["dataset"],
        "format": facts["format"],
        "source": facts["source"],
        "media": facts["media"],
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
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            entry: dict[str, Any] = {"path": path.relative_to(tree).as_posix()}
            if entry["path"] == MANIFEST:
                continue
            if path.is_symlink():
                entry["link"] = os.readlink(path)
            else:
                entry["bytes"] = path.stat().st_size
                entry["sha256"] = sha256_of(path)
            yield dumps(entry)
