"""The operator ``check_captions``."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from fiftyone_regioncap.caption_fields import caption_fields
from fiftyone_regioncap.checks import CheckSummary, check_captions

from . import _forms


class CheckCaptions(foo.Operator):
    """Finds captions that are probably bad."""

    name = "check_captions"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the operator shows itself and may be run."""
        return foo.OperatorConfig(
            name=self.name,
            label="Check captions",
            description="Find captions that contradict what was measured, each other, "
            "or themselves",
            dynamic=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form."""
        inputs = types.Object()
        choices = caption_fields(ctx.dataset)
        if choices:
            _forms.target(inputs, ctx, "Check")
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
        else:
            _forms.refuse(
                inputs, "No field holds captions yet. Run caption_tracks first"
            )
        return types.Property(inputs, view=types.View(label="Check captions"))

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

    def resolve_output(self, ctx: Any) -> types.Property:
        """What was found."""
        shown = types.Object()
        shown.str("summary", label="Checks", view=types.MarkdownView())
        return types.Property(shown, view=types.View(label="Check captions"))

    def __call__(
        self, sample_collection: Any, field: str = "captions", **options: Any
    ) -> CheckSummary:
        """Checks from Python; see :func:`fiftyone_regioncap.checks.check_captions`."""
        return check_captions(sample_collection, field, **options)
