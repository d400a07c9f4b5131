"""The operator ``triage_captions``."""

from __future__ import annotations

from typing import Any

import fiftyone as fo
from fiftyone.operators import types

from fiftyone_regioncap.analysis.checks import TriageSummary, triage
from fiftyone_regioncap.dataset.caption_fields import CaptionField

from . import _forms
from ._caption_operator import CaptionOperator


class TriageCaptions(CaptionOperator):
    """Sorts captions into those to keep, to review and to drop."""

    name = "triage_captions"
    label = "Triage captions"
    description = (
        "Keep, review or drop captions by a score, and see how good that is on those "
        "that people reviewed"
    )
    action = "Triage"
    found = "Triage"

    def problem(self, ctx: Any, choices: list[str]) -> str | None:
        """Captions need a number to be sorted by."""
        if choices and _scores(ctx, choices):
            return None
        return "No field holds captions with scores yet"

    def ask(self, inputs: types.Object, ctx: Any, choices: list[str]) -> None:
        """Adds the field, its scores, and where to cut."""
        _forms.pick_field(
            inputs, "field", choices, label="Captions", description="To sort"
        )
        _forms.pick_field(
            inputs,
            "score",
            _scores(ctx, choices),
            label="Score",
            description="Larger for better captions, such as image_text_similarity",
        )
        inputs.float("keep", default=0.8, label="Keep", description="From here on")
        inputs.float("drop", default=0.3, label="Drop", description="Below this")

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Sorts."""
        names = ("field", "score", "keep", "drop")
        given = {name: ctx.params[name] for name in names if name in ctx.params}
        summary = triage(ctx.target_view(), **given)
        if not ctx.delegated:
            ctx.ops.reload_dataset()
        return {**summary.to_dict(), "summary": summary.to_markdown()}

    def __call__(self, sample_collection: Any, **options: Any) -> TriageSummary:
        """Sorts from Python; see :func:`fiftyone_regioncap.analysis.checks.triage`."""
        return triage(sample_collection, **options)


def _scores(ctx: Any, choices: list[str]) -> list[str]:
    """Numbers of the chosen captions, what is made for this first."""
    labels = CaptionField.of(ctx.dataset, ctx.params.get("field") or choices[0]).labels
    schema = ctx.dataset.get_field_schema(flat=True, ftype=fo.FloatField)
    prefix = f"{labels}."
    names = [path.removeprefix(prefix) for path in schema if path.startswith(prefix)]
    first = ("image_text_similarity", "confidence", "caption_confidence")
    return sorted(names, key=lambda name: (name not in first, name))
