"""The parts of forms that propagation and captioning bring along, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.jobs import CaptionOptions, PropagateOptions
from fiftyone_regioncap.models.registry import AUTO, ModelSpec
from fiftyone_regioncap.propagation.policy import Policy
from fiftyone_regioncap.propagation.registry import PROPAGATORS

from . import _forms

NO_PROMPTS = (
    "No field marks objects yet. Draw boxes, points or polylines on a frame, or import "
    "them into a frame field of Detections, Keypoints or Polylines"
)
NO_TRACKS = "No frame field holds tracks yet. Run propagate_masks first"


def ask_propagate(inputs: types.Object, ctx: Any) -> str | None:
    """Adds what propagation needs to know; says why when it cannot run at all."""
    prompts = fields.prompt_fields(ctx.dataset)
    if not prompts:
        return NO_PROMPTS
    _forms.pick_field(
        inputs,
        "prompts",
        prompts,
        label="Prompts",
        description="Boxes, masks, points or polylines that mark the objects",
    )
    _forms.output_field(
        inputs,
        ctx,
        "tracks",
        default="frames.tracks",
        label="Tracks",
        existing=[
            field
            for field in fields.track_fields(ctx.dataset)
            if field != ctx.params.get("prompts", prompts[0])
        ],
        taken=[f"frames.{f}" for f in ctx.dataset.get_frame_field_schema() or ()],
    )
    directions = types.RadioGroup()
    directions.add_choice("both", label="Both ways from the prompts")
    directions.add_choice("forward", label="Forward")
    directions.add_choice("backward", label="Backward")
    inputs.enum(
        "propagation_direction",
        directions.values(),
        default="both",
        required=True,
        label="Direction",
        view=directions,
    )
    _forms.pick_backend(inputs, ctx, PROPAGATORS, label="Propagator")
    inputs.bool(
        "overlap",
        default=False,
        label="Objects may overlap",
        description="Else each pixel goes to the object that claims it most",
    )
    cuts = types.DropdownView()
    cuts.add_choice("ignore", label="Go on across them")
    cuts.add_choice("stop", label="Stop every object until its next prompt")
    cuts.add_choice("redetect", label="Hide objects until they look like themselves")
    inputs.enum(
        "scene_cuts",
        cuts.values(),
        default="ignore",
        required=True,
        label="At scene cuts",
        view=cuts,
    )
    inputs.int(
        "max_frames",
        required=False,
        min=1,
        label="Frames to follow from the prompts",
        description="Empty for all",
    )
    inputs.float(
        "min_score",
        required=False,
        min=0,
        max=1,
        label="End a track below this score",
        description="When it stays below for five frames; empty for never",
    )
    storage = types.DropdownView()
    storage.add_choice("auto", label="In the database while they fit")
    storage.add_choice("inline", label="In the database")
    storage.add_choice("disk", label="On disk, as PNG files")
    inputs.enum(
        "mask_storage",
        storage.values(),
        default="auto",
        required=True,
        label="Masks are kept",
        view=storage,
    )
    return None


def ask_tracks(inputs: types.Object, ctx: Any) -> str | None:
    """Asks which tracks to use; says why when there are none."""
    tracks = fields.track_fields(ctx.dataset)
    if not tracks:
        return NO_TRACKS
    _forms.pick_field(
        inputs,
        "tracks",
        tracks,
        label="Tracks",
        description="Detections with an index or an instance on every frame",
    )
    return None


def ask_caption(inputs: types.Object, ctx: Any) -> None:
    """Adds what captioning needs to know, the tracks apart."""
    _forms.output_field(
        inputs,
        ctx,
        "captions",
        default="captions",
        label="Captions",
        existing=fields.caption_fields(ctx.dataset),
        taken=list(ctx.dataset.get_field_schema()),
    )
    _forms.pick_backend(inputs, ctx, CAPTIONERS, label="Captioner")
    inputs.str(
        "prompt",
        required=False,
        label="Prompt",
        description="A prompt's name, or a text of your own; empty for the default",
    )
    inputs.int(
        "window",
        required=False,
        min=2,
        label="Window",
        description="A caption for every so many frames; empty for one per track",
    )
    inputs.bool(
        "change_windows",
        default=False,
        label="A caption wherever the object changes",
        description="Cuts a track where its shape, size or motion changes",
    )
    if ctx.params.get("window") or ctx.params.get("change_windows"):
        inputs.bool(
            "summary",
            default=False,
            label="And one of the whole track",
            description="Made of its windows' captions alone: ..., then ...",
        )


def propagate_options(params: Mapping[str, Any]) -> PropagateOptions:
    """The options that a form's parameters stand for, defaults applied."""
    return PropagateOptions(
        prompts=params.get("prompts") or "frames.prompts",
        output=params.get("tracks") or "frames.tracks",
        direction=params.get("propagation_direction") or "both",
        start=params.get("start") or 0,
        stop=params.get("stop"),
        overlap=bool(params.get("overlap")),
        mask_storage=params.get("mask_storage") or "auto",
        output_dir=params.get("output_dir"),
        overwrite=overwrites(params),
        policy=Policy(
            max_frames=params.get("max_frames"),
            min_score=params.get("min_score"),
            scene_cuts=params.get("scene_cuts") or "ignore",
        ),
    )


def caption_options(params: Mapping[str, Any]) -> CaptionOptions:
    """The options that a form's parameters stand for, defaults applied."""
    return CaptionOptions(
        tracks=params.get("tracks") or "frames.tracks",
        output=params.get("captions") or "captions",
        prompt=params.get("prompt") or None,
        window="change" if params.get("change_windows") else params.get("window"),
        summary=bool(params.get("summary")),
        overwrite=overwrites(params),
    )


def overwrites(params: Mapping[str, Any]) -> bool:
    """Whether complete samples are done again."""
    return params.get("existing") == "overwrite"


def load_options(params: Mapping[str, Any], kind: str) -> ModelSpec:
    """How to load the backend that was chosen."""
    options = params.get(f"{kind}_options") or {}
    return ModelSpec(
        AUTO,
        weights=params.get(f"{kind}_weights") or None,
        device=params.get("device") or None,
        options=(options if isinstance(options, Mapping) else json.loads(options)),
        accept_license=bool(params.get("accept_license")),
    )
