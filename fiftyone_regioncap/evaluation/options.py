"""The options of evaluating captions."""

from __future__ import annotations

from dataclasses import dataclass

from fiftyone_regioncap.core.options import Options, option

METRICS = ("bleu", "meteor", "rouge_l", "cider", "spice", "similarity")


@dataclass(frozen=True)
class EvaluateOptions(Options):
    """Options of the comparison of captions with references."""

    references: str = option(
        help="Field of the references. With that of the captions, a person's edits "
        "are the references of what the model said.",
        picker="captions",
    )
    captions: str = option("captions", "Field of the captions.", picker="captions")
    metrics: tuple[str, ...] = option(
        tuple(metric for metric in METRICS if metric != "spice"),
        f"Metrics, out of {', '.join(METRICS)}; meteor and spice need Java.",
        choices=dict.fromkeys(METRICS, ""),
    )
    key: str = option("caption_eval", "Key of the run.", advanced=True)
    caption_attribute: str | None = option(
        None,
        "Attribute that is evaluated; empty for caption, and for source_caption where "
        "both fields are the same.",
        advanced=True,
    )
    reference_attribute: str = option(
        "caption", "Attribute that holds the references.", advanced=True
    )
    model: str | None = option(
        None,
        "Folder or hub id of a sentence-transformers model, for similarity.",
        advanced=True,
    )
    device: str | None = option(
        None, "Device of that model, such as cuda; empty for the best.", advanced=True
    )
    output: str | None = option(
        None,
        "Folder for the results as JSON, Markdown and a plot; empty for none.",
        picker="folder",
        advanced=True,
    )
