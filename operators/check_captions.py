"""The operator ``check_captions``."""

from __future__ import annotations

from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.analysis.checks import CheckSummary, check_captions

from . import _forms
from ._caption_operator import CaptionOperator


class CheckCaptions(CaptionOperator):
    """Finds captions that are probably bad."""

    name = "check_captions"
    label = "Check captions"
    description = (
        "Find captions that contradict what was measured, each other, or themselves"
    )
    action = "Check"
    found = "Checks"

    def ask(self, inputs: types.Object, ctx: Any, choices: list[str]) -> None:
        """Adds the field, and whether to look at regions too."""
        _forms.pick_field(
            inputs, "field", choices, label="Captions", description="To check"
        )
        if _forms.embedded(ctx, choices):
            inputs.bool(
                "similarity",
                default=False,
                label="Compare with how regions look",
                description="By the model that embedded the regions",
            )
            if ctx.params.get("similarity"):
                about = _forms.embedding_model(visual=True)
                inputs.str("model", label="Model", description=about)

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Checks, and saves a view for each check."""
        summary = check_captions(
            ctx.target_view(),
            ctx.params.get("field", "captions"),
            similarity=bool(ctx.params.get("similarity")),
            model=ctx.params.get("model") or None,
        )
        if not ctx.delegated:
            ctx.ops.reload_dataset()
        return {**summary.to_dict(), "summary": summary.to_markdown()}

    def __call__(
        self, sample_collection: Any, field: str = "captions", **options: Any
    ) -> CheckSummary:
        """Checks from Python; see :func:`fiftyone_regioncap.check_captions`."""
        return check_captions(sample_collection, field, **options)
