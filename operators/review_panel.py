"""A panel to go through captions: look, accept, edit, reject, next."""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from threading import Lock
from typing import Any, Generic, Literal, TypeVar

import fiftyone as fo
import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

from fiftyone_regioncap import review, review_card
from fiftyone_regioncap.errors import FieldError, RegionCapError
from fiftyone_regioncap.labels import fields
from fiftyone_regioncap.labels.captions import Review
from fiftyone_regioncap.review import REVIEWS, Change, Ref, ReviewQueue
from fiftyone_regioncap.review_card import Card

NO_CAPTIONS = (
    "No field of this dataset holds captions of tracks. Run **propagate_and_caption** "
    "or **caption_tracks** on videos first."
)
NOTHING_LEFT = "Nothing is left to look at. Show other captions, or change the view."

SHOW: dict[str, tuple[str, tuple[Review, ...]]] = {
    "unreviewed": ("To review", ("unreviewed",)),
    "all": ("All", REVIEWS),
    "accepted": ("Accepted", ("accepted",)),
    "edited": ("Edited", ("edited",)),
    "rejected": ("Rejected", ("rejected",)),
}
ORDER = {"view": "As in the view", "confidence": "Least sure first"}
BULK: dict[str, tuple[str, review.Action, tuple[Review, ...]]] = {
    "accept": ("Accept", review.accept, ("unreviewed",)),
    "reject": ("Reject", review.reject, ("unreviewed",)),
    "reset": ("Reset", review.reset, ("accepted", "edited", "rejected")),
}

_SCOPE_EVENTS = {"on_change_dataset", "on_change_view", "on_change_current_sample"}

NO_FIELD = "-"
"""Instead of the name of a field; no field can be called this."""

QUEUES = 4
"""Views whose captions stay known, such as the grid's and an open sample's."""

PICTURES = 64
"""Strips that are kept drawn."""

UNDO_CAPTIONS = 100_000
"""Changed captions that are remembered for undo, over all changes."""

_T = TypeVar("_T")


class _Recent(Generic[_T]):
    """The values used last; safe to share between requests."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, _T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> _T | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: _T) -> _T:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def values(self) -> list[_T]:
        with self._lock:
            return list(self._values.values())

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


@dataclass(frozen=True)
class _Settings:
    """What is chosen in the panel's head.

    Attributes:
        captions: field of the captions.
        compare: another such field, or ``NO_FIELD``.
        tracks: field of the tracks, or ``NO_FIELD``.
        show: a key of ``SHOW``.
        order: a key of ``ORDER``.
    """

    captions: str = NO_FIELD
    compare: str = NO_FIELD
    tracks: str = NO_FIELD
    show: str = "unreviewed"
    order: review.Order = "view"

    @classmethod
    def of(cls, ctx: Any) -> _Settings:
        """What the panel's state says."""
        head = ctx.panel.state.head or {}
        return cls(**{key: value for key, value in head.items() if value is not None})

    @property
    def reviews(self) -> tuple[Review, ...]:
        """The states of captions that are shown."""
        return SHOW[self.show][1]

    def fitting(self, dataset: fo.Dataset | None) -> _Settings:
        """The same as far as the dataset has such fields; else its first ones.

        Raises:
            FieldError: when it has no captions.
        """
        known = [] if dataset is None else fields.caption_fields(dataset)
        if not known:
            raise FieldError(NO_CAPTIONS)
        captions = _pick(self.captions, "captions", known)
        others = [field for field in known if field != captions]
        return replace(
            self,
            captions=captions,
            compare=self.compare if self.compare in others else NO_FIELD,
            tracks=_pick(self.tracks, "frames.tracks", fields.track_fields(dataset)),
        )


# The App makes a panel object an event, so what outlives events is here.
_queues: _Recent[ReviewQueue] = _Recent(QUEUES)
_pictures: _Recent[Future[str]] = _Recent(PICTURES)
_histories: _Recent[deque[Change]] = _Recent(QUEUES)
_artist = ThreadPoolExecutor(1, thread_name_prefix="regioncap-review")


class ReviewPanel(foo.Panel):
    """Shows one caption at a time, with its track, and takes what a person says."""

    @property
    def config(self) -> foo.PanelConfig:
        """How the panel shows itself."""
        return foo.PanelConfig(
            name="region_captions",
            label="Region captions",
            icon="rate_review",
            category=Categories.CURATE,
            surfaces="grid modal",
            help_markdown=(
                "Look at captions one by one. Keys, with Alt (Ctrl+Option on macOS, "
                "Alt+Shift in Firefox): **A** accept, **E** edit, **S** save, "
                "**R** reject, **N** next, **P** previous, **U** undo."
            ),
        )

    def execute(self, ctx: Any) -> Any:
        """Runs an event, unless it says that nothing changed.

        The App tells of a new view after every event of a panel. Laying the panel out
        for that would undo what a person did meanwhile.
        """
        method = ctx.params.get("__method__")
        if method in _SCOPE_EVENTS and ctx.panel.state.scope == _scope(ctx):
            return None
        return super().execute(ctx)

    def on_load(self, ctx: Any) -> None:
        """Opens the first field of captions that there is."""
        self._open(ctx)

    def on_change_dataset(self, ctx: Any) -> None:
        """Starts over."""
        self._open(ctx)

    def on_change_view(self, ctx: Any) -> None:
        """Takes the captions of the new view."""
        self._open(ctx)

    def on_change_current_sample(self, ctx: Any) -> None:
        """Takes the captions of the sample that was opened, or of the view again."""
        self._open(ctx)

    def on_setting(self, ctx: Any) -> None:
        """Takes a choice of the panel's head."""
        name = ctx.params["path"].rpartition(".")[2]
        ctx.panel.set_state(f"head.{name}", ctx.params["value"])
        self._open(ctx)

    def refresh(self, ctx: Any) -> None:
        """Looks at the database again, and draws again."""
        _queues.clear()
        _pictures.clear()
        self._open(ctx)
        ctx.ops.reload_dataset()

    def next(self, ctx: Any) -> None:
        """Goes on without a word."""
        self._step(ctx, 1)

    def previous(self, ctx: Any) -> None:
        """Goes back to the caption before."""
        self._step(ctx, -1)

    def accept(self, ctx: Any) -> None:
        """Accepts, and goes on."""
        self._apply(ctx, review.accept)

    def reject(self, ctx: Any) -> None:
        """Rejects, and goes on."""
        self._apply(ctx, review.reject)

    def edit(self, ctx: Any) -> None:
        """Shows the text in a field."""
        ctx.panel.set_state({"text": ctx.panel.state.seen, "editing": True})

    def cancel(self, ctx: Any) -> None:
        """Leaves the text as it was."""
        ctx.panel.set_state({"text": None, "editing": False})

    def save(self, ctx: Any) -> None:
        """Writes the text of the field, and goes on."""
        try:
            action = review.edit(ctx.panel.state.text or "")
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return
        self._apply(ctx, action)

    def undo(self, ctx: Any) -> None:
        """Takes the last change back, and shows it."""
        history = self._history(ctx)
        if not history:
            ctx.ops.notify("There is nothing to undo")
            return
        undone = review.undo(ctx.dataset, history.pop())
        if undone.skipped:
            ctx.ops.notify(
                f"{undone.skipped} captions were changed since, and stay as they are",
                variant="warning",
            )
        _mark(undone)
        label = undone.edits[0].ref.label_id if undone.edits else ctx.panel.state.label
        self._show(ctx, self._queue(ctx).position(label or ""))
        ctx.ops.reload_samples()

    def ask_bulk(self, ctx: Any) -> None:
        """Asks before all captions of the view are changed."""
        name = ctx.params["action"]
        verb, _, reviews = BULK[name]
        count = len(self._queue(ctx).select(reviews))
        kind = "reviewed" if name == "reset" else "unreviewed"
        ctx.panel.set_state("bulk", name if count else None)
        question = f"{verb} **{count:,}** {kind} captions of this view?"
        ctx.panel.set_data("question", question)
        if not count:
            ctx.ops.notify(f"No caption of this view is {kind}")

    def cancel_bulk(self, ctx: Any) -> None:
        """Changes nothing."""
        ctx.panel.set_state("bulk", None)

    def do_bulk(self, ctx: Any) -> None:
        """Changes all captions of the view that the question was about."""
        _, action, reviews = BULK[ctx.panel.state.bulk]
        ctx.panel.set_state("bulk", None)
        change = self._change(ctx, self._queue(ctx).select(reviews), action)
        if change is None:
            return
        note = f"{len(change.edits):,} captions changed"
        if change.skipped:
            note += f"; {change.skipped:,} have no text, or are gone"
        ctx.ops.notify(note, variant="success")
        self._show(ctx, self._queue(ctx).find(0, 1, _Settings.of(ctx).reviews))

    def _open(self, ctx: Any) -> None:
        """Chooses fields where none are chosen, and shows a caption of the view."""
        state = ctx.panel.state
        try:
            settings = _Settings.of(ctx).fitting(ctx.dataset)
        except FieldError as error:
            ctx.panel.set_state("problem", str(error))
            return
        ctx.panel.set_state(
            {
                "problem": None,
                "bulk": None,
                "head": asdict(settings),
                "scope": _scope(ctx),
            }
        )
        queue = self._queue(ctx)
        start = queue.position(state.label or "") or 0
        self._show(ctx, queue.find(start, 1, settings.reviews))

    def _queue(self, ctx: Any) -> ReviewQueue:
        """The captions of the view, or of the sample that is open."""
        settings = _Settings.of(ctx)
        key = (_scope(ctx), settings.captions, settings.order)
        queue = _queues.get(key)
        if queue is None:
            samples = ctx.view
            if ctx.current_sample is not None:
                samples = samples.select(ctx.current_sample)
            queue = ReviewQueue.of(samples, settings.captions, order=settings.order)
            _queues.put(key, queue)
        return queue

    def _history(self, ctx: Any) -> deque[Change]:
        key = (ctx.panel.id, str(ctx.dataset._doc.id))
        return _histories.get(key) or _histories.put(key, deque())

    def _change(
        self,
        ctx: Any,
        refs: Sequence[Ref],
        action: review.Action,
        seen: str | None = None,
    ) -> Change | None:
        """Changes captions and remembers how; None where that was impossible."""
        settings = _Settings.of(ctx)
        try:
            change = review.apply(
                ctx.dataset,
                settings.captions,
                refs,
                action,
                tracks_field=_or_none(settings.tracks),
                seen=seen,
            )
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return None
        _mark(change)
        if change.edits:
            history = self._history(ctx)
            history.append(change)
            while sum(len(c.edits) for c in history) > UNDO_CAPTIONS:
                if len(history) == 1:
                    break
                history.popleft()
        if any(done.before.shown != done.after.shown for done in change.edits):
            ctx.ops.reload_samples()
        return change

    def _apply(self, ctx: Any, action: review.Action) -> None:
        """Applies an action to the caption that is shown, and goes on."""
        state = ctx.panel.state
        if not state.label:
            return
        ref = Ref(state.sample, state.label)
        if self._change(ctx, [ref], action, seen=state.seen) is None:
            self._open(ctx)
        else:
            self._step(ctx, 1)

    def _step(self, ctx: Any, step: Literal[1, -1]) -> None:
        queue = self._queue(ctx)
        position = queue.position(ctx.panel.state.label or "")
        start = 0 if position is None else position + step
        self._show(ctx, queue.find(start, step, _Settings.of(ctx).reviews))

    def _show(self, ctx: Any, position: int | None) -> None:
        """Puts a caption, or that there is none, into the panel."""
        queue = self._queue(ctx)
        data: dict[str, Any] = {
            "progress": _progress(queue.counts()),
            "title": NOTHING_LEFT,
        }
        shown: dict[str, Any] = {
            "sample": None,
            "label": None,
            "seen": None,
            "text": None,
            "editing": False,
            "pictured": False,
        }
        card = None if position is None else self._card(ctx, queue[position])
        if card is not None:
            assert position is not None
            own, other = review_card.texts(card)
            strip, problem = self._strip(ctx, card)
            place = f"{position + 1:,} / {len(queue):,}"
            shown |= {
                "sample": card.ref.sample_id,
                "label": card.ref.label_id,
                "seen": card.record.caption,
                "pictured": strip is not None,
            }
            data |= {
                "title": f"{place} · {review_card.title(card)}",
                "strip": strip,
                "no_strip": problem,
                "timeline": review_card.data_url(review_card.draw_timeline(card)),
                "own": own,
                "sides.own": own,
                "sides.other": other,
                "facts": review_card.facts(card),
            }
        ctx.panel.set_state(shown)
        ctx.panel.set_data(data)
        if position is not None:
            self._draw_ahead(ctx, queue, position)

    def _card(self, ctx: Any, ref: Ref) -> Card | None:
        settings = _Settings.of(ctx)
        try:
            return review_card.load_card(
                ctx.dataset, settings.captions, ref, compare=_or_none(settings.compare)
            )
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return None

    def _strip(self, ctx: Any, card: Card) -> tuple[str | None, str | None]:
        """The picture of the track, or why there is none."""
        if _Settings.of(ctx).tracks == NO_FIELD:
            return None, "*This dataset has no field of tracks to show.*"
        try:
            return self._drawing(ctx, card).result(), None
        except (RegionCapError, OSError) as error:
            return None, f"*No picture:* {review_card.escape(str(error))}"

    def _drawing(self, ctx: Any, card: Card) -> Future[str]:
        tracks, dataset = _Settings.of(ctx).tracks, ctx.dataset
        key = (str(dataset._doc.id), card.ref, card.record.support, tracks)

        def draw() -> str:
            return review_card.data_url(review_card.draw_strip(dataset, card, tracks))

        return _pictures.get(key) or _pictures.put(key, _artist.submit(draw))

    def _draw_ahead(self, ctx: Any, queue: ReviewQueue, position: int) -> None:
        """Draws what comes next while the person looks at this."""
        settings = _Settings.of(ctx)
        following = queue.find(position + 1, 1, settings.reviews)
        if following is not None and settings.tracks != NO_FIELD:
            card = self._card(ctx, queue[following])
            if card is not None:
                self._drawing(ctx, card)

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out; what it shows was set by the events."""
        panel = types.Object()
        state = ctx.panel.state
        if state.problem or not state.head:
            panel.md(state.problem or "Loading", name="problem_text")
        else:
            self._render_head(panel, ctx)
            panel.md("", name="title")
            if state.label:
                self._render_caption(panel, ctx)
            self._render_buttons(panel, state)
            self._render_bulk(panel, state)
        layout = types.GridView(orientation="vertical", gap=1.5, py=1)
        return types.Property(panel, view=layout)

    def _render_head(self, panel: types.Object, ctx: Any) -> None:
        settings = _Settings.of(ctx)
        known = fields.caption_fields(ctx.dataset)
        # A narrow panel would otherwise be cut off at its right, pictures and all.
        wrap = {"grid": {"sx": {"display": "flex", "flexWrap": "wrap"}}}
        head = panel.h_stack("head", gap=1.5, componentsProps=wrap)
        self._choice(head, "captions", "Captions", {f: f for f in known})
        others = {f: f for f in known if f != settings.captions}
        if others:
            choices = {NO_FIELD: "nothing", **others}
            self._choice(head, "compare", "Compare", choices)
        tracks = {f: f for f in fields.track_fields(ctx.dataset)}
        if len(tracks) > 1:
            self._choice(head, "tracks", "Tracks", tracks)
        shown = {name: label for name, (label, _) in SHOW.items()}
        self._choice(head, "show", "Show", shown)
        self._choice(head, "order", "Order", ORDER)
        panel.md("", name="progress")

    def _choice(
        self, parent: types.Object, name: str, label: str, choices: dict[str, str]
    ) -> None:
        narrow = {"item": {"sx": {"width": "auto"}}}
        view = types.DropdownView(label=label, componentsProps=narrow)
        for choice, text in choices.items():
            view.add_choice(choice, label=text)
        parent.enum(name, view.values(), view=view, on_change=self.on_setting)

    def _render_caption(self, panel: types.Object, ctx: Any) -> None:
        state, settings = ctx.panel.state, _Settings.of(ctx)
        if state.pictured:
            panel.img("strip", width="100%", point_on_hover=False, alt_text="The track")
        else:
            panel.md("", name="no_strip")
        panel.img("timeline", width="100%", point_on_hover=False, alt_text="Windows")
        if state.editing:
            panel.str(
                "text",
                label="The caption",
                view=types.TextFieldView(multiline=True, rows=5),
            )
        elif settings.compare != NO_FIELD:
            sides = panel.h_stack("sides", gap=3)
            names = {"own": settings.captions, "other": settings.compare}
            for name, field in names.items():
                sides.md("", name=name, label=field, space=6)
        else:
            panel.md("", name="own")
        panel.md("", name="facts")

    def _render_buttons(self, panel: types.Object, state: Any) -> None:
        row = panel.h_stack("buttons", gap=1)
        if state.editing:
            self._button(row, "save", "Save", "S", self.save, "contained")
            self._button(row, "cancel", "Cancel", "C", self.cancel)
            return
        if state.label:
            self._button(row, "accept", "Accept", "A", self.accept, "contained")
            self._button(row, "edit", "Edit", "E", self.edit)
            self._button(row, "reject", "Reject", "R", self.reject)
            self._button(row, "previous", "Previous", "P", self.previous)
            self._button(row, "next", "Next", "N", self.next)
        self._button(row, "undo", "Undo", "U", self.undo)
        self._button(row, "refresh", "Refresh", "F", self.refresh)

    def _button(
        self,
        row: types.Object,
        name: str,
        label: str,
        key: str,
        action: Any,
        variant: str = "outlined",
    ) -> None:
        """A button that a key presses too: the access key of HTML."""
        row.btn(
            name,
            label,
            on_click=action,
            variant=variant,
            title=f"Alt+{key}",
            componentsProps={"button": {"accessKey": key.lower()}},
        )

    def _render_bulk(self, panel: types.Object, state: Any) -> None:
        if state.bulk:
            panel.md("", name="question")
            row = panel.h_stack("confirm", gap=1)
            row.btn("yes", "Yes", on_click=self.do_bulk, variant="contained")
            row.btn("no", "No", on_click=self.cancel_bulk, variant="outlined")
            return
        row = panel.h_stack("bulk_actions", gap=1)
        for name, (verb, _, _) in BULK.items():
            what = "all reviewed" if name == "reset" else "all unreviewed"
            row.btn(
                name,
                f"{verb} {what}",
                on_click=self.ask_bulk,
                params={"action": name},
                variant="outlined",
            )


def _pick(chosen: str, default: str, known: Sequence[str]) -> str:
    """The field that was chosen, the one jobs write by default, or any."""
    for field in (chosen, default, *known):
        if field in known:
            return field
    return NO_FIELD


def _scope(ctx: Any) -> str:
    """What is being reviewed: the same for the same dataset, view and open sample."""
    request = ctx.request_params
    keys = ("dataset_name", "view", "view_name", "filters", "extended")
    scope = [*(request.get(key) or None for key in keys), ctx.current_sample]
    return sha256(json.dumps(scope, sort_keys=True, default=str).encode()).hexdigest()


def _or_none(field: str) -> str | None:
    return None if field == NO_FIELD else field


def _mark(change: Change) -> None:
    """Tells every view that a caption may be in."""
    for queue in _queues.values():
        queue.mark(change)


def _progress(counts: dict[Review, int]) -> str:
    total = sum(counts.values())
    parts = ", ".join(f"{counts[name]:,} {name}" for name in REVIEWS)
    done = total - counts["unreviewed"]
    return (
        f"**{done:,} of {total:,}** reviewed ({review.progress(counts):.0%}): {parts}"
    )
