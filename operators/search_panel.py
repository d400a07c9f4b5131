"""A panel to look for captions and go through what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fiftyone.core.clips as foc
import fiftyone.core.patches as fop
import fiftyone.operators as foo
from bson import ObjectId
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

from fiftyone_regioncap.caption_fields import CaptionField, caption_fields
from fiftyone_regioncap.errors import RegionCapError
from fiftyone_regioncap.search import Hit, search

from .search_captions import MODES

NO_CAPTIONS = (
    "No field of this dataset holds captions. Run **caption_tracks** on videos or "
    "**caption_regions** on images first."
)
WHERE = {"dataset": "the dataset", "view": "the current view"}
HITS = (10, 25, 50, 100)
COLUMNS = {"score": "Score", "caption": "Caption", "where": "Where"}


class SearchPanel(foo.Panel):
    """Lists the captions that fit a query, best first."""

    @property
    def config(self) -> foo.PanelConfig:
        """How the panel shows itself."""
        return foo.PanelConfig(
            name="caption_search",
            label="Caption search",
            icon="manage_search",
            category=Categories.CURATE,
            surfaces="grid",
            help_markdown=(
                'Words, **"phrases in quotes"**, and **-words** to leave out. A click '
                "on a row opens its sample."
            ),
        )

    def on_load(self, ctx: Any) -> None:
        """Offers the dataset's fields of captions."""
        self.on_change_dataset(ctx)

    def on_change_dataset(self, ctx: Any) -> None:
        """Starts over."""
        choices = [] if ctx.dataset is None else caption_fields(ctx.dataset)
        form = {"field": choices[0], "mode": "auto", "k": "25", "where": "dataset"}
        ctx.panel.set_state(
            {
                "form": form if choices else None,
                "query": "",
                "hits": [],
                "searched": False,
            }
        )
        ctx.panel.set_data({"found": "", "results": []})

    def find(self, ctx: Any) -> None:
        """Searches, and lists what was found."""
        form = ctx.panel.state.form
        query = (ctx.panel.state.query or "").strip()
        if not query:
            ctx.ops.notify("Type what to look for", variant="warning")
            return
        samples = ctx.view if form["where"] == "view" else ctx.dataset
        try:
            results = search(
                samples,
                query,
                k=int(form["k"]),
                field=form["field"],
                mode=form["mode"],
                progress=False,
            )
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return
        found = f"**{len(results):,}** found"
        if results.note:
            found = f"{found}. {results.note}"
        hits = [[hit.sample_id, hit.id] for hit in results.hits]
        ctx.panel.set_state({"hits": hits, "searched": True})
        rows = _rows(results.captions, results.hits)
        ctx.panel.set_data({"found": found, "results": rows})

    def show(self, ctx: Any) -> None:
        """Shows what was found in the grid, in the same order."""
        state = ctx.panel.state
        try:
            captions = CaptionField.of(ctx.dataset, state.form["field"])
            view = captions.view([label_id for _, label_id in state.hits])
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return
        ctx.ops.set_view(captions.alone(view))

    def open(self, ctx: Any) -> None:
        """Opens the sample of a row."""
        sample_id, label_id = ctx.panel.state.hits[int(ctx.params["row"])]
        # A clip or patch goes by the id of its label.
        of_labels = isinstance(ctx.view, (foc.ClipsView, fop.PatchesView))
        ctx.ops.open_sample(id=label_id if of_labels else sample_id)

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out."""
        panel = types.Object()
        state = ctx.panel.state
        if not state.form:
            panel.md(NO_CAPTIONS, name="problem")
        else:
            self._render_form(panel, ctx)
            if state.searched:
                panel.md("", name="found")
            if state.hits:
                self._render_results(panel)
        layout = types.GridView(orientation="vertical", gap=1.5, px=2, py=1)
        return types.Property(panel, view=layout)

    def _render_form(self, panel: types.Object, ctx: Any) -> None:
        panel.str(
            "query",
            label='Words, "phrases in quotes", -words',
            view=types.TextFieldView(),
        )
        known = {name: name for name in caption_fields(ctx.dataset)}
        name = ctx.panel.state.form["field"]
        looks = name in known and CaptionField.of(ctx.dataset, name).embedded
        modes = {key: text for key, text in MODES.items() if looks or key != "visual"}
        # A narrow panel would otherwise be cut off at its right.
        wrap = {"grid": {"sx": {"display": "flex", "flexWrap": "wrap"}}}
        form = panel.h_stack("form", gap=1.5, componentsProps=wrap)
        _choice(form, "field", "Captions", known)
        _choice(form, "mode", "Search", modes)
        _choice(form, "where", "In", WHERE)
        _choice(form, "k", "At most", {str(count): str(count) for count in HITS})
        row = panel.h_stack("buttons", gap=1)
        row.btn("find", "Search", on_click=self.find, variant="contained")
        if ctx.panel.state.hits:
            row.btn("show", "Show in the grid", on_click=self.show, variant="outlined")

    def _render_results(self, panel: types.Object) -> None:
        # A table is 650 pixels wide at least, which would be cut off at its right.
        fitting = {"table": {"sx": {"minWidth": 0}}}
        table = types.TableView(on_click_row=self.open, componentsProps=fitting)
        for key, label in COLUMNS.items():
            table.add_column(key, label=label)
        panel.list("results", types.Object(), view=table)


def _choice(
    parent: types.Object, name: str, label: str, choices: Mapping[str, str]
) -> None:
    narrow = {"item": {"sx": {"width": "auto"}}}
    view = types.DropdownView(label=label, componentsProps=narrow)
    for choice, text in choices.items():
        view.add_choice(choice, label=text)
    parent.enum(name, view.values(), view=view)


def _rows(captions: CaptionField, hits: Sequence[Hit]) -> list[dict[str, str]]:
    """What the table shows of captions that were found."""
    where: dict[str, str] = {}
    query = {"_id": {"$in": [ObjectId(hit.sample_id) for hit in hits]}}
    for sample, labels in captions.documents(
        ["label", "support"], query=query, paths=["filepath"]
    ):
        for label in labels:
            parts = [label.get("label"), Path(sample["filepath"]).name]
            if label.get("support"):
                parts.append("frames {} to {}".format(*label["support"]))
            where[str(label["_id"])] = ", ".join(filter(None, parts))
    return [
        {
            "score": f"{hit.score:.2f}",
            "caption": hit.caption,
            "where": where.get(hit.id, ""),
        }
        for hit in hits
    ]
