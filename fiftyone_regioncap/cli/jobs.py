"""``regioncap jobs``: what runs, what ran, and how to stop it."""

from __future__ import annotations

import json
from typing import Any

import click

from fiftyone_regioncap.cli.commands import JSON, ensure_database
from fiftyone_regioncap.core.errors import OptionError


@click.group(invoke_without_command=True)
@click.option(
    "--limit", type=click.IntRange(1), default=20, help="Greatest number of jobs."
)
@click.pass_context
def jobs(ctx: click.Context, limit: int, as_json: bool) -> None:
    """List the jobs that run or ran on the database, the last one first."""
    if ctx.invoked_subcommand is not None:
        return
    ensure_database()
    from fiftyone_regioncap.jobs import board

    found = board.jobs(limit)
    if as_json:
        click.echo(json.dumps(found, indent=2, default=str))
    elif not found:
        click.echo("no jobs yet")
    else:
        click.echo("\n".join(map(line_of, found)))


jobs.params.append(JSON)


@jobs.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Stop the job with the id JOB, wherever it runs; what was written stays."""
    ensure_database()
    from fiftyone_regioncap.jobs import board

    if not board.cancel(job):
        raise OptionError(f"no job {job!r} runs; `regioncap jobs` lists them")
    click.echo(f"{job} is asked to stop")


def line_of(job: dict[str, Any]) -> str:
    """Returns a job in a line or more: a line for each of its workers."""
    place = job["dataset"] or "no dataset"
    head = (
        f"{job['id']}  {job['state']:9}  {job['began_at']:%Y-%m-%d %H:%M:%S}  "
        f"{job['name']} on {place}: {', '.join(job['fields']) or 'no fields'}"
    )
    if "fraction" in job:
        head += f", {job['fraction']:.0%}"
    board = job.get("board") or {}
    parts = {name: one.get("progress") or {} for name, one in board.items()}
    lines = [head, *(f"    {name}: {_counts(part)}" for name, part in parts.items())]
    if "progress" in job:
        lines.append(f"    {_counts(job['progress'])}")
    if "error" in job:
        lines.append(f"    {job['error']}")
    return "\n".join(lines)


def _counts(progress: dict[str, Any]) -> str:
    shown = {
        "frames": "frames_seen",
        "captions": "captions_seen",
        "failed": "failed",
        "frames/s": "frame_rate",
        "captions/s": "caption_rate",
    }
    counts = [
        f"{progress[key]:g} {name}"
        for name, key in shown.items()
        if progress.get(key) is not None
    ]
    return ", ".join(counts) or "starting"
