"""The options of training captioners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Options, group, option

METRICS = ("bleu", "rouge_l", "cider", "meteor")
"""Metrics of captions that can be computed while training."""

REVIEWS = {
    "accepted": "as the model wrote them",
    "edited": "as a person corrected them",
    "unreviewed": "not looked at",
}


@dataclass(frozen=True)
class DataOptions(Options):
    """Options of which captions are learned."""

    captions: tuple[str, ...] = option(
        ("captions",), "Fields of the captions to learn.", picker="captions"
    )
    tracks: str | None = option(
        None,
        "Frame field of the captions' tracks; empty for the first field of tracks.",
        picker="tracks",
    )
    review: tuple[str, ...] = option(
        ("accepted", "edited"),
        "Which captions to take, by their review; regions of images have none, and "
        "all of them are taken.",
        choices=REVIEWS,
    )
    checked: bool = option(
        False, "Only captions in which the checks found nothing wrong."
    )
    min_confidence: float | None = option(
        None, "Only captions of at least this confidence.", minimum=0, maximum=1
    )
    source_weights: Mapping[str, float] = option(
        None,
        "How often the captions of a field come in each epoch, by field; 1 for the "
        "others. A fraction takes as many of them at random.",
        advanced=True,
    )
    held_out: float = option(
        0.1,
        "Share of the videos, or images, that is kept apart to evaluate on.",
        minimum=0,
        maximum=0.9,
    )
    minimum: int = option(
        8, "Refuse to train on fewer captions.", minimum=1, advanced=True
    )
    seed: int = option(0, "Seed of split, order and all chance.", minimum=0)

    def __post_init__(self) -> None:
        """Validates each option, and that the weights are numbers.

        Raises:
            OptionError: When a value doesn't fit.
        """
        if self.source_weights is None:
            object.__setattr__(self, "source_weights", {})
        super().__post_init__()
        if not self.captions:
            raise OptionError("captions is empty; name the field of the captions")
        for name, weight in self.source_weights.items():
            if name not in self.captions:
                raise OptionError(
                    f"source_weights names {name}, which is none of the captions "
                    f"({', '.join(self.captions)})"
                )
            if not isinstance(weight, int | float) or not 0 < weight <= 100:
                raise OptionError(
                    f"source_weights: {name}={weight!r}: give a number above 0, at "
                    "most 100"
                )


@dataclass(frozen=True)
class LoopOptions(Options):
    """Options of the optimization; what is empty is the recipe's own."""

    epochs: int = option(3, "Passes over all captions.", minimum=1)
    batch_size: int = option(4, "Captions in memory at once, per device.", minimum=1)
    accumulation: int = option(
        8, "Batches whose gradients are summed before a step.", minimum=1
    )
    learning_rate: float | None = option(
        None, "Highest learning rate; empty for the recipe's.", minimum=0
    )
    weight_decay: float | None = option(
        None, "Weight decay; empty for the recipe's.", minimum=0, advanced=True
    )
    schedule: Literal["cosine", "linear", "constant"] | None = option(
        None,
        "How the learning rate falls; empty for the recipe's.",
        advanced=True,
    )
    warmup: float | None = option(
        None,
        "Steps over which the learning rate rises, or below 1 their share; empty for "
        "the recipe's.",
        minimum=0,
        advanced=True,
    )
    max_grad_norm: float | None = option(
        None,
        "Norm that gradients are clipped to, 0 for no clipping; empty for the "
        "recipe's.",
        minimum=0,
        advanced=True,
    )
    precision: Literal["float32", "float16", "bfloat16"] | None = option(
        None,
        "Number format; empty for bfloat16 on a GPU that has it, else float32.",
        advanced=True,
    )
    gradient_checkpointing: bool = option(
        False, "Compute activations twice instead of keeping them: less memory."
    )
    metrics: tuple[str, ...] = option(
        (),
        "Metrics of the captions of the held-out videos after each epoch; meteor "
        "needs Java. Empty for their loss alone.",
        choices=dict.fromkeys(METRICS, ""),
    )
    evaluated: int = option(
        64, "Most captions that are written for the metrics.", minimum=1, advanced=True
    )
    best: str = option(
        "loss",
        "What decides which epoch is kept: loss, or a metric such as cider; without "
        "held-out videos, the last one is.",
    )
    patience: int | None = option(
        None,
        "Stop after this many epochs without a better one; empty for never.",
        minimum=1,
    )
    checkpoint_steps: int | None = option(
        None,
        "Steps between checkpoints; empty for one after each epoch.",
        minimum=1,
        advanced=True,
    )
    checkpoints: int = option(
        2, "Checkpoints that are kept to go on from.", minimum=2, advanced=True
    )
    workers: int = option(
        0, "Processes that read videos and make inputs.", minimum=0, advanced=True
    )

    def __post_init__(self) -> None:
        """Validates each option, and that what decides is computed.

        Raises:
            OptionError: When a value doesn't fit.
        """
        super().__post_init__()
        known = [*("bleu_1", "bleu_2", "bleu_3", "bleu_4"), *METRICS[1:]]
        computed = [name for name in known if name.startswith(self.metrics)]
        if self.best not in ("loss", *computed):
            raise OptionError(
                f"best={self.best!r} is not computed; give one of "
                f"{', '.join(['loss', *computed])}, or name it in metrics"
            )


@dataclass(frozen=True)
class TrainOptions(Options):
    """Options of the training of a captioner."""

    out: str = option(help="Folder of the new weights.", picker="folder")
    data: DataOptions = group(DataOptions)
    loop: LoopOptions = group(LoopOptions)
    export: Literal["merged", "adapter"] = option(
        "merged",
        "What is written.",
        choices={
            "merged": "whole weights",
            "adapter": "only what was trained, to be loaded with the base weights",
        },
    )
    recipe_options: Mapping[str, Any] = option(
        None,
        "Options that only the training of this model has; docs/options.md lists them.",
    )
    executor: Literal["local", "ray"] = option(
        "local",
        "Where the steps run.",
        choices={
            "local": "on this machine",
            "ray": "on a Ray cluster that reads and writes the same folders",
        },
        advanced=True,
    )
    processes: int = option(
        1,
        "Processes that train together, such as one per GPU.",
        minimum=1,
        advanced=True,
    )
    address: str | None = option(
        None,
        "Address of a Ray cluster; empty for that of RAY_ADDRESS, else one on this "
        "machine alone.",
        advanced=True,
    )
    restart: bool = option(
        False, "Begin anew where the folder holds a training already."
    )

    def __post_init__(self) -> None:
        """Validates each option."""
        if self.recipe_options is None:
            object.__setattr__(self, "recipe_options", {})
        super().__post_init__()


@dataclass(frozen=True)
class CompareOptions(Options):
    """Options of writing captions of other weights beside those that are there."""

    captions: str = option(
        "captions", "Field of the captions that are there.", picker="captions"
    )
    output: str = option(
        "captions_new", "Field of the new captions.", picker="new captions"
    )
    tracks: str | None = option(
        None,
        "Frame field of the captions' tracks; empty for the first field of tracks.",
        picker="tracks",
    )
    prompt: str | None = option(
        None, "Name of one of the captioner's prompts, or a text of your own."
    )


MAY_DIFFER = ("device", "workers", "checkpoints", "checkpoint_steps", "evaluated")
"""Options that a training may be continued with other values of."""
