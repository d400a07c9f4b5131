"""Resolves a collection of samples to videos and ranges of their frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import fiftyone.core.clips as foc
import fiftyone.core.collections as foco
import fiftyone.core.dataset as fod
import fiftyone.core.media as fom
import fiftyone.core.sample as fos
import fiftyone.core.stages as fosg
import fiftyone.core.view as fov

from fiftyone_regioncap.core.errors import FieldError

Sample: TypeAlias = fos.Sample | fos.SampleView
"""Of a dataset, or of a view that hides some of its labels."""


@dataclass(frozen=True)
class Target:
    """One sample that a job works on.

    Attributes:
        sample_id: Id of the sample in its dataset.
        ranges: Ranges [start, stop) of 0-based frames, one per clip; None for the whole
            video.
        others: Further ranges of the sample, which are targets of their own.
    """

    sample_id: str
    ranges: tuple[tuple[int, int], ...] | None = None
    others: tuple[tuple[int, int], ...] = ()

    @property
    def unit(self) -> str:
        """What is claimed: the sample, or its range; see :func:`.leases.sample_of`."""
        if not self.others or self.ranges is None:
            return self.sample_id
        (start, stop), *_ = self.ranges
        return f"{self.sample_id}:{start}-{stop}"

    def apart(self) -> Iterator[Target]:
        """Yields a target for each range; itself where ranges overlap."""
        ordered = sorted(self.ranges or ())
        if any(stop > start for (_, stop), (start, _) in pairwise(ordered)):
            yield self
            return
        for one in ordered:
            others = tuple(other for other in ordered if other != one)
            yield Target(self.sample_id, (one,), others)
        if not ordered:
            yield self


@dataclass(frozen=True)
class Targets(Sequence[Target]):
    """The samples behind a dataset, a view or a clips view.

    Attributes:
        dataset: Dataset that holds the samples.
        items: Targets, one per sample, in the collection's order.
        view: View that samples are loaded from when it hides some of their labels, so
            that only what the user sees is worked on, or holds patches or frames, so
            that they know what they are of; else None.
    """

    dataset: fod.Dataset
    items: tuple[Target, ...]
    view: fov.DatasetView | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.items[index]

    def load(self, target: Target) -> Sample:
        """Loads the sample of a target.

        A cursor over a collection dies during long jobs, so it is fetched by its id.

        Raises:
            KeyError: When the sample was deleted.
        """
        source = self.dataset if self.view is None else self.view
        return source[target.sample_id]

    def samples(self) -> Iterator[tuple[Target, Sample]]:
        """Yields each target with its sample, loaded one at a time."""
        for target in self.items:
            yield target, self.load(target)


def video_targets(collection: foco.SampleCollection) -> Targets:
    """Finds the videos of a dataset, a view, or a clips view.

    Raises:
        FieldError: When the collection doesn't hold videos.
    """
    dataset = collection._dataset
    if collection.media_type != fom.VIDEO:
        raise FieldError(
            f"{collection.name or 'the collection'} holds {collection.media_type} "
            "samples; give a view of video samples (for groups, "
            "select_group_slices() of the videos)"
        )
    if isinstance(collection, foc.ClipsView):
        ranges: dict[str, list[tuple[int, int]]] = {}
        ids, supports = collection.values(["sample_id", "support"])
        for sample_id, (first, last) in zip(ids, supports, strict=True):
            ranges.setdefault(sample_id, []).append((first - 1, last))
        return Targets(
            collection._root_dataset,
            tuple(Target(key, tuple(value)) for key, value in ranges.items()),
        )
    return Targets(
        dataset,
        tuple(Target(key) for key in collection.values("id")),
        collection if hides_labels(collection) else None,
    )


_FRAME_STAGES = (fosg.MatchFrames, fosg.SelectFrames, fosg.ExcludeFrames)
"""Stages of views of videos that hide frames with all their labels."""


def hides_labels(collection: foco.SampleCollection) -> bool:
    """Returns whether the collection is a view that hides labels of its samples."""
    return isinstance(collection, fov.DatasetView) and (
        any(collection._get_filtered_fields(frames=frames) for frames in (False, True))
        or any(isinstance(stage, _FRAME_STAGES) for stage in collection._stages)
    )


def media_targets(collection: foco.SampleCollection) -> Targets:
    """Finds the images or the videos of a dataset or a view.

    Raises:
        FieldError: When the collection holds neither.
    """
    images = collection.media_type == fom.IMAGE
    return image_targets(collection) if images else video_targets(collection)


def image_targets(collection: foco.SampleCollection) -> Targets:
    """Finds the images of a dataset or a view.

    Raises:
        FieldError: When the collection doesn't hold images.
    """
    if collection.media_type != fom.IMAGE:
        raise FieldError(
            f"{collection.name or 'the collection'} holds {collection.media_type} "
            "samples; give a view of image samples"
        )
    ids = tuple(Target(key) for key in collection.values("id"))
    keeps_view = collection._is_generated or hides_labels(collection)
    return Targets(collection._dataset, ids, collection if keeps_view else None)


def name_of(sample: Sample) -> str:
    """Returns a sample's name for messages: its file's name and folder."""
    return short_path(sample.filepath)


def short_path(path: str) -> str:
    """Returns a file's name and folder."""
    return "/".join(Path(path).parts[-2:])
