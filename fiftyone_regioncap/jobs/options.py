"""The options of jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Options, group, option
from fiftyone_regioncap.propagation.policy import Policy
from fiftyone_regioncap.propagation.proposals import ProposalOptions

MASK_STORAGE = {
    "auto": "in the database while they fit",
    "inline": "in the database",
    "disk": "on disk, as PNG files",
}


@dataclass(frozen=True)
class ExecutionOptions(Options):
    """Options of where a job runs."""

    executor: Literal["auto", "local", "processes", "ray"] = option(
        "auto",
        "Where the job runs; equal jobs that run at the same time share the work.",
        choices={
            "auto": "processes where there are several GPUs, else local",
            "local": "in this process",
            "processes": "in several processes of this machine, one a GPU",
            "ray": "on a Ray cluster",
        },
        advanced=True,
    )
    workers: int | None = option(
        None,
        "Number of workers of processes or Ray; empty for one a GPU.",
        minimum=1,
        advanced=True,
    )
    captioners: int | Literal["auto"] | None = option(
        None,
        "Number of the workers that only caption, while the others do the stages "
        "before; auto sizes it by what both were measured to take; empty for workers "
        "that do all stages.",
        minimum=1,
        advanced=True,
    )
    metrics_port: int | None = option(
        None,
        "Port of this machine, open to itself alone, at which Prometheus reads the "
        "progress of all running jobs; empty for none.",
        minimum=1,
        maximum=65535,
        advanced=True,
    )
    address: str | None = option(
        None,
        "Address of a Ray cluster; empty for that of RAY_ADDRESS, else one on this "
        "machine alone.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: When one doesn't fit, or is of another executor.
        """
        super().__post_init__()
        if self.address is not None and self.executor != "ray":
            raise OptionError(f"address={self.address!r}: give executor=ray with it")
        for name in ("workers", "captioners"):
            value = getattr(self, name)
            if value is not None and self.executor in ("auto", "local"):
                raise OptionError(
                    f"{name}={value}: give executor=processes or executor=ray"
                )


@dataclass(frozen=True)
class PropagateOptions(Options):
    """Options of the propagation of prompts."""

    prompts: str = option(
        "frames.prompts",
        "Field of boxes, masks, points or polylines that mark the objects.",
        picker="prompts",
        result=False,
    )
    output: str = option(
        "frames.tracks",
        "Frame field that the tracks are written to.",
        picker="new tracks",
        advanced=True,
        result=False,
    )
    negative_prompts: str | None = option(
        None,
        "Field of points that are off the objects, or on them with a sign of 1, beside "
        "the prompts; empty for none.",
        picker="prompts",
        advanced=True,
        result=False,
    )
    unlinked: bool = option(
        False,
        "Let each label without an index or an instance start an object of its own, "
        "however many frames such labels are on.",
        advanced=True,
        result=False,
    )
    direction: Literal["both", "forward", "backward"] = option(
        "both",
        "Direction of propagation from the prompts.",
        choices={
            "both": "both ways from the prompts",
            "forward": "forward",
            "backward": "backward",
        },
        advanced=True,
    )
    start: int = option(
        0,
        "First frame of interest, counted from 0.",
        minimum=0,
        advanced=True,
        result=False,
    )
    stop: int | None = option(
        None,
        "One past the last frame of interest; empty for the end of the video.",
        minimum=1,
        advanced=True,
        result=False,
    )
    overlap: bool = option(
        False,
        "Let objects share pixels; otherwise a pixel goes to the object that claims it "
        "most.",
        advanced=True,
    )
    policy: Policy = group(Policy)
    mask_storage: Literal["auto", "inline", "disk"] = option(
        "auto",
        "Where masks are stored.",
        choices=MASK_STORAGE,
        flag="masks",
        advanced=True,
        result=False,
    )
    output_dir: str | None = option(
        None,
        "Folder for masks on disk; empty for beside the media.",
        picker="folder",
        advanced=True,
        result=False,
    )
    overwrite: bool = option(False, "Propagate again what is complete.", result=False)
    overwrite_edited: bool = option(
        False,
        "Also replace labels that a person has edited.",
        advanced=True,
        result=False,
    )
    prune: bool = option(
        False,
        "Remove the tracks of objects whose prompts were deleted.",
        advanced=True,
        result=False,
    )
    merge: bool = option(
        False,
        "Write beside labels that others made in the output field, instead of refusing "
        "to write there.",
        advanced=True,
        result=False,
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            OptionError: When a value doesn't fit, or there is no frame to propagate to.
        """
        super().__post_init__()
        if self.stop is not None and self.stop <= self.start:
            raise OptionError(f"stop={self.stop}: give more than start={self.start}")


@dataclass(frozen=True)
class CorrectionOptions(Options):
    """Options of going on with a track from a frame that a person corrected."""

    tracks: str = option("frames.tracks", "Frame field of the tracks.", picker="tracks")
    object_id: int | None = option(
        None,
        "Number of the object; empty for the one that a person edited last.",
        label="Object",
    )
    frame: int | None = option(
        None,
        "Frame to go on from, counted from 0; empty for the one that a person edited "
        "last.",
        minimum=0,
    )
    direction: Literal["forward", "backward", "both"] = option(
        "forward",
        "Frames that are made anew; those on the other side stay.",
        choices={
            "forward": "this frame and later ones",
            "backward": "this frame and earlier ones",
            "both": "all frames",
        },
    )
    prompts: str | None = option(
        None,
        "Field of boxes, masks or points whose marks of the object count as "
        "corrections too.",
        picker="prompts",
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrackEditOptions(Options):
    """Options that changes of a track share."""

    object_id: int = option(help="Number of the object.", label="Object")
    tracks: str = option("frames.tracks", "Frame field of the tracks.", picker="tracks")


@dataclass(frozen=True, kw_only=True)
class SplitOptions(TrackEditOptions):
    """Options of splitting a track in two."""

    frame: int = option(
        help="First frame of the second part, counted from 0; earlier frames keep the "
        "number.",
        minimum=1,
    )
    new_id: int | None = option(
        None,
        "Number of the second part; empty for the smallest that was never used.",
        minimum=0,
        label="New number",
    )


@dataclass(frozen=True, kw_only=True)
class MergeOptions(TrackEditOptions):
    """Options of merging a track into another one."""

    into: int = option(
        help="Number of the object that it becomes part of. On frames that both are "
        "on, a label that a person edited stays, else this object's.",
        minimum=0,
        label="Into object",
    )


@dataclass(frozen=True, kw_only=True)
class DeleteOptions(TrackEditOptions):
    """Options of deleting a track."""


@dataclass(frozen=True, kw_only=True)
class RenumberOptions(TrackEditOptions):
    """Options of giving a track another number."""

    new_id: int | None = option(
        None,
        "Number that it gets; empty for the smallest that was never used.",
        minimum=0,
        label="New number",
    )


@dataclass(frozen=True)
class CaptionOptions(Options):
    """Options of the captioning of tracks."""

    tracks: str = option(
        "frames.tracks",
        "Frame field of detections with an index or an instance on every frame.",
        picker="tracks",
    )
    output: str = option(
        "captions",
        "Field that the captions are written to.",
        picker="new captions",
        advanced=True,
    )
    prompt: str | None = option(
        None,
        "Name of one of the captioner's prompts, or a text of your own.",
        advanced=True,
    )
    window: int | Literal["change"] | None = option(
        None,
        "Write a caption for every so many frames, or at every change of the object; "
        "empty for one per track.",
        minimum=1,
    )
    summary: bool = option(
        False,
        "Also write a caption of the whole track, made of those of its windows.",
        advanced=True,
    )
    overwrite: bool = option(False, "Caption again what is complete.")
    overwrite_edited: bool = option(
        False,
        "Also replace captions that a person has edited or reviewed.",
        advanced=True,
    )
    merge: bool = option(
        False,
        "Write beside labels that others made in the output field, instead of refusing "
        "to write there.",
        advanced=True,
    )


@dataclass(frozen=True)
class UndoOptions(Options):
    """Options of putting captions back as they were before the last job."""

    captions: str = option("captions", "Field of the captions.", picker="captions")


@dataclass(frozen=True)
class PropagateAndCaptionOptions(Options):
    """Options of propagating prompts and captioning the tracks."""

    propagate: PropagateOptions = group(PropagateOptions, {"output": "tracks"})
    caption: CaptionOptions = group(
        CaptionOptions, {"output": "captions", "overwrite": "overwrite_captions"}
    )


@dataclass(frozen=True)
class RegionOptions(Options):
    """Options of the captioning of image regions."""

    field: str = option(
        help="Field of detections, polylines or keypoints; captions are written onto "
        "these labels.",
        label="Regions",
        picker="regions",
    )
    prompt: str | None = option(
        None, "Name of one of the captioner's prompts, or a text of your own."
    )
    overwrite: bool = option(False, "Caption regions again that have a caption.")
    overwrite_edited: bool = option(
        False,
        "Also replace captions that a person has edited or reviewed.",
        advanced=True,
    )


@dataclass(frozen=True)
class ProposeOptions(Options):
    """Options of finding objects in videos that have no prompts."""

    output: str = option(
        "frames.prompts",
        "Frame field that the prompts are written to.",
        picker="new prompts",
        result=False,
    )
    proposals: ProposalOptions = group(ProposalOptions)
    overwrite: bool = option(False, "Search again what is complete.", result=False)


@dataclass(frozen=True)
class ShotOptions(Options):
    """Options of finding the shots of videos."""

    output: str = option(
        "shots", "Field of events that the shots are written to.", result=False
    )
    sensitivity: float = option(
        0.5,
        "Sensitivity of scene cut detection; higher finds more cuts.",
        minimum=0.01,
        maximum=1,
    )
    overwrite: bool = option(False, "Search again what is complete.", result=False)


@dataclass(frozen=True)
class EmbedRegionsOptions(Options):
    """Options of embedding the regions of captions."""

    captions: str = option(
        "captions", "Field of captions whose regions are embedded.", picker="captions"
    )
    tracks: str | None = option(
        None,
        "Frame field of the tracks; empty for the first field of tracks.",
        picker="tracks",
    )
    overwrite: bool = option(False, "Embed again what this model has embedded.")


@dataclass(frozen=True)
class DenseCaptionOptions(Options):
    """Options of dense captioning of images or frames."""

    output: str = option(
        "everything",
        "Field that the parts and their captions are written to; of frames on videos.",
        picker="new parts",
    )
    every: int = option(30, "Caption every this many frames of a video.", minimum=1)
    count: int = option(16, "Greatest number of parts of an image.", minimum=1)
    query: str | None = option(
        None, "A text to look for; adds a heat map of where it is."
    )
    heatmap: str = option(
        "similarity",
        "Field that the heat maps of the query are written to.",
        picker="new heatmaps",
        advanced=True,
    )
    overwrite: bool = option(False, "Caption again what is complete.")


@dataclass(frozen=True)
class MoveMasksOptions(Options):
    """Options of moving masks between the database and files."""

    to: Literal["disk", "inline"] = option(
        help="Where the masks go.",
        choices={k: MASK_STORAGE[k] for k in ("disk", "inline")},
    )
    tracks: str = option("frames.tracks", "Frame field of the tracks.", picker="tracks")
    output_dir: str | None = option(
        None,
        "Folder for masks on disk; empty for beside the media.",
        picker="folder",
        advanced=True,
    )


@dataclass(frozen=True)
class ConformOptions(Options):
    """Options of writing videos anew at a constant rate."""

    output_dir: str | None = option(
        None, "Folder for the copies; empty for beside the originals.", picker="folder"
    )


@dataclass(frozen=True)
class PlanOptions(Options):
    """Options of planning what fits on a GPU."""

    gpu: str | None = option(
        None,
        "Card to plan for: a name such as H100, or its memory in GiB, such as 24; "
        "empty for this machine's.",
    )
    training: bool = option(
        False, "Plan the training of the captioner, not its captions."
    )
    batch_size: int = option(
        4, "Captions in memory at once in training, per device.", minimum=1
    )
    gradient_checkpointing: bool = option(
        False, "Compute activations twice in training instead of keeping them."
    )
