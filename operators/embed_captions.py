"""The operator ``embed_captions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiftyone.operators import types

from fiftyone_regioncap.search import embedding
from fiftyone_regioncap.visualization.maps import MapSummary, embed_captions

from . import _forms
from ._caption_operator import CaptionOperator


class EmbedCaptions(CaptionOperator):
    """Puts captions on a map."""

    name = "embed_captions"
    label = "Embed captions"
    description = "Put captions on a map; find duplicates, outliers and groups"
    action = "Embed"
    found = "Map"

    def ask(self, inputs: types.Object, ctx: Any, choices: list[str]) -> None:
        """Adds the field, what makes captions alike, and the layout."""
        _forms.pick_field(
            inputs, "field", choices, label="Captions", description="To put on the map"
        )
        visual = False
        if _forms.embedded(ctx, choices):
            spaces = types.RadioGroup()
            spaces.add_choice("text", label="What captions say")
            spaces.add_choice("visual", label="How regions look")
            inputs.enum(
                "space", spaces.values(), default="text", label="Alike is", view=spaces
            )
            visual = ctx.params.get("space") == "visual"
        problem = embedding.missing(ctx.params.get("model") or embedding.DEFAULT_MODEL)
        if problem is not None and not visual:
            _forms.refuse(inputs, problem)
        layouts = types.RadioGroup()
        layouts.add_choice("umap", label="UMAP", description="Keeps neighbors together")
        layouts.add_choice("pca", label="PCA", description="Fast; keeps the main axes")
        inputs.enum(
            "layout", layouts.values(), default="umap", label="Layout", view=layouts
        )
        inputs.int(
            "clusters", min=1, label="Groups", description="Empty to choose for me"
        )
        inputs.str("model", label="Model", description=_forms.embedding_model(visual))

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Makes the map and shows it."""
        summary = _embed(ctx.target_view(), ctx.params, progress=False)
        if not ctx.delegated:
            ctx.ops.reload_dataset()
            # Not by its name: the App knows no view that was saved since it was opened.
            ctx.ops.set_view(ctx.dataset.load_saved_view(summary.view))
            ctx.ops.open_panel("Embeddings", layout="horizontal")
        return {**summary.to_dict(), "summary": summary.to_markdown()}

    def __call__(self, sample_collection: Any, **params: Any) -> MapSummary:
        """Makes a map from Python; see :func:`fiftyone_regioncap.embed_captions`.

        Args:
            sample_collection: a dataset or a view.
            **params: as in the form.
        """
        return _embed(sample_collection, params, progress=True)


def _embed(samples: Any, params: Mapping[str, Any], *, progress: bool) -> MapSummary:
    return embed_captions(
        samples,
        params.get("field") or "captions",
        space=params.get("space") or "text",
        layout=params.get("layout") or "umap",
        clusters=params.get("clusters"),
        model=params.get("model") or None,
        progress=progress,
    )
