"""Options and card of DynRefer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Options, option
from fiftyone_regioncap.models.registry import ModelCard

Task = Literal["caption", "tags", "attributes", "category"]

TASKS: tuple[Task, ...] = ("caption", "tags", "attributes", "category")
"""Everything that DynRefer predicts."""


@dataclass(frozen=True)
class DynReferOptions(Options):
    """Options of DynRefer."""

    dtype: Literal["float32", "bfloat16"] | None = option(
        None,
        "Number format: bfloat16 is the authors' mixed precision, and in float16 the "
        "T5 overflows. Empty for bfloat16 on GPUs that have it, else float32.",
        advanced=True,
    )
    tasks: tuple[Task, ...] = option(
        TASKS, f"What is predicted for a region: {', '.join(TASKS)}."
    )
    class_names: tuple[str, ...] | None = option(
        None,
        "Names that the category is chosen from; empty for the checkpoint's. "
        "Duplicates are left out with a warning.",
    )
    tag_list: tuple[str, ...] | str | None = option(
        None,
        "The tags in the checkpoint's order, or a file with one tag a line; empty for "
        "the checkpoint's.",
        picker="file",
        advanced=True,
    )
    tag_threshold: float | None = option(
        None,
        "Tags with a higher score are given; empty for the checkpoint's, else 0.76.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    attribute_ratio: float = option(
        1.2,
        "Attributes are given whose score is this many times the mean over all "
        "attributes, as in the authors' demo.",
        minimum=0,
        advanced=True,
    )
    contexts: Literal["image", "task"] | tuple[float, ...] = option(
        "image",
        "How much context each view of a region shows: chosen by the image, chosen by "
        "the task where the paper has numbers for it, or numbers in [0, 1], first 0.",
        advanced=True,
    )
    num_beams: int | None = option(
        None,
        "Number of beams in the search for a caption; empty for the checkpoint's, "
        "else 5.",
        minimum=1,
        advanced=True,
    )
    max_new_tokens: int | None = option(
        None,
        "Maximum length of a caption; empty for the checkpoint's, else 30.",
        unit="tokens",
        minimum=1,
    )
    frames: int = option(
        4, "Number of frames of a clip that are looked at.", unit="frames", minimum=1
    )
    regions_at_once: int | None = option(
        None,
        "Regions that are encoded together; empty for 32 on a GPU and 2 elsewhere.",
        minimum=1,
        advanced=True,
        result=False,
    )
    checkpoint: str | None = option(
        None,
        "Name of the file with the trained part, where the folder has several.",
        advanced=True,
    )
    vocabulary: str | None = option(
        None,
        "File or folder of CLIP's vocabulary; empty to look in the folder, then among "
        "the assets.",
        picker="file",
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Validates each option.

        Raises:
            OptionError: If a value doesn't fit.
        """
        super().__post_init__()
        if not self.tasks:
            raise OptionError(f"tasks is empty; give some of {', '.join(TASKS)}")
        given = self.contexts
        if not isinstance(given, str) and (
            not given or given[0] != 0 or not all(0 <= number <= 1 for number in given)
        ):
            raise OptionError(
                f"contexts={given}: give numbers from 0 to 1, the first one 0"
            )


@dataclass(frozen=True)
class DynReferTrainingOptions(Options):
    """Options of training DynRefer; the defaults are the authors'."""

    tag_weight: float = option(
        0.01, "Weight of the loss of tags; 0 leaves it out.", minimum=0
    )
    match_weight: float = option(
        0.5,
        "Weight of the loss that matches regions and captions; 0 leaves it out.",
        minimum=0,
    )
    language_weight: float = option(
        1.0, "Weight of the loss of the captions' words; 0 leaves it out.", minimum=0
    )
    no_controls: float = option(
        0.5,
        "Share of samples without any control word.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    control_dropout: float = option(
        0.5,
        "Chance of each control word to be left out, in the other samples.",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    dropout: float = option(
        0.1,
        "Dropout in Q-Former, heads and T5.",
        minimum=0,
        maximum=1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Validates each option, and that there is a loss.

        Raises:
            OptionError: If one doesn't fit.
        """
        super().__post_init__()
        if not self.tag_weight + self.match_weight + self.language_weight:
            raise OptionError("all weights of losses are 0; give one of them")


DYNREFER = ModelCard(
    name="dynrefer",
    summary="DynRefer: captions, tags, attributes and categories",
    model="fiftyone_regioncap.captioning.dynrefer.captioner:DynReferCaptioner",
    needs="a folder as docs/dynrefer.md describes it",
    license="not stated by its authors",
    commercial=False,
    options=DynReferOptions,
    footprint="fiftyone_regioncap.captioning.dynrefer.sizes:footprint",
    training="fiftyone_regioncap.captioning.dynrefer.training:DynReferTraining",
    training_options=DynReferTrainingOptions,
)
