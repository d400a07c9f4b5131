"""The operator ``extract_facets``."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from fiftyone_regioncap.caption_fields import caption_fields
from fiftyone_regioncap.facets import FacetSummary, extract_facets

from . import _forms


class ExtractFacets(foo.Operator):
    """Makes nouns and attributes of captions into lists to filter by."""

    name = "extract_facets"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the operator shows itself and may be run."""
        return foo.OperatorConfig(
            name=self.name,
            label="Extract facets",
            description="Make nouns and attributes of captions into lists to filter by",
            dynamic=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form."""
        inputs = types.Object()
        choices = caption_fields(ctx.dataset)
        if choices:
            _forms.target(inputs, ctx, "Extract")
            _forms.pick_field(
                inputs, "field", choices, label="Captions", description="To look at"
            )
        else:
            _forms.refuse(
                inputs, "No field holds captions yet. Run caption_tracks first"
            )
        return types.Property(inputs, view=types.View(label="Extract facets"))

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Writes the lists, and shows them in the sidebar."""
        found = extract_facets(ctx.target_view(), ctx.params.get("field", "captions"))
        if not ctx.delegated:
            ctx.ops.reload_dataset()
        return {
            "summary": f"{found.captions} captions speak of {found.nouns} nouns and "
            f"{found.traits} attributes; filter by {', '.join(found.fields)}, or open "
            f"one of the views {', '.join(found.views)}"
        }

    def resolve_output(self, ctx: Any) -> types.Property:
        """What was found."""
        shown = types.Object()
        shown.str("summary", label="Facets", view=types.MarkdownView())
        return types.Property(shown, view=types.View(label="Extract facets"))

    def __call__(self, sample_collection: Any, field: str = "captions") -> FacetSummary:
        """Extracts from Python; see :func:`fiftyone_regioncap.facets`."""
        return extract_facets(sample_collection, field)
