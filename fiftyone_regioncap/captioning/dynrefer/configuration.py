"""Options and card of DynRefer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard

TASKS = ("caption", "tags", "attributes", "category")


@dataclass(frozen=True)
class DynReferOptions(Options):
    """Options of DynRefer."""

    dtype: Literal["float32", "bfloat16"] | None = option(
        None,
        "Number format; empty for bfloat16 on GPUs that have it, else float32.",
        advanced=True,
    )
    tasks: tuple[str, ...] = option(
        TASKS, f"What is told of a region: {', '.join(TASKS)}."
    )
    class_names: tuple[str, ...] | None = option(
        None, "Names that the category is chosen from; empty for the checkpoint's."
    )
    tag_list: str | None = option(
        None,
        "File with the tags in the checkpoint's order; empty for the checkpoint's.",
        picker="file",
        advanced=True,
    )
    tag_threshold: float | None = option(
        None, "Lowest score of a tag; empty for the demo's.", advanced=True
    )
    attribute_ratio: float = option(
        1.2, "How much likelier an attribute is than its opposite.", advanced=True
    )
    contexts: Literal["image", "task"] | tuple[float, ...] = option(
        "image", "Views around the region: by image, by task, or sizes.", advanced=True
    )
    num_beams: int | None = option(
        None, "Beams of the search; empty for the demo's.", minimum=1, advanced=True
    )
    max_new_tokens: int | None = option(
        None, "Greatest length of a caption.", unit="tokens", minimum=1
    )
    frames: int = option(4, "Number of frames of a clip that are looked at.", minimum=1)
    regions_at_once: int | None = option(
        None,
        "Regions encoded together; empty for what suits the device.",
        minimum=1,
        advanced=True,
    )
    checkpoint: str | None = option(
        None, "Name of the trained file where the folder has several.", advanced=True
    )
    vocabulary: str | None = option(
        None,
        "CLIP's vocabulary; empty to look in the folder, then among the assets.",
        picker="file",
        advanced=True,
    )


DYNREFER = ModelCard(
    name="dynrefer",
    summary="DynRefer: captions, tags, attributes and categories",
    model="fiftyone_regioncap.captioning.dynrefer.captioner:DynReferCaptioner",
    needs="a folder as docs/dynrefer.md describes it",
    license="not stated by its authors",
    commercial=False,
    options=DynReferOptions,
)
