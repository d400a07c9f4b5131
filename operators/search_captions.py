"""The operator ``search_captions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from fiftyone_regioncap.dataset.caption_fields import caption_fields
from fiftyone_regioncap.search import Query, QueryError, embedding, search

from . import _forms
from ._caption_operator import NO_CAPTIONS

MODES = {
    "auto": "By words and meaning",
    "text": "By words",
    "semantic": "By meaning",
    "visual": "By looks",
}


class SearchCaptions(foo.Operator):
    """Shows the captions that fit a query, best first."""

    name = "search_captions"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the operator shows itself."""
        return foo.OperatorConfig(
            name=self.name,
            label="Search captions",
            description="Find tracks and regions by what was said of them",
            dynamic=True,
        )

    def resolve_placement(self, ctx: Any) -> types.Placement:
        """A button above the grid."""
        return types.Placement(
            types.Places.SAMPLES_GRID_ACTIONS,
            types.Button(label="Search captions", icon="manage_search", prompt=True),
        )

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form."""
        inputs = types.Object()
        dataset = ctx.dataset
        choices = caption_fields(dataset)
        if choices:
            _ask(inputs, ctx, choices)
        else:
            _forms.refuse(inputs, NO_CAPTIONS)
        return types.Property(inputs, view=types.View(label="Search captions"))

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Searches and shows the results in place of the view."""
        results = _search(ctx.target_view(), ctx.params, progress=False)
        if results.hits:
            view = results.view(ctx.params.get("score_field") or None)
            if ctx.params.get("alone", True):
                view = results.captions.alone(view)
            ctx.ops.set_view(view)
            found = f"{len(results)} found"
        else:
            found = "Nothing found"
        if results.note:
            found = f"{found}. {results.note}"
        ctx.ops.notify(found, variant="success" if results.hits else "warning")
        return results.to_dict()

    def __call__(self, sample_collection: Any, query: str, **params: Any) -> Any:
        """Searches from Python.

        Args:
            sample_collection: a dataset or a view.
            query: what to look for.
            **params: as in the form.

        Returns:
            :class:`fiftyone_regioncap.search.SearchResults`.
        """
        return _search(sample_collection, {"query": query, **params}, progress=True)


def _ask(inputs: types.Object, ctx: Any, choices: list[str]) -> None:
    inputs.view_target(ctx, action_description="Search")
    query = inputs.str(
        "query",
        required=True,
        label="Query",
        description='Words, "phrases in quotes", and -words to leave out',
    )
    try:
        if ctx.params.get("query"):
            Query.parse(ctx.params["query"])
    except QueryError as error:
        query.invalid, query.error_message = True, str(error)
    _forms.pick_field(
        inputs, "field", choices, label="Captions", description="Where to search"
    )
    modes = types.RadioGroup()
    looks = _forms.embedded(ctx, choices)
    for mode, label in MODES.items():
        if mode != "visual" or looks:
            modes.add_choice(mode, label=label)
    inputs.enum("mode", modes.values(), default="auto", label="Search", view=modes)
    inputs.int("k", default=25, min=1, required=True, label="Results at most")
    inputs.str(
        "score_field",
        default="search_score",
        label="Score",
        description="Attribute of the captions to write scores to; empty for none. "
        "The eye beside it in the sidebar shows it on the results",
    )
    if ctx.dataset.media_type != "image":
        inputs.bool("alone", default=True, label="Hide objects that were not found")
    visual = ctx.params.get("mode") == "visual"
    inputs.str("model", label="Model", description=_forms.embedding_model(visual))
    problem = embedding.missing(ctx.params.get("model") or embedding.DEFAULT_MODEL)
    if problem is not None and not visual:
        inputs.view("missing", types.Notice(label=problem))


def _search(samples: Any, params: Mapping[str, Any], *, progress: bool) -> Any:
    return search(
        samples,
        params["query"],
        k=params.get("k") or 25,
        field=params.get("field") or "captions",
        mode=params.get("mode") or "auto",
        model=params.get("model") or None,
        progress=progress,
    )
