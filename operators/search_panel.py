"""A panel with a search box that lists what a search found, and opens it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.clips as foc
import fiftyone.core.patches as fop
import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

from fiftyone_regioncap import api
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.dataset import caption_fields, fields
from fiftyone_regioncap.operations import OPERATIONS

from . import _forms, _running
from ._layout import NARROW, WRAP, panel_layout
from ._recent import Sessions

SHOWN = 10
"""Number of captions that are shown at first, and added by "More"."""

FIRST = (
    "Words find captions that have them, and captions that mean nearly the same: "
    '`red car "turning left" -truck`.'
)
SEARCHING = (
    "Searching. The first search also reads all captions, which may take a minute."
)
WHERE = {"dataset": "Whole dataset", "view": "Current view"}


@dataclass
class _Found:
    """What a panel shows.

    Attributes:
        query: The query.
        where: Key of :data:`WHERE`.
        captions: Field that was searched.
        hits: The captions that were found, as plain values.
        shown: Number of those that are shown.
        waiting: Whether the search is still to be made.
    """

    query: str = ""
    where: str = "dataset"
    captions: str = ""
    hits: Sequence[dict[str, Any]] = field(default_factory=tuple)
    shown: int = SHOWN
    waiting: bool = False


_sessions = Sessions(_Found)


class SearchPanel(foo.Panel):
    """Lists the captions that a search found, best first, with their pictures."""

    @property
    def config(self) -> foo.PanelConfig:
        """Configuration of the panel in the App."""
        return foo.PanelConfig(
            name="caption_search",
            label="Caption search",
            icon="manage_search",
            category=Categories.CURATE,
            surfaces="grid",
            help_markdown="Finds captions by words and by meaning.",
        )

    def on_load(self, ctx: Any) -> None:
        """Starts with nothing found."""
        self.on_change_dataset(ctx)

    def on_change_dataset(self, ctx: Any) -> None:
        """Starts over."""
        _sessions.renew(ctx)
        ctx.panel.set_data({"found": FIRST})

    def type_query(self, ctx: Any) -> None:
        """Takes what a person types."""
        _sessions.of(ctx).query = ctx.params.get("value") or ""

    def search(self, ctx: Any) -> None:
        """Says that it searches, and does so once that is shown."""
        found = _sessions.of(ctx)
        found.where = ctx.params.get("where") or found.where
        found.hits, found.shown = (), SHOWN
        found.waiting = bool(found.query.strip())
        text = SEARCHING if found.waiting else FIRST
        ctx.panel.set_data({"found": text})

    def run(self, ctx: Any) -> None:
        """Searches, and shows what is found in the grid too."""
        found = _sessions.of(ctx)
        if not found.waiting:
            return
        found.waiting = False
        names = caption_fields.caption_fields(ctx.dataset)
        if not names:
            ctx.panel.set_data({"found": _forms.NO_FIELD["captions"]})
            return
        found.captions = names[0]
        samples = ctx.dataset if found.where == "dataset" else ctx.view
        values = {"query": found.query, "captions": found.captions}
        from fiftyone_regioncap.search.results import view_of

        operation = OPERATIONS["search_captions"]
        try:
            options, models, _ = operation.parse(values)
            results = api.run(operation, samples, options, models, None, progress=False)
            if results.hits:
                ctx.ops.set_view(view_of(results, options))
        except Exception as error:
            ctx.panel.set_data(
                {"found": f"**Failed.** {escape(_running.words(error))}"}
            )
            return
        found.hits = results.to_dict()["hits"]
        place = WHERE[found.where].lower()
        head = f"{results.tally()}, in the {place}, of `{_code(found.query)}`"
        note = "" if results.note is None else f"\n\n{escape(results.note)}"
        ctx.panel.set_data({"found": head + note})
        self._fill(ctx, found, 0)

    def more(self, ctx: Any) -> None:
        """Shows more of what was found."""
        found = _sessions.of(ctx)
        before, found.shown = found.shown, found.shown + SHOWN
        self._fill(ctx, found, before)

    def open(self, ctx: Any) -> None:
        """Opens the sample of a row."""
        hit = _sessions.of(ctx).hits[int(ctx.params["row"])]
        # A clip or patch goes by the id of its label.
        of_labels = isinstance(ctx.view, (foc.ClipsView, fop.PatchesView))
        ctx.ops.open_sample(id=hit["id"] if of_labels else hit["sample_id"])

    def _fill(self, ctx: Any, found: _Found, start: int) -> None:
        """Sets the texts and pictures of rows."""
        data: dict[str, Any] = {}
        for number, hit in enumerate(found.hits[start : found.shown], start):
            picture, where = _look(ctx, found.captions, hit)
            kind = "has words of the query" if hit["exact"] else "near in meaning"
            data[f"row_{number}.text"] = (
                f"{escape(hit['caption'])}\n\n*{escape(where)}; {kind}, "
                f"{hit['score']:.2f}*"
            )
            if picture is not None:
                data[f"row_{number}.picture"] = picture
        ctx.panel.set_data(data)

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out."""
        panel = types.Object()
        found = _sessions.of(ctx)
        panel.str(
            "query",
            label="Search captions",
            default=found.query,
            on_change=self.type_query,
        )
        row = panel.h_stack("buttons", gap=1, componentsProps=WRAP)
        for where, label in WHERE.items():
            row.btn(
                f"in_{where}",
                f"Search {label.lower()}",
                on_click=self.search,
                params={"where": where},
                variant="contained" if where == "dataset" else "outlined",
                componentsProps=NARROW,
            )
        panel.md("", name="found")
        if found.waiting:
            panel.view("go", types.TimerView(timeout=100, on_timeout=self.run))
        for number, _ in enumerate(found.hits[: found.shown]):
            line = panel.v_stack(f"row_{number}", gap=0.5)
            line.img("picture", width="100%", point_on_hover=False)
            line.md("", name="text")
            line.btn(
                "open",
                "Open",
                on_click=self.open,
                params={"row": number},
                variant="outlined",
            )
        if len(found.hits) > found.shown:
            panel.btn("more", "More", on_click=self.more, variant="outlined")
        return types.Property(panel, view=panel_layout(ctx))


def _code(query: str) -> str:
    """Returns a query as a span of Markdown's code, which nothing in it can end."""
    return query.replace("`", "'")


def _look(ctx: Any, captions: str, hit: dict[str, Any]) -> tuple[str | None, str]:
    """Returns a picture of what was found, or None, and where it is."""
    from fiftyone_regioncap.dataset.targets import name_of
    from fiftyone_regioncap.review import card as review_card
    from fiftyone_regioncap.review.session import Ref

    name = name_of(ctx.dataset[hit["sample_id"]])
    if ctx.dataset.media_type == "image":
        return None, name
    try:
        ref = Ref(hit["sample_id"], hit["id"])
        card = review_card.load_card(ctx.dataset, captions, ref)
        first, last = card.record.support
        label = card.record.label
        where = f"{label}, " if label else ""
        where += f"{name}, frames {first + 1} to {last + 1}"
        tracks = next(iter(fields.track_fields(ctx.dataset)), None)
        if tracks is None:
            return None, where
        strip = review_card.draw_strip(ctx.dataset, card, tracks)
        return review_card.data_url(strip), where
    except Exception:  # a picture is not worth a failure
        return None, name
