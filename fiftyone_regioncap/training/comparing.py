"""Writes the captions of other weights beside those that are there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone.core.collections as foco
import fiftyone.core.media as fom

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Options
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.schema import SAID_OF_REGIONS
from fiftyone_regioncap.dataset.sequences import ungrouped
from fiftyone_regioncap.jobs.executors.choosing import run_stages
from fiftyone_regioncap.jobs.options import CaptionOptions, RegionOptions
from fiftyone_regioncap.jobs.summary import Failure, Summary
from fiftyone_regioncap.review.preferences import Preferences, preferences
from fiftyone_regioncap.training.data import chosen_tracks
from fiftyone_regioncap.training.options import CompareOptions


@dataclass(frozen=True)
class Comparison:
    """Two fields of captions, and the job that wrote the second.

    Attributes:
        found: Pairs, and what people preferred.
        job: What the job did.
    """

    found: Preferences
    job: Summary

    @property
    def ok(self) -> bool:
        """Whether every caption was made."""
        return self.job.ok

    @property
    def nothing_done(self) -> bool:
        """Whether every sample, or every caption, failed."""
        return self.job.nothing_done

    @property
    def failures(self) -> Sequence[Failure]:
        """Samples that could not be captioned."""
        return self.job.failures

    def to_dict(self) -> dict[str, Any]:
        """Returns the comparison as JSON values."""
        found = {**asdict(self.found), "chance": self.found.chance}
        return {**self.job.to_dict(), **found}  # both have captions: theirs is a field

    def to_markdown(self) -> str:
        """Returns the comparison for people."""
        return f"{self.found.to_markdown()}\n{self.job.to_markdown()}"


def compare_captions(
    samples: foco.SampleCollection,
    options: CompareOptions,
    *,
    captioner: Any,
    segmenter: Any = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Comparison:
    """Writes a model's captions into a field of their own, beside those of another.

    Args:
        samples: A dataset or a view; the regions of images are copied to a field of
            their own first.
        options: The fields.
        captioner: The captioner, or its specification.
        segmenter: What makes masks of the boxes and points of images, or its
            specification; None to take boxes as they are.
        listener: Called with each event of progress.
        cancel: Set it to stop; what was written stays.

    Raises:
        FieldError: When a field is absent or of another kind.
        OptionError: When both fields are the same.
    """
    if options.captions == options.output:
        raise OptionError(
            f"output={options.output!r} is the field of the captions that are there; "
            "name another one"
        )
    samples, dataset = ungrouped(samples), samples._root_dataset
    stage: Options
    models = {"captioner": captioner}
    if dataset.media_type == fom.IMAGE:
        _copy_regions(samples, options.captions, options.output)
        name = "caption_regions"
        stage = RegionOptions(field=options.output, prompt=options.prompt)
        models["segmenter"] = segmenter
    else:
        fields.require_captions(dataset, options.captions)
        name = "caption"
        stage = CaptionOptions(
            tracks=chosen_tracks(dataset, options.tracks),
            output=options.output,
            prompt=options.prompt,
        )
    done = run_stages(
        samples,
        "compare_captions",
        {name: stage},
        models,
        listener=listener,
        cancel=cancel,
    )
    found = preferences(samples, options.captions, options.output)
    return Comparison(found, done)


def _copy_regions(samples: foco.SampleCollection, captions: str, output: str) -> None:
    """Copies regions without what was said of them, where that was not done before."""
    own = CaptionField.of(samples, captions)
    if own.dataset.has_field(output):
        CaptionField.of(samples, output)
        return
    samples.clone_sample_field(captions, output)
    copied = CaptionField.of(samples, output)
    said = [
        name
        for name in SAID_OF_REGIONS
        if own.dataset.has_field(f"{copied.labels}.{name}")
    ]
    if said:
        own.dataset.delete_sample_fields([f"{copied.labels}.{one}" for one in said])
