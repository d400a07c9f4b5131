"""The operator ``extract_facets``."""

from __future__ import annotations

from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.analysis.facets import FacetSummary, extract_facets

from . import _forms
from ._caption_operator import CaptionOperator


class ExtractFacets(CaptionOperator):
    """Makes nouns and attributes of captions into lists to filter by."""

    name = "extract_facets"
    label = "Extract facets"
    description = "Make nouns and attributes of captions into lists to filter by"
    action = "Extract"
    found = "Facets"

    def ask(self, inputs: types.Object, ctx: Any, choices: list[str]) -> None:
        """Adds the field."""
        _forms.pick_field(
            inputs, "field", choices, label="Captions", description="To look at"
        )

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

    def __call__(self, sample_collection: Any, field: str = "captions") -> FacetSummary:
        """Extracts from Python; see :func:`fiftyone_regioncap.analysis.facets`."""
        return extract_facets(sample_collection, field)
