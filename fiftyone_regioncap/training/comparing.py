"""Writes the captions of other weights beside those that are there."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any

import fiftyone.core.collections as foco

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.jobs.executors.choosing import run_stages
from fiftyone_regioncap.jobs.options import CaptionOptions
from fiftyone_regioncap.review.preferences import Preferences, preferences
from fiftyone_regioncap.training.data import chosen_tracks
from fiftyone_regioncap.training.options import CompareOptions


@dataclass(frozen=True)
class Comparison:
    """Two fields of captions, and the job that wrote the second.

    Attributes:
        found: Pairs, and what people preferred.
        failures: Number of samples that could not be captioned.
        run: Key of the dataset's custom run.
    """

    found: Preferences
    failures: int
    run: str | None

    @property
    def ok(self) -> bool:
        """Whether every sample was captioned."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Returns the comparison as JSON values."""
        own = {"failures": self.failures, "run": self.run}
        return {**asdict(self.found), "chance": self.found.chance, **own}

    def to_markdown(self) -> str:
        """Returns the comparison for people."""
        failed = f"\n{self.failures} samples failed\n" if self.failures else ""
        return self.found.to_markdown() + failed


def compare_captions(
    samples: foco.SampleCollection,
    options: CompareOptions,
    *,
    captioner: Any,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> Comparison:
    """Writes a model's captions into a field of their own, beside those of another.

    Args:
        samples: A dataset or a view of videos.
        options: The fields.
        captioner: The captioner, or its specification.
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
    dataset = samples._root_dataset
    fields.require_captions(dataset, options.captions)
    tracks = chosen_tracks(dataset, options.tracks)
    caption = CaptionOptions(
        tracks=tracks, output=options.output, prompt=options.prompt
    )
    done = run_stages(
        samples,
        "compare_captions",
        {"caption": caption},
        {"captioner": captioner},
        listener=listener,
        cancel=cancel,
    )
    found = preferences(samples, options.captions, options.output)
    return Comparison(found, len(done.failures), done.run)
