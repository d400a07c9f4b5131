"""A panel that lists running and past jobs, stops them and shows what failed."""

from __future__ import annotations

from datetime import timezone
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types
from fiftyone.operators.categories import Categories

from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.operations import OPERATIONS

from ._layout import NARROW, WRAP, panel_layout

MILLISECONDS_BETWEEN_LOOKS = 2000

MILLISECONDS_AT_REST = 10_000
"""Time between looks while no job runs: one may begin elsewhere."""

SHOWN = 30
"""Number of jobs that the panel lists."""

NONE_YET = "No job ran on this dataset yet."


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
        texts = {f"text_{n}": _text(job) for n, job in enumerate(_jobs(ctx))}
        ctx.panel.set_data(texts)

    def cancel(self, ctx: Any) -> None:
        """Asks a job to stop."""
        from fiftyone_regioncap.jobs import board

        board.cancel(ctx.params["job"])
        ctx.ops.notify("The job stops after the step at hand; what it wrote stays")
        self.look(ctx)

    def undo(self, ctx: Any) -> None:
        """Asks before the captions of a job are taken back."""
        uri = f"{self.plugin_name}/undo_captions"
        params = {"captions": ctx.params["captions"]}
        ctx.prompt(uri, params=params, on_success=self.look)

    def show_failed(self, ctx: Any) -> None:
        """Shows the samples that failed."""
        for job in _jobs(ctx):
            if job["id"] == ctx.params["job"]:
                ctx.ops.set_view(ctx.dataset.select(job["failed"]))

    def render(self, ctx: Any) -> types.Property:
        """Lays the panel out."""
        panel = types.Object()
        jobs = _jobs(ctx)
        if not jobs:
            panel.md(NONE_YET, name="none_yet")
        undoable = next(filter(_can_be_undone, jobs), None)
        for number, job in enumerate(jobs):
            panel.md("", name=f"text_{number}")
            row = types.Object()
            if job["state"] == "running":
                self._button(row, "cancel", "Cancel", self.cancel, job=job["id"])
            if failed := job.get("failed"):
                label = f"Show {len(failed)} failed"
                self._button(row, "failed", label, self.show_failed, job=job["id"])
            if job is undoable:
                field = job["fields"][-1]
                label = "Undo its captions"
                self._button(row, "undo", label, self.undo, captions=field)
            if row.properties:
                stack = types.HStackView(gap=1, componentsProps=WRAP)
                panel.define_property(f"buttons_{number}", row, view=stack)
        pause = MILLISECONDS_BETWEEN_LOOKS
        if not any(job["state"] == "running" for job in jobs):
            pause = MILLISECONDS_AT_REST
            panel.btn("look", "Refresh", on_click=self.look, variant="outlined")
        panel.view("again", types.TimerView(interval=pause, on_interval=self.look))
        return types.Property(panel, view=panel_layout(ctx))

    def _button(
        self, row: types.Object, name: str, label: str, action: Any, **params: str
    ) -> None:
        row.btn(
            name,
            label,
            on_click=action,
            params=params,
            variant="outlined",
            componentsProps=NARROW,
        )


def _jobs(ctx: Any) -> list[dict[str, Any]]:
    from fiftyone_regioncap.jobs import board

    return [] if ctx.dataset is None else board.jobs(SHOWN, ctx.dataset._doc.id)


def _can_be_undone(job: dict[str, Any]) -> bool:
    """Returns whether a job's captions can be taken back, if none came after it."""
    operation = OPERATIONS.get(job["name"])
    captioned = operation is not None and operation.stages[-1:] == ("caption",)
    return captioned and job["state"] in ("done", "canceled")


def _text(job: dict[str, Any]) -> str:
    """Returns what is known of a job, as Markdown."""
    operation = OPERATIONS.get(job["name"])
    label = escape(job["name"]) if operation is None else operation.label
    began = job["began_at"].replace(tzinfo=timezone.utc).astimezone()
    state = job["state"]
    if state == "running":
        state += f", {job.get('fraction', 0):.0%}"
    elif state == "died":
        state = "stopped: its process is gone"
    more = job.get("summary")
    if more is None:
        more = escape(job.get("error") or job.get("message") or "")
    return f"**{label}**, {began:%Y-%m-%d %H:%M}: {state}\n\n{more}"
