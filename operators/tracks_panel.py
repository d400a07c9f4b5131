"""A panel beside a video: its objects, what is said of them now, and their tracks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.clips as foc
import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.dataset import fields
from fiftyone_regioncap.dataset.captions import CaptionRecord, read_captions
from fiftyone_regioncap.dataset.tracks import read_tracks
from fiftyone_regioncap.operations import OPERATIONS

from ._layout import NARROW, WRAP, panel_layout
from ._recent import Sessions

MILLISECONDS_TO_CONNECT = 400
"""Time until the panel hears of the video's frames."""

FRAMES_AT_ONCE = 20_000
"""Frames of all objects together that a panel is sent as it opens."""

NOTHING = "*not described here*"

EDITS = {
    "split_track": "Split",
    "merge_tracks": "Merge",
    "renumber_track": "Renumber",
    "delete_track": "Delete",
}
"""The changes of a track by the names of their operations."""


@dataclass(frozen=True)
class _Row:
    """An object of the video.

    Attributes:
        number: Its number.
        name: Its number and label.
        first: First frame that it is on, counted from 1.
        last: Last frame that it is on.
        instance: Id of its instance; None where it has none.
        captions: Its captions, by window.
    """

    number: int
    name: str
    first: int
    last: int
    instance: str | None
    captions: tuple[CaptionRecord, ...]

    def said(self, frame: int) -> str:
        """Returns what is said of it on a frame, as Markdown.

        Of several captions the one that begins last counts, as on the labels.
        """
        for record in reversed(self.captions):
            if record.support[0] < frame <= record.support[1] + 1 and record.caption:
                text = escape(record.caption)
                return f"~~{text}~~" if record.review == "rejected" else text
        return NOTHING


@dataclass
class _Session:
    """What a panel shows.

    Attributes:
        sample: Id of the open sample; None before one is open.
        tracks: Field of the tracks.
        captions: Field of the captions; None where there is none.
        frames: Number of frames of the video.
        first: First frame that is shown, counted from 1; of a clip, its own.
        rows: Its objects.
        problem: Why nothing is shown; None when something is.
        connected: Whether the panel hears of the video's frames.
    """

    sample: str | None = None
    tracks: str = fields.TRACKS
    captions: str | None = None
    frames: int = 1
    first: int = 1
    rows: list[_Row] = field(default_factory=list)
    problem: str | None = None
    connected: bool = False

    def said(self, first: int, last: int) -> dict[str, dict[str, dict[str, str]]]:
        """Returns what is said of each object on frames, counted from 1."""
        return {
            str(frame): {
                f"o{row.number}": {"text": row.said(frame)} for row in self.rows
            }
            for frame in range(first, last + 1)
        }


# The App makes a panel object an event.
_sessions = Sessions(_Session)


class TracksPanel(foo.Panel):
    """Shows the objects of the open video, and follows it while it plays."""

    @property
    def config(self) -> foo.PanelConfig:
        """Configuration of the panel in the App."""
        return foo.PanelConfig(
            name="region_tracks",
            label="Tracks",
            icon="view_timeline",
            category=Categories.CURATE,
            surfaces="modal",
            help_markdown=(
                "The objects of the open video and what is said of each on the frame "
                "that is shown. Point at a row to light its object up, click its name "
                "to go to its first frame, or a caption's frames to go there."
            ),
        )

    def on_load(self, ctx: Any) -> None:
        """Reads the open sample; a page that was reloaded has no timeline yet."""
        _sessions.of(ctx).connected = False
        self.look(ctx)

    def on_change_current_sample(self, ctx: Any) -> None:
        """Reads the sample that was opened."""
        if _sessions.of(ctx).sample != ctx.current_sample:
            self.look(ctx)

    def look(self, ctx: Any) -> None:
        """Reads the sample anew."""
        session = _sessions.of(ctx)
        session.connected = session.sample == ctx.current_sample and session.connected
        session.sample, session.rows, session.problem = ctx.current_sample, [], None
        try:
            self._read(ctx, session)
        except RegionCapError as error:
            session.problem = str(error)
            return
        # FiftyOne shows nothing on a frame that is shown before what is said on it is
        # there, so the first frames, which are all of most videos, are sent at once.
        count = FRAMES_AT_ONCE // max(1, len(session.rows))
        last = min(session.frames, session.first + count)
        said = session.said(session.first, last)
        now = said.get(str(session.first), {})
        ctx.panel.set_data({"now": now, "frames": {"frames": said}})

    def _read(self, ctx: Any, session: _Session) -> None:
        dataset = ctx.dataset
        tracks = fields.track_fields(dataset)
        if session.sample is None or not tracks:
            session.problem = (
                "Open a video whose objects are tracked; **Propagate** tracks those "
                "that are marked."
            )
            return
        session.tracks = session.tracks if session.tracks in tracks else tracks[0]
        known = fields.caption_fields(dataset)
        session.captions = next(
            (name for name in ("captions", *known) if name in known), None
        )
        shown = ctx.view.select(session.sample).first()
        clip = isinstance(ctx.view, foc.ClipsView)
        session.first = shown.support[0] if clip else 1
        sample = dataset[shown.sample_id if clip else shown.id]
        found = read_tracks(sample, session.tracks)
        records = (
            [] if session.captions is None else read_captions(sample, session.captions)
        )
        last = max((int(track.frames[-1]) for track in found), default=0)
        metadata = sample.metadata
        count = None if metadata is None else metadata.total_frame_count
        session.frames = count or last + 1
        for track in found:
            name = f"#{track.object_id} {track.label or ''}".strip()
            own = tuple(r for r in records if r.index == track.object_id)
            span = int(track.frames[0]) + 1, int(track.frames[-1]) + 1
            row = _Row(track.object_id, name, *span, track.instance, own)
            session.rows.append(row)

    def connect(self, ctx: Any) -> None:
        """Takes the player's own timeline away, which had to be there once."""
        _sessions.of(ctx).connected = True

    def load_frames(self, ctx: Any) -> None:
        """Says what is said on a range of frames, before they are shown."""
        session = _sessions.of(ctx)
        first, last = ctx.params["range"]
        ctx.panel.set_data(
            {
                f"frames.frames[{frame}]": said
                for frame, said in session.said(first, last).items()
            }
        )
        ctx.panel.set_state("frames.signature", f"{session.sample} {first} {last}")

    def go(self, ctx: Any) -> None:
        """Goes to a frame."""
        frame = ctx.params["frame"]
        show_frame(ctx, self.plugin_name, _sessions.of(ctx).sample, frame)

    def edit(self, ctx: Any) -> None:
        """Asks how a track shall be changed."""
        operation = OPERATIONS[ctx.params["operation"]]
        asked = {
            "scope": "sample",
            "tracks": _sessions.of(ctx).tracks,
            "object_id": str(ctx.params["number"]),
        }
        uri = f"{self.plugin_name}/{operation.operator}"
        ctx.prompt(uri, params=asked, on_success=self.look)

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out; what is said now is set frame by frame."""
        panel = types.Object()
        session = _sessions.of(ctx)
        if session.problem or not session.rows:
            text = session.problem or "No object of this video is tracked."
            panel.md(text, name="problem_text")
        else:
            self._render_player(panel, session)
            now = panel.v_stack("now", gap=2)
            for row in session.rows:
                self._render_row(now, row)
        panel.btn("look", "Refresh", on_click=self.look, variant="outlined")
        return types.Property(panel, view=panel_layout(ctx))

    def _render_player(self, panel: types.Object, session: _Session) -> None:
        name = f"timeline-{session.sample}"
        if not session.connected:
            # Only a timeline view makes the timeline that the player reports to, but
            # while it is there, it takes the player's keys.
            hidden = {"sx": {"display": "none"}}
            stack = panel.v_stack(
                "player", componentsProps={"container": hidden, "grid": hidden}
            )
            stack.view(
                "timeline",
                types.TimelineView(timeline_name=name, total_frames=session.frames),
            )
            panel.view(
                "connecting",
                types.TimerView(
                    timeout=MILLISECONDS_TO_CONNECT, on_timeout=self.connect
                ),
            )
        panel.obj(
            "frames",
            view=types.FrameLoaderView(
                timeline_name=name, on_load_range=self.load_frames, target="now"
            ),
        )

    def _render_row(self, now: types.Object, row: _Row) -> None:
        named = {"container": {"data-regioncap-instance": row.instance or ""}}
        line = now.v_stack(f"o{row.number}", gap=0.5, componentsProps=named)
        head = line.h_stack("head", gap=1, componentsProps=WRAP)
        frames = f"{row.name}, frames {row.first} to {row.last}"
        self._button(head, "go", frames, self.go, {"frame": row.first}, "contained")
        for name, label in EDITS.items():
            params = {"operation": name, "number": row.number}
            self._button(head, name, label, self.edit, params)
        line.md("", name="text")
        if len(row.captions) > 1:
            windows = line.h_stack("windows", gap=0.5, componentsProps=WRAP)
            for record in row.captions:
                first, last = record.support[0] + 1, record.support[1] + 1
                label = f"{first}-{last}"
                params = {"frame": first}
                name = f"w{first}_{last}"
                self._button(windows, name, label, self.go, params, "text")

    def _button(
        self,
        row: types.Object,
        name: str,
        label: str,
        action: Any,
        params: dict[str, Any],
        variant: str = "outlined",
    ) -> None:
        row.btn(
            name,
            label,
            on_click=action,
            params=params,
            variant=variant,
            componentsProps=NARROW,
        )


def show_frame(ctx: Any, plugin: str, sample: str | None, frame: int) -> None:
    """Goes to a frame of a video, once it is open.

    Args:
        ctx: The execution context.
        plugin: Name of the plugin.
        sample: Id of the sample; of a clip, the clip's.
        frame: The frame, counted from 1.
    """
    ctx.trigger(f"{plugin}/show_frame", {"sample": sample, "frame": frame})
