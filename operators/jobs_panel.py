"""A panel that lists running and past jobs, stops them and shows what failed."""

from __future__ import annotations

import time
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

from ._jobs import JobLog, JobRecord
from ._layout import NARROW, WRAP, panel_layout

MILLISECONDS_BETWEEN_LOOKS = 2000

NONE_YET = "No job of this dataset was started in the App yet."

WORDS = {
    "running": "running",
    "done": "done",
    "failed": "failed",
    "canceled": "canceled",
}


class JobsPanel(foo.Panel):
    """Lists the jobs of a dataset, newest first."""

    @property
    def config(self) -> foo.PanelConfig:
        """Configuration of the panel in the App."""
        return foo.PanelConfig(
            name="region_jobs",
            label="Caption jobs",
            icon="playlist_play",
            category=Categories.CURATE,
            surfaces="grid modal",
            help_markdown="Running and past jobs: how far they are, what they did and "
            "what failed.",
        )

    def on_load(self, ctx: Any) -> None:
        """Looks at the jobs."""
        self.look(ctx)

    def on_change_dataset(self, ctx: Any) -> None:
        """Looks at the jobs of the other dataset."""
        self.look(ctx)

    def look(self, ctx: Any) -> None:
        """Looks again at how far the jobs are."""
        data = {}
        for number, record in enumerate(_records(ctx)):
            data[f"text_{number}"] = _text(record)
        ctx.panel.set_data(data)

    def cancel(self, ctx: Any) -> None:
        """Asks a job to stop."""
        JobLog(ctx.dataset).cancel(ctx.params["job"])
        ctx.ops.notify("The job stops after the step at hand; what it wrote stays")
        self.look(ctx)

    def undo(self, ctx: Any) -> None:
        """Asks before the captions of a job are taken back."""
        record = JobLog(ctx.dataset).get(ctx.params["job"])
        if record is not None:
            uri = f"{self.plugin_name}/undo_captions"
            ctx.prompt(uri, params={"captions": record.undo}, on_success=self.look)

    def show_failed(self, ctx: Any) -> None:
        """Shows the samples that failed."""
        record = JobLog(ctx.dataset).get(ctx.params["job"])
        if record is not None and record.failed:
            ctx.ops.set_view(ctx.dataset.select(list(record.failed)))

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out."""
        panel = types.Object()
        records = _records(ctx)
        if not records:
            panel.md(NONE_YET, name="none_yet")
        for number, record in enumerate(records):
            panel.md("", name=f"text_{number}")
            undoable = record.undo if number == _last_undoable(records) else None
            runs = record.state == "running" and not record.gone
            if not (runs or record.failed or undoable):
                continue
            row = panel.h_stack(f"buttons_{number}", gap=1, componentsProps=WRAP)
            if runs:
                self._button(row, "cancel", "Cancel", self.cancel, record)
            if record.failed:
                label = f"Show {len(record.failed)} failed"
                self._button(row, "failed", label, self.show_failed, record)
            if undoable:
                self._button(row, "undo", "Undo its captions", self.undo, record)
        if any(record.state == "running" and not record.gone for record in records):
            panel.view(
                "again",
                types.TimerView(
                    interval=MILLISECONDS_BETWEEN_LOOKS, on_interval=self.look
                ),
            )
        else:
            panel.btn("look", "Refresh", on_click=self.look, variant="outlined")
        return types.Property(panel, view=panel_layout(ctx))

    def _button(
        self,
        row: types.Object,
        name: str,
        label: str,
        action: Any,
        record: JobRecord,
    ) -> None:
        row.btn(
            name,
            label,
            on_click=action,
            params={"job": record.id},
            variant="outlined",
            componentsProps=NARROW,
        )


def _last_undoable(records: list[JobRecord]) -> int | None:
    """Returns the place of the last job that wrote captions; older ones are final."""
    ended = ("done", "canceled")
    found = (n for n, one in enumerate(records) if one.undo and one.state in ended)
    return next(found, None)


def _records(ctx: Any) -> list[JobRecord]:
    return [] if ctx.dataset is None else list(JobLog(ctx.dataset))


def _text(record: JobRecord) -> str:
    """Returns what is known of a job, as Markdown."""
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.began))
    state = "stopped: its process is gone" if record.gone else WORDS[record.state]
    lines = [f"**{record.label}**, {began}: {state}"]
    if record.state == "running":
        lines[0] += f", {record.fraction:.0%}"
    if record.message:
        lines.append(record.message)
    return "\n\n".join(lines)
