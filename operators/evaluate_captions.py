"""The operator ``evaluate_captions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.evaluation.caption_runs import evaluate_captions
from fiftyone_regioncap.evaluation.captions import (
    DEFAULT_METRICS,
    METRICS,
    NEED_JAVA,
    java,
)

from . import _forms
from ._caption_operator import CaptionOperator


class EvaluateCaptions(CaptionOperator):
    """Compares captions with references."""

    name = "evaluate_captions"
    label = "Evaluate captions"
    description = "Compare captions with references by BLEU, METEOR, CIDEr, ..."
    action = "Evaluate"
    found = "Scores"

    def ask(self, inputs: types.Object, ctx: Any, choices: list[str]) -> None:
        """Adds the fields and the metrics."""
        _forms.pick_field(
            inputs, "captions", choices, label="Captions", description="To be evaluated"
        )
        _forms.pick_field(
            inputs,
            "references",
            choices[::-1],
            label="References",
            description="What captions should say. With the same field, a person's "
            "edits are the references of what the model said",
        )
        same = ctx.params.get("captions", choices[0]) == ctx.params.get(
            "references", choices[-1]
        )
        if same:
            inputs.str(
                "caption_attribute",
                default="source_caption",
                label="Attribute that is evaluated",
                description=f"It is compared with {choices[0]}'s caption",
            )
        metrics = types.Choices()
        for metric in METRICS:
            lost = metric in NEED_JAVA and java() is None
            metrics.add_choice(
                metric, label=f"{metric} (needs Java)" if lost else metric
            )
        inputs.list(
            "metrics",
            types.String(),
            default=list(DEFAULT_METRICS),
            label="Metrics",
            view=types.DropdownView(multiple=True, choices=metrics.choices),
        )
        inputs.str("key", default="caption_eval", required=True, label="Key of the run")
        inputs.bool("show_worst", default=True, label="Show the worst captions")

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Evaluates, and shows the worst captions."""
        result = _evaluate(ctx.target_view(), ctx.params)
        if not ctx.delegated:
            ctx.ops.reload_dataset()
            if ctx.params.get("show_worst") and result.each:
                ctx.ops.set_view(result.worst())
        return {**result.to_dict(), "summary": result.to_markdown()}

    def __call__(self, sample_collection: Any, references: str, **params: Any) -> Any:
        """Evaluates from Python.

        Args:
            sample_collection: a dataset or a view.
            references: field of the references.
            **params: as in the form.

        Returns:
            :class:`fiftyone_regioncap.evaluation.caption_runs.CaptionEvaluation`.
        """
        return _evaluate(sample_collection, {"references": references, **params})


def _evaluate(samples: Any, params: Mapping[str, Any]) -> Any:
    captions = params.get("captions") or "captions"
    same = captions == params["references"]
    return evaluate_captions(
        samples,
        params["references"],
        captions=captions,
        key=params.get("key") or "caption_eval",
        metrics=params.get("metrics") or DEFAULT_METRICS,
        caption_attribute=params.get("caption_attribute")
        or ("source_caption" if same else "caption"),
    )
