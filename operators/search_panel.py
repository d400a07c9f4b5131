"""A panel that lists what a search found, and opens it."""

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

from fiftyone_regioncap.dataset.caption_fields import CaptionField

from ._recent import Recent

SESSIONS = 64
"""Panels whose results are remembered."""

COLUMNS = {"score": "Score", "caption": "Caption", "where": "Where"}


# Sample and label id of each row.
_listed: Recent[Sequence[tuple[str, str]]] = Recent(SESSIONS)


class SearchPanel(foo.Panel):
    """Lists the captions that a search found, best first, with their scores."""

    @property
    def config(self) -> foo.PanelConfig:
        """Configuration of the panel in the App."""
        return foo.PanelConfig(
            name="caption_search",
            label="Caption search",
            icon="manage_search",
            category=Categories.CURATE,
            surfaces="grid",
            help_markdown="Lists what was found. A click on a row opens it.",
        )

    def on_load(self, ctx: Any) -> None:
        """Starts with nothing found."""
        self.on_change_dataset(ctx)

    def on_change_dataset(self, ctx: Any) -> None:
        """Starts over."""
        _listed.put(_key(ctx), ())
        ctx.panel.set_data({"found": "Nothing was looked for yet.", "results": []})

    def ask(self, ctx: Any) -> None:
        """Asks what to look for."""
        uri = f"{self.plugin_name}/search_captions"
        ctx.prompt(uri, on_success=self.list_hits)

    def list_hits(self, ctx: Any) -> None:
        """Lists what was found."""
        found = ctx.params["result"]
        hits = found["hits"]
        _listed.put(_key(ctx), [(hit["sample_id"], hit["id"]) for hit in hits])
        rows = _rows(CaptionField.of(ctx.dataset, found["field"]), hits)
        title = f"**{len(hits):,}** found of `{_code(found['query'])}`"
        ctx.panel.set_data({"found": title, "results": rows})

    def open(self, ctx: Any) -> None:
        """Opens the sample of a row."""
        listed = _listed.get(_key(ctx)) or ()
        sample_id, label_id = listed[int(ctx.params["row"])]
        # A clip or patch goes by the id of its label.
        of_labels = isinstance(ctx.view, (foc.ClipsView, fop.PatchesView))
        ctx.ops.open_sample(id=label_id if of_labels else sample_id)

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out."""
        panel = types.Object()
        panel.btn("ask", "Search captions", on_click=self.ask, variant="contained")
        panel.md("", name="found")
        if _listed.get(_key(ctx)):
            # A table is 650 pixels wide at least, which would be cut off at its right.
            fitting = {"table": {"sx": {"minWidth": 0}}}
            table = types.TableView(on_click_row=self.open, componentsProps=fitting)
            for key, label in COLUMNS.items():
                table.add_column(key, label=label)
            panel.list("results", types.Object(), view=table)
        layout = types.GridView(orientation="vertical", gap=1.5, px=2, py=1)
        return types.Property(panel, view=layout)


def _key(ctx: Any) -> tuple[str, str]:
    """Returns the key of a panel's rows."""
    return ctx.panel.id, str(ctx.dataset._doc.id)


def _code(query: str) -> str:
    """Returns a query as a span of Markdown's code, which nothing in it can end."""
    return query.replace("`", "'")


def _rows(
    captions: CaptionField, hits: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Returns the table rows of captions that were found."""
    where: dict[str, str] = {}
    query = {"_id": {"$in": [ObjectId(hit["sample_id"]) for hit in hits]}}
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
            "score": f"{hit['score']:.2f}",
            "caption": hit["caption"],
            "where": where.get(hit["id"], ""),
        }
        for hit in hits
    ]
