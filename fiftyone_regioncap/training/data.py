"""Reads captions out of a dataset as plain examples, and splits them by scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import fiftyone as fo
import fiftyone.core.collections as foco
import fiftyone.core.media as fom
from scipy.cluster.hierarchy import DisjointSet

from fiftyone_regioncap.analysis.facets import facets_of
from fiftyone_regioncap.captioning.trainable import TrainingText
from fiftyone_regioncap.core.errors import FieldError, RegionCapError
from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.caption_fields import CaptionField
from fiftyone_regioncap.dataset.clips import iter_image_clips
from fiftyone_regioncap.dataset.encoded import read_encoded
from fiftyone_regioncap.dataset.sequences import are_sequences, ungrouped
from fiftyone_regioncap.dataset.targets import Sample, media_targets, name_of
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.dataset.videos import SEQUENCE
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.training.examples import Example
from fiftyone_regioncap.training.options import DataOptions
from fiftyone_regioncap.video.clips import plan_clip

_ATTRIBUTES = (
    "caption",
    "label",
    "tags",
    "support",
    "index",
    "confidence",
    "caption_confidence",
    "review",
    "checks",
    "error",
    "caption_error",
)


@dataclass
class Gathered:
    """Examples of a dataset, and why other captions are none.

    Attributes:
        examples: The examples.
        left_out: Number of captions that are no examples, by reason.
        failures: What could not be read, as sentences that name it.
        scenes: Paths, ids of samples and ids of what they share; those of one scene
            are in one set.
    """

    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    scenes: DisjointSet = field(default_factory=DisjointSet)

    def join(self, *names: str) -> str:
        """Notes that files, samples or what they share are of one scene.

        Returns:
            One of the scene's names, the same for all of them.
        """
        for name in names:
            self.scenes.add(name)
            self.scenes.merge(names[0], name)
        return str(self.scenes[names[0]])

    def fail(self, message: str, count: int = 1) -> None:
        """Adds what could not be read.

        Args:
            message: The failure, as a sentence that names what failed.
            count: Number of captions that are left out for it.
        """
        self.failures.append(message)
        self.left_out["could not be read"] += count


def gather(
    samples: foco.SampleCollection,
    options: DataOptions,
    frames: int,
    segmenter: Propagator | None = None,
) -> Gathered:
    """Reads the captions of a dataset or a view as examples.

    A sample that can't be read is a failure of its own; the others go on.

    Args:
        samples: A dataset or a view, of videos or of images.
        options: Which captions to take.
        frames: Number of frames of an example; 0 for captions alone.
        segmenter: Makes masks of the boxes and points of images; without one a box is
            its own mask, and what has points alone is left out.

    Raises:
        FieldError: When a field is absent or of another kind.
    """
    found = Gathered()
    if are_sequences(samples):
        for group in samples.iter_dynamic_groups():
            found.join(*group.values("id"))
    samples = ungrouped(samples)
    targets = media_targets(samples)
    dataset = samples._root_dataset
    image = dataset.media_type == fom.IMAGE
    tracks = None if image else chosen_tracks(dataset, options.tracks)
    options = replace(options, tracks=tracks)
    read: Callable[..., Iterator[Example | str | RegionCapError]] = _of_text
    if frames:
        read = partial(_of_image, segmenter) if image else partial(_of_video, frames)
    for name in options.captions:
        captions = CaptionField.of(samples, name)
        attributes = [
            attribute
            for attribute in _ATTRIBUTES
            if dataset.has_field(f"{captions.labels}.{attribute}")
        ]
        if "caption" not in attributes:
            raise FieldError(
                f"{name} has no captions; write some with caption_tracks or "
                "caption_regions, or name another field"
            )
        if options.checked and "checks" not in attributes:
            raise FieldError(
                f"{name} was not checked; run check_captions, or leave checked off"
            )
        by_id = {target.sample_id: target for target in targets}
        # Labels have an instance though their schema does not tell.
        for document, labels in captions.in_view(samples, [*attributes, "instance"]):
            target = by_id.get(str(document["_id"]))
            if target is None:
                continue
            wanted = []
            for label in labels:
                if label.get("instance"):  # an object that other images may show
                    found.join(target.sample_id, str(label["instance"]["_id"]))
                reason = _unfit(label, options, captions)
                if reason is None:
                    wanted.append(label)
                else:
                    found.left_out[reason] += 1
            if not wanted:
                continue
            sample = targets.load(target)
            found.join(target.sample_id, sample.filepath, *_scenes_of(sample))
            try:
                made = list(read(sample, name, wanted, options))
            except (RegionCapError, OSError) as error:
                found.fail(f"{name_of(sample)}: {error}", len(wanted))
                continue
            for one in made:
                if isinstance(one, Example):
                    found.examples.append(one)
                elif isinstance(one, str):
                    found.left_out[one] += 1
                else:
                    found.fail(f"{name_of(sample)}: {one}")
    return found


def _scenes_of(sample: Sample) -> Iterator[str]:
    """Yields what other samples of the same scene have alike."""
    group = sample._dataset.group_field
    if group is not None and sample[group] is not None:
        yield sample[group].id
    if isinstance(sample._dataset.get_field(SEQUENCE), fo.StringField):
        yield f"{SEQUENCE} {sample[SEQUENCE]}"


def chosen_tracks(dataset: fo.Dataset, given: str | None) -> str:
    """Returns the field of the tracks: as given, else the first one there is.

    Raises:
        FieldError: When it is absent or holds no tracks.
    """
    if given is None:
        given = next(iter(fields.track_fields(dataset)), None)
        if given is None:
            raise FieldError("no frame field holds tracks yet; propagate masks first")
    fields.require_tracks(dataset, given)
    return given


def _unfit(
    label: Mapping[str, Any], options: DataOptions, captions: CaptionField
) -> str | None:
    """Returns why a caption is not learned; None where it is."""
    if not (label.get("caption") or "").strip() or label.get(captions.error):
        return "no caption"
    review = label.get("review")
    if review is None and not captions.of_images:
        review = "unreviewed"
    if review is not None and review not in options.review:
        return review
    if options.checked and (label.get("checks") or label.get("checks") is None):
        return "not checked" if label.get("checks") is None else "a check found faults"
    confidence = label.get(captions.confidence)
    if options.min_confidence is not None and (
        confidence is None or confidence < options.min_confidence
    ):
        return "confidence too low"
    return None


def _of_video(
    frames: int,
    sample: Sample,
    source: str,
    labels: Sequence[Mapping[str, Any]],
    options: DataOptions,
) -> Iterator[Example | str]:
    """Yields examples of a video's captions, or why one is none."""
    _require_media(sample)
    assert options.tracks is not None
    tracks = {track.object_id: track for track in read_tracks(sample, options.tracks)}
    plans = {}
    for label in labels:
        first, last = label["support"]
        track = tracks.get(label.get("index", -1))
        inside = (
            track is not None
            and ((track.frames >= first - 1) & (track.frames <= last - 1)).any()
        )
        if track is None or not inside:
            yield "no track"
        else:
            plans[str(label["_id"])] = (
                label,
                plan_clip(track, (first - 1, last - 1), frames),
            )
    wanted = {frame for _, plan in plans.values() for frame in plan.frames}
    masks = dict(read_encoded(sample, options.tracks, frames=wanted))
    for label, plan in plans.values():
        shown = [
            (frame, masks[frame][plan.track.object_id].rle)
            for frame in dict.fromkeys(plan.frames)
            if plan.track.object_id in masks.get(frame, {})
        ]
        shown = [(frame, rle) for frame, rle in shown if rle.area()]
        if not shown:
            yield "no mask"
            continue
        yield _example(sample, source, label, options, "video", shown)


def _of_text(
    sample: Sample,
    source: str,
    labels: Sequence[Mapping[str, Any]],
    options: DataOptions,
) -> Iterator[Example]:
    """Yields examples of captions alone."""
    for label in labels:
        yield _example(sample, source, label, options, "text")


def _of_image(
    segmenter: Propagator | None,
    sample: Sample,
    source: str,
    labels: Sequence[Mapping[str, Any]],
    options: DataOptions,
) -> Iterator[Example | str | RegionCapError]:
    """Yields examples of an image's regions, or why one is none."""
    _require_media(sample)
    known = {str(label["_id"]): label for label in labels}
    for region, clip in iter_image_clips(sample, source, known.keys(), segmenter):
        (mask,) = clip.masks
        if clip.problem is not None:
            yield RegionCapError(clip.problem)
        elif not mask.any():
            yield "no mask"
        else:
            shown = [(0, RLE.encode(mask))]
            yield _example(sample, source, known[region.id], options, "image", shown)


def _example(
    sample: Sample,
    source: str,
    label: Mapping[str, Any],
    options: DataOptions,
    kind: Literal["video", "image", "text"],
    shown: Sequence[tuple[int, RLE]] = (),
) -> Example:
    """Makes the example of a label, with the frames and masks that show its region."""
    return Example(
        id=str(label["_id"]),
        path=sample.filepath,
        kind=kind,
        frames=tuple(frame for frame, _ in shown),
        masks=tuple(rle.counts.decode("ascii") for _, rle in shown),
        size=shown[0][1].size if shown else (0, 0),
        text=text_of(label),
        source=source,
        weight=float(options.source_weights.get(source, 1.0)),
    )


def _require_media(sample: Sample) -> None:
    if not Path(sample.filepath).exists():
        raise RegionCapError(f"{sample.filepath} is missing")


def text_of(label: Mapping[str, Any]) -> TrainingText:
    """Returns what is to be learned of a label, with what can be told of its words."""
    caption = label["caption"].strip()
    facets = facets_of(caption)
    described = {trait.partition(":")[2] for trait in facets.traits}
    speech = []
    for word in caption.lower().split():
        bare = word.strip(".,;:!?()\"'")
        kind = "XX"
        if any(bare in (noun, f"{noun}s", f"{noun}es") for noun in facets.nouns):
            kind = "NN"
        elif bare in described:
            kind = "JJ"
        if bare:
            speech.append((bare, kind))
    return TrainingText(
        caption=caption,
        label=label.get("label"),
        tags=tuple(label.get("tags") or ()),
        speech=tuple(speech),
        nouns=facets.nouns,
    )


def split(
    found: Gathered, share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Splits examples into those to learn and those held out, by scene.

    A scene is a video, or an image, with all others that are of its sequence, of its
    group, or show an object of it: their captions are near-duplicates of each other,
    so that a scene is never in both. Which one is held out depends on the seed and on
    its folder and name.

    Args:
        found: The examples, and which of their files are of one scene.
        share: Share of the scenes to hold out; at least one, unless it is 0.
        seed: Seed of the choice.

    Raises:
        FieldError: When one side would be empty.
    """
    examples = found.examples
    if not share:
        return list(examples), []
    scenes: dict[str, set[str]] = {}
    for example in examples:
        scenes.setdefault(found.join(example.path), set()).add(example.path)

    def order(paths: set[str]) -> str:
        name = min("/".join(Path(path).parts[-2:]) for path in paths)
        return sha256(f"{seed}/{name}".encode()).hexdigest()

    ordered = sorted(scenes.values(), key=order)
    count = max(1, round(share * len(ordered)))
    if count >= len(ordered):
        raise FieldError(
            f"held_out={share:g} of {len(ordered)} videos, images or sequences of "
            f"images leaves {max(len(ordered) - count, 0)} to learn from; caption more "
            "of them, or give held_out=0"
        )
    apart = set().union(*ordered[:count])
    return (
        [example for example in examples if example.path not in apart],
        [example for example in examples if example.path in apart],
    )
