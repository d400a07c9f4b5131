"""A panel to go through captions: look, accept, edit, reject, next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import fiftyone as fo
import fiftyone.core.clips as foc
import fiftyone.core.patches as fop
import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

from fiftyone_regioncap.core.errors import FieldError, RegionCapError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.caption_fields import CaptionField, caption_fields
from fiftyone_regioncap.dataset.captions import Review
from fiftyone_regioncap.review import history
from fiftyone_regioncap.review import session as review
from fiftyone_regioncap.review.preferences import (
    Preference,
    counts,
    is_swapped,
    prefer,
)
from fiftyone_regioncap.review.queue import (
    Order,
    ReviewQueue,
    available_orders,
    reviewed_share,
)
from fiftyone_regioncap.review.session import REVIEWS, Change, Ref

from ._layout import NARROW, WRAP, panel_layout
from ._recent import Recent, Sessions
from ._review_prompts import NO_FIELD, ChooseCaptions, EditCaption, Prompt, pictures
from .tracks_panel import show_frame

if TYPE_CHECKING:
    from fiftyone_regioncap.review.card import Card

NO_CAPTIONS = (
    "No field of this dataset holds captions. Run **Propagate and caption** or "
    "**Caption tracks** on videos, or **Caption regions** on images first."
)
NOTHING_LEFT = "Nothing is left to look at. Show other captions, or change the view."

SHOW: dict[str, tuple[str, tuple[Review, ...]]] = {
    "unreviewed": ("To review", ("unreviewed",)),
    "all": ("All", REVIEWS),
    "accepted": ("Accepted", ("accepted",)),
    "edited": ("Edited", ("edited",)),
    "rejected": ("Rejected", ("rejected",)),
}
BULK: dict[str, tuple[str, review.Action, tuple[Review, ...]]] = {
    "accept": ("Accept", review.accept, ("unreviewed",)),
    "reject": ("Reject", review.reject, ("unreviewed",)),
    "reset": ("Reset", review.reset, ("accepted", "edited", "rejected")),
}

_SCOPE_EVENTS = {"on_change_dataset", "on_change_view", "on_change_current_sample"}

QUEUES = 4
"""Views whose captions stay known, such as the grid's and an open sample's."""

PICTURES = 64
"""Strips that are kept drawn."""

CAPTIONS_AT_ONCE = 2_000
"""Number of captions that are changed between reports of progress to the App."""


@dataclass(frozen=True)
class _Settings:
    """Settings of the panel that a person chose.

    Attributes:
        captions: Field of the captions.
        compare: Another such field to compare with, or ``NO_FIELD``.
        judge: Key of ``JUDGE``: whether to say which of both is better.
        tracks: Field of the tracks, or ``NO_FIELD``.
        show: Key of ``SHOW``: which captions are shown.
        order: One of ``ORDERS``: how captions are sorted.
    """

    captions: str = NO_FIELD
    compare: str = NO_FIELD
    judge: str = "no"
    tracks: str = NO_FIELD
    show: str = "unreviewed"
    order: Order = "view"

    @property
    def judged(self) -> bool:
        """Whether a person says which of two captions is better."""
        return self.compare != NO_FIELD and self.judge != "no"

    @property
    def blind(self) -> bool:
        """Whether they are shown so that nothing tells which is which."""
        return self.judged and self.judge == "blind"

    @property
    def reviews(self) -> tuple[Review, ...]:
        """The states of captions that are shown."""
        return SHOW[self.show][1]

    def fitting(self, dataset: fo.Dataset | None) -> _Settings:
        """Returns the same as far as the dataset has such fields; else its first ones.

        Raises:
            FieldError: When it has no captions.
        """
        known = [] if dataset is None else caption_fields(dataset)
        if not known:
            raise FieldError(NO_CAPTIONS)
        captions = _pick(self.captions, "captions", known)
        others = [field for field in known if field != captions]
        orders = available_orders(CaptionField.of(dataset, captions))
        return replace(
            self,
            order=self.order if self.order in orders else "view",
            captions=captions,
            compare=self.compare if self.compare in others else NO_FIELD,
            tracks=_pick(self.tracks, "frames.tracks", fields.track_fields(dataset)),
        )


@dataclass
class _Session:
    """State of one panel over one dataset.

    This is no panel state of FiftyOne's, which belongs to the App's workspace: the App
    drops its filters and lassos whenever that changes, and with them what is reviewed.

    Attributes:
        settings: Settings that a person chose.
        scope: Identity of the view that is shown; see :func:`_scope`.
        problem: Message that says why nothing can be shown; None when something can.
        ref: Reference to the current caption; None when nothing is left.
        seen: Text of that caption, as shown; None when nothing is left.
        other: Text of the caption beside it; None where there is none.
        picture: Image of its track; None where there is none.
        frame: First frame of its window, counted from 1; None for images.
        dataset: The dataset as it was when the view was opened, to look at captions:
            FiftyOne reads all of it again for each event that asks for it.
    """

    settings: _Settings = _Settings()
    scope: str | None = None
    problem: str | None = None
    ref: Ref | None = None
    seen: str | None = None
    other: str | None = None
    picture: str | None = None
    frame: int | None = None
    dataset: fo.Dataset | None = None


# The App makes a panel object an event, so what outlives events is here.
_queues: Recent[ReviewQueue] = Recent(QUEUES)
_pictures: Recent[Future[str]] = Recent(PICTURES)
_sessions = Sessions(_Session)
_artist = ThreadPoolExecutor(1, thread_name_prefix="regioncap-review")


class ReviewPanel(foo.Panel):
    """Shows one caption at a time, with its track, and takes what a person says."""

    @property
    def config(self) -> foo.PanelConfig:
        """Configuration of the panel in the App."""
        return foo.PanelConfig(
            name="region_captions",
            label="Region captions",
            icon="rate_review",
            category=Categories.CURATE,
            surfaces="grid modal",
            help_markdown=(
                "Look at captions one by one. Keys, with Alt (Ctrl+Option on macOS, "
                "Alt+Shift in Firefox): **A** accept, **E** edit, **R** reject, "
                "**N** next, **P** previous, **U** undo."
            ),
        )

    def execute(self, ctx: Any) -> Any:
        """Runs an event, unless it says that nothing changed.

        The App reports the same view more than once, and after what the panel did.
        """
        method = ctx.params.get("__method__")
        if method in _SCOPE_EVENTS and _sessions.of(ctx).scope == _scope(ctx):
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

    def show(self, ctx: Any) -> None:
        """Shows captions of another state."""
        session = _sessions.of(ctx)
        session.settings = replace(session.settings, show=ctx.params["show"])
        self._open(ctx)

    def choose(self, ctx: Any) -> None:
        """Asks for fields and the order."""
        chosen = asdict(_sessions.of(ctx).settings)
        self._prompt(ctx, ChooseCaptions, chosen, self.chosen)

    def chosen(self, ctx: Any) -> None:
        """Takes fields and the order."""
        session = _sessions.of(ctx)
        session.settings = replace(session.settings, **ctx.params["result"])
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
        """Accepts the caption and shows the next one."""
        self._apply(ctx, review.accept)

    def reject(self, ctx: Any) -> None:
        """Rejects the caption and shows the next one."""
        self._apply(ctx, review.reject)

    def take_other(self, ctx: Any) -> None:
        """Puts the text of the caption beside it in its place, and goes on."""
        other = _sessions.of(ctx).other
        if other is not None:
            self._apply(ctx, review.edit(other))

    def look(self, ctx: Any) -> None:
        """Opens the sample at the first frame of the caption's window."""
        session = _sessions.of(ctx)
        if session.ref is None:
            return
        ref, opened = session.ref, ctx.current_sample
        if opened is None:
            # A clip or patch of captions goes by the id of its label.
            of_labels = isinstance(ctx.view, (foc.ClipsView, fop.PatchesView))
            opened = ref.label_id if of_labels else ref.sample_id
            ctx.ops.open_sample(id=opened)
        if session.frame is not None:
            show_frame(ctx, self.plugin_name, opened, session.frame)

    def edit(self, ctx: Any) -> None:
        """Asks for another text."""
        session = _sessions.of(ctx)
        if session.ref is not None:
            if session.picture is not None:
                pictures.put(session.ref.label_id, session.picture)
            asked = {"label": session.ref.label_id, "text": session.seen}
            self._prompt(ctx, EditCaption, asked, self.edited)

    def edited(self, ctx: Any) -> None:
        """Writes the text, and goes on."""
        session, asked = _sessions.of(ctx), ctx.params["original_params"]
        if session.ref is None or session.ref.label_id != asked["label"]:
            ctx.ops.notify("Another caption is shown by now", variant="warning")
            return
        try:
            action = review.edit(ctx.params["result"]["text"])
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return
        self._apply(ctx, action)

    def prefer(self, ctx: Any) -> None:
        """Keeps which of both captions is better, and goes on."""
        session = _sessions.of(ctx)
        settings, ref = session.settings, session.ref
        if ref is None:
            return
        place = ctx.params.get("place")
        chosen: Preference = "same"
        if place is not None:
            first = is_swapped(ref.label_id) if settings.blind else True
            chosen = "new" if (place == 0) == first else "old"
        old, new = settings.compare, settings.captions
        try:
            prefer(ctx.dataset, new, {ref.label_id: chosen}, over=old)
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return
        self._step(ctx, 1)
        found = counts(ctx.dataset, new, over=old)
        told = ", ".join(f"{number} {name}" for name, number in found.items())
        ctx.ops.notify(f"Preferred so far: {told}")

    def undo(self, ctx: Any) -> None:
        """Takes the last change back, and shows it."""
        session = _sessions.of(ctx)
        field = session.settings.captions
        try:
            undone = review.undo_last(ctx.dataset, field, by=_person(ctx))
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return
        if undone is None:
            ctx.ops.notify("There is nothing to undo")
            return
        if undone.skipped:
            ctx.ops.notify(
                f"{undone.skipped} captions were changed since, and stay as they are",
                variant="warning",
            )
        _mark(undone)
        shown = undone.edits[0].ref if undone.edits else session.ref
        self._show(ctx, _queue(ctx).position(_label(shown)))
        ctx.ops.reload_samples()

    def ask_all(self, ctx: Any) -> None:
        """Asks before all captions of the view are changed."""
        name = ctx.params["action"]
        verb, _, reviews = BULK[name]
        count = len(_queue(ctx).select(reviews))
        kind = "reviewed" if name == "reset" else "unreviewed"
        if count:
            question = f"{verb} **{count:,}** {kind} captions of this view?"
            asked = {"action": name, "question": question}
            self._prompt(ctx, ChangeAll, asked, self.refresh_view)
        else:
            ctx.ops.notify(f"No caption of this view is {kind}")

    def refresh_view(self, ctx: Any) -> None:
        """Shows the captions as they are now."""
        self._open(ctx)
        ctx.ops.reload_samples()

    def _prompt(
        self,
        ctx: Any,
        operator: type[Prompt | ChangeAll],
        params: dict[str, Any],
        then: Any,
    ) -> None:
        uri = f"{self.plugin_name}/{operator.name}"
        ctx.prompt(uri, params=params, on_success=then)

    def _open(self, ctx: Any) -> None:
        """Chooses fields where none are chosen, and shows a caption of the view."""
        session = _sessions.of(ctx)
        session.scope, session.problem = _scope(ctx), None
        session.dataset = ctx.dataset
        try:
            session.settings = session.settings.fitting(ctx.dataset)
        except FieldError as error:
            session.problem = str(error)
            return
        queue = _queue(ctx)
        start = queue.position(_label(session.ref)) or 0
        self._show(ctx, queue.find(start, 1, session.settings.reviews))

    def _change(
        self,
        ctx: Any,
        refs: Sequence[Ref],
        action: review.Action,
        seen: str | None = None,
    ) -> Change | None:
        """Changes captions and remembers how; None where that was impossible."""
        session = _sessions.of(ctx)
        try:
            change = review.apply(
                ctx.dataset,
                session.settings.captions,
                refs,
                action,
                tracks_field=_or_none(session.settings.tracks),
                seen=seen,
                by=_person(ctx),
            )
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return None
        _mark(change)
        if any(done.before.shown != done.after.shown for done in change.edits):
            ctx.ops.reload_samples()
        return change

    def _apply(self, ctx: Any, action: review.Action) -> None:
        """Applies an action to the caption that is shown, and goes on."""
        session = _sessions.of(ctx)
        refs = [] if session.ref is None else [session.ref]
        if refs and self._change(ctx, refs, action, seen=session.seen) is not None:
            self._step(ctx, 1)
        else:
            self._open(ctx)

    def _step(self, ctx: Any, step: Literal[1, -1]) -> None:
        queue, session = _queue(ctx), _sessions.of(ctx)
        position = queue.position(_label(session.ref))
        start = 0 if position is None else position + step
        self._show(ctx, queue.find(start, step, session.settings.reviews))

    def _show(self, ctx: Any, position: int | None) -> None:
        """Puts a caption, or that there is none, into the panel."""
        queue, session = _queue(ctx), _sessions.of(ctx)
        session.ref, session.seen, session.other = None, None, None
        session.picture, session.frame = None, None
        data: dict[str, Any] = {
            "progress": _progress(queue.counts()),
            "title": NOTHING_LEFT,
        }
        card = None if position is None else self._card(ctx, queue[position])
        if card is not None:
            assert position is not None
            own, other = _cards().texts(card)
            sides = (own, other)
            if session.settings.blind and not is_swapped(card.ref.label_id):
                sides = (other or "", own)
            strip, problem = self._strip(ctx, card)
            place = f"{position + 1:,} / {len(queue):,}"
            session.ref, session.seen = card.ref, card.record.caption
            session.picture = strip
            session.other = None if card.other is None else card.other.caption or None
            session.frame = None if card.image else card.record.support[0] + 1
            data |= {
                "title": f"{place} · {_cards().title(card)}",
                "strip": strip,
                "no_strip": problem,
                "timeline": None
                if card.image
                else _cards().data_url(_cards().draw_timeline(card)),
                "own": own,
                "sides.own": sides[0],
                "sides.other": sides[1],
                "facts": _cards().measurements(card),
            }
        ctx.panel.set_data(data)
        if position is not None:
            self._draw_ahead(session, queue, position)

    def _card(self, ctx: Any, ref: Ref) -> Card | None:
        session = _sessions.of(ctx)
        settings = session.settings
        try:
            return _cards().load_card(
                session.dataset or ctx.dataset,
                settings.captions,
                ref,
                compare=_or_none(settings.compare),
            )
        except RegionCapError as error:
            ctx.ops.notify(str(error), variant="error")
            return None

    def _strip(self, ctx: Any, card: Card) -> tuple[str | None, str | None]:
        """Returns the picture of the track, or why there is none."""
        session = _sessions.of(ctx)
        if not card.image and session.settings.tracks == NO_FIELD:
            return None, "*This dataset has no field of tracks to show.*"
        dataset = session.dataset or ctx.dataset
        try:
            return _drawing(dataset, session.settings, card).result(), None
        except (RegionCapError, OSError) as error:
            return None, f"*No picture:* {escape(str(error))}"

    def _draw_ahead(self, session: _Session, queue: ReviewQueue, position: int) -> None:
        """Draws what comes next while the person looks at this."""
        settings, dataset = session.settings, session.dataset
        following = queue.find(position + 1, 1, settings.reviews)
        if following is None or dataset is None:
            return
        ref = queue[following]

        def draw() -> None:
            with suppress(RegionCapError):  # which is said once it is shown
                card = _cards().load_card(dataset, settings.captions, ref)
                if card.image or settings.tracks != NO_FIELD:
                    _drawing(dataset, settings, card)

        _artist.submit(draw)

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out; what it shows was set by the events."""
        panel = types.Object()
        session = _sessions.of(ctx)
        if session.problem or session.scope is None:
            panel.md(session.problem or "Loading", name="problem_text")
        else:
            self._render_head(panel, session.settings)
            panel.md("", name="title")
            if session.ref is not None:
                self._render_caption(panel, session)
            self._render_buttons(panel, session)
            self._render_bulk(panel)
        return types.Property(panel, view=panel_layout(ctx))

    def _render_head(self, panel: types.Object, settings: _Settings) -> None:
        # Buttons and prompts alone: the App keeps what is put into a panel's inputs in
        # the state of the panel. Unlike stacks, this wraps where the panel is narrow.
        head = panel.h_stack("head", gap=1, componentsProps=WRAP)
        for name, (label, _) in SHOW.items():
            head.btn(
                name,
                label,
                on_click=self.show,
                params={"show": name},
                variant="contained" if name == settings.show else "outlined",
                componentsProps=NARROW,
            )
        head.btn(
            "choose",
            "Fields and order",
            on_click=self.choose,
            icon="tune",
            componentsProps=NARROW,
        )
        panel.md("", name="progress")

    def _render_caption(self, panel: types.Object, session: _Session) -> None:
        settings = session.settings
        if session.picture is not None:
            panel.img(
                "strip",
                width="100%",
                alt_text="The track",
                on_click=self.look,
                title="Open the sample here",
            )
        else:
            panel.md("", name="no_strip")
        if session.frame is not None:
            panel.img("timeline", width="100%", alt_text="Windows", on_click=self.look)
        if settings.compare != NO_FIELD:
            sides = panel.h_stack("sides", gap=3)
            names = {"own": settings.captions, "other": settings.compare}
            if settings.blind:
                names = {"own": "First", "other": "Second"}
            for name, field in names.items():
                sides.md("", name=name, label=field, space=6)
        else:
            panel.md("", name="own")
        if settings.judged:
            row = panel.h_stack("judging", gap=1, componentsProps=WRAP)
            for place, label in enumerate(("Left is better", "Right is better")):
                row.btn(
                    f"better_{place}",
                    label,
                    on_click=self.prefer,
                    params={"place": place},
                    variant="outlined",
                )
            row.btn("as_good", "Both as good", on_click=self.prefer, variant="outlined")
        if not settings.blind:
            panel.md("", name="facts")

    def _render_buttons(self, panel: types.Object, session: _Session) -> None:
        row = panel.h_stack("buttons", gap=1, componentsProps=WRAP)
        if session.ref is not None:
            self._button(row, "accept", "Accept", "A", self.accept, "contained")
            self._button(row, "edit", "Edit", "E", self.edit)
            self._button(row, "reject", "Reject", "R", self.reject)
            if session.other is not None and not session.settings.blind:
                self._button(row, "take_other", "Take the other", "T", self.take_other)
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
            componentsProps={"button": {"accessKey": key.lower()}, **NARROW},
        )

    def _render_bulk(self, panel: types.Object) -> None:
        row = panel.h_stack("bulk_actions", gap=1, componentsProps=WRAP)
        for name, (verb, _, _) in BULK.items():
            what = "all reviewed" if name == "reset" else "all unreviewed"
            row.btn(
                name,
                f"{verb} {what}",
                on_click=self.ask_all,
                params={"action": name},
                variant="outlined",
                componentsProps=NARROW,
            )


class ChangeAll(foo.Operator):
    """Changes all captions of the panel's view, and shows how far it is."""

    name = "review_all_captions"

    @property
    def config(self) -> foo.OperatorConfig:
        """Configuration of the operator, which the App does not list."""
        return foo.OperatorConfig(
            name=self.name,
            label="Review all captions",
            unlisted=True,
            execute_as_generator=True,
        )

    def resolve_input(self, ctx: Any) -> types.Property:
        """Returns the question whether it is meant."""
        inputs = types.Object()
        inputs.md(ctx.params.get("question", ""), name="asked")
        view = types.PromptView(label="All of this view", submit_button_label="Yes")
        return types.Property(inputs, view=view)

    def execute(self, ctx: Any) -> Iterator[Any]:
        """Changes them, some at a time."""
        _, action, reviews = BULK[ctx.params["action"]]
        session = _sessions.of(ctx)
        refs = _queue(ctx).select(reviews)
        settings, change = session.settings, uuid4().hex
        changed = skipped = 0
        try:
            for start in range(0, len(refs), CAPTIONS_AT_ONCE):
                part = review.apply(
                    ctx.dataset,
                    settings.captions,
                    refs[start : start + CAPTIONS_AT_ONCE],
                    action,
                    tracks_field=_or_none(settings.tracks),
                    reviews=reviews,
                    by=_person(ctx),
                    part_of=change,
                )
                _mark(part)
                changed += len(part.edits)
                skipped += part.skipped
                done = min(start + CAPTIONS_AT_ONCE, len(refs))
                label = f"{done:,} of {len(refs):,} captions"
                yield ctx.ops.set_progress(label=label, progress=done / len(refs))
        except RegionCapError as error:
            yield ctx.ops.notify(str(error), variant="error")
        note = f"{changed:,} captions changed"
        if skipped:
            note += f"; {skipped:,} have no text, are gone, or were judged since"
        yield ctx.ops.notify(note, variant="success")


def _drawing(dataset: fo.Dataset, settings: _Settings, card: Card) -> Future[str]:
    """Returns the picture of a card, which is drawn unless it was before."""
    shown = settings.captions if card.image else settings.tracks
    key = (str(dataset._doc.id), card.ref, card.record.support, shown)

    def draw() -> str:
        return _cards().data_url(_cards().draw_strip(dataset, card, shown))

    return _pictures.get(key) or _pictures.put(key, _artist.submit(draw))


def _cards() -> Any:
    """Returns the module that draws cards; its libraries take long to import."""
    from fiftyone_regioncap.review import card

    return card


def _pick(chosen: str, default: str, known: Sequence[str]) -> str:
    """Returns the field that was chosen, the one jobs write by default, or any."""
    for path in (chosen, default, *known):
        if path in known:
            return path
    return NO_FIELD


def _queue(ctx: Any) -> ReviewQueue:
    """Returns the captions of the view, or of the sample that is open."""
    settings = _sessions.of(ctx).settings
    key = (_scope(ctx), settings.captions, settings.order)
    queue = _queues.get(key)
    if queue is None:
        samples = ctx.view
        if ctx.current_sample is not None:
            samples = samples.select(ctx.current_sample)
        queue = ReviewQueue.of(samples, settings.captions, order=settings.order)
        _queues.put(key, queue)
    return queue


def _person(ctx: Any) -> str:
    """Returns who decides: the App's user where it knows one."""
    user = ctx.user
    name = None if user is None else getattr(user, "email", None) or user.id
    return name or history.reviewer()


def _label(ref: Ref | None) -> str:
    return "" if ref is None else ref.label_id


def _scope(ctx: Any) -> str:
    """Identifies what is reviewed, by dataset, view and open sample."""
    request = ctx.request_params
    keys = ("dataset_name", "view", "view_name", "filters", "extended")
    scope = [*(request.get(key) or None for key in keys), ctx.current_sample]
    return sha256(json.dumps(scope, sort_keys=True, default=str).encode()).hexdigest()


def _or_none(field: str) -> str | None:
    return None if field == NO_FIELD else field


def _mark(change: Change) -> None:
    """Updates every view that a caption may be in."""
    for queue in _queues.values():
        queue.mark(change)


def _progress(counts: dict[Review, int]) -> str:
    total = sum(counts.values())
    parts = ", ".join(f"{counts[name]:,} {name}" for name in REVIEWS)
    done = total - counts["unreviewed"]
    share = reviewed_share(counts)
    return f"**{done:,} of {total:,}** reviewed ({share:.0%}): {parts}"
