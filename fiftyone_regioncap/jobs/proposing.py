"""Jobs that find the objects of videos, for those that have no prompts."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import Protocol, runtime_checkable

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import BackendError, Cancelled
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.dataset import fields, runs, status
from fiftyone_regioncap.dataset.metadata import video_metadata
from fiftyone_regioncap.dataset.prompts import write_prompts
from fiftyone_regioncap.dataset.store import frame_path
from fiftyone_regioncap.dataset.targets import name_of, video_targets
from fiftyone_regioncap.jobs.ledger import Ledger, Summary
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.proposals import ProposalOptions, Segmenter, propose
from fiftyone_regioncap.video.reader import VideoReader


@runtime_checkable
class Segmenting(Protocol):
    """A propagator whose model also segments single frames."""

    def segmenter(self) -> Segmenter:
        """The model on single frames."""


def run(
    samples: foco.SampleCollection,
    output: str,
    propagator: Propagator,
    options: ProposalOptions,
    *,
    overwrite: bool = False,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Summary:
    """Writes a mask prompt for each object that is found.

    Args:
        samples: videos: a dataset, a view, or a clips view.
        output: frame-level field for the prompts.
        propagator: whose model finds masks.
        options: what counts as an object.
        overwrite: whether to do samples again that are complete.
        listener: is told how far the job is.
        cancel: set it to stop the job after the sample at hand.

    Returns:
        what was done, failures included; ``tracks`` counts the objects.

    Raises:
        FieldError: when the output is no name for a field.
        BackendError: when the propagator's model doesn't segment single frames.
        Cancelled: when ``cancel`` was set; what was written stays.
    """
    if not isinstance(propagator, Segmenting):
        raise BackendError(
            f"{propagator.info.name} finds no objects; choose mobilesam or sam2"
        )
    targets = video_targets(samples)
    fields.require_output(output)
    summary = Summary(samples=len(targets))
    reporter = ProgressReporter(["propose"], len(targets), listener, cancel)
    ledger = Ledger(summary, reporter)
    began = time.monotonic()
    for target, sample in targets.samples():
        reporter.check_cancelled()
        try:
            done = status.read_status(sample, output).state == "complete"
            if done and not overwrite:
                summary.skipped += 1
                continue
            with VideoReader(sample.filepath) as reader:
                start, stop = (target.ranges or ((0, len(reader)),))[0]
                prompts = propose(
                    reader, propagator.segmenter(), options, start=start, stop=stop
                )
            sample.metadata = sample.metadata or video_metadata(sample)
            write_prompts(sample, frame_path(output), prompts)
            sample.save()
            status.write_status(sample, output, "complete")
            summary.tracks += len(prompts)
        except Cancelled:
            raise
        except Exception as error:
            ledger.failed("propose", sample, output, error)
        finally:
            reporter.finish("propose", name_of(sample))
    summary.seconds = time.monotonic() - began
    summary.run = runs.run_key("propose_objects")
    config = {"options": asdict(options), "propagator": asdict(propagator.info)}
    runs.record_run(targets.dataset, summary.run, config, {"summary": asdict(summary)})
    return summary
