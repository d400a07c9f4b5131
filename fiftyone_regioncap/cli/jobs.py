"""``regioncap jobs``: what runs, what ran, and how to stop it."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    from fiftyone_regioncap.jobs import board

    place = job["dataset"] or "no dataset"
    head = (
        f"{job['id']}  {job['state']:9}  {job['began_at']:%Y-%m-%d %H:%M:%S}  "
        f"{job['name']} on {place}: {', '.join(job['fields']) or 'no fields'}"
    )
    if "fraction" in job:
        head += f", {job['fraction']:.0%}"
    lines = [f"    {k}: {_counts(v)}" for k, v in board.progress_of(job).items()]
    if "error" in job:
        lines.append(f"    {job['error']}")
    return "\n".join([head, *lines])


_COUNTS = {
    "frames": "frames_seen",
    "captions": "captions_seen",
    "failed": "failed",
    "frames/s": "frame_rate",
    "captions/s": "caption_rate",
}


def _counts(progress: Mapping[str, Any]) -> str:
    """Returns what a worker has done, how fast, and what waits in it."""
    parts = [
        f"{progress[key]:g} {name}"
        for name, key in _COUNTS.items()
        if progress.get(key) is not None
    ]
    if progress.get("best_token_rate"):
        rate, best = progress["token_rate"], progress["best_token_rate"]
        parts.append(f"{rate:g} tokens/s (at best {best:g})")
    for stage, one in (progress.get("by_stage") or {}).items():
        if one["samples"] and one["seconds"]:
            rate = one["samples"] / one["seconds"]
            parts.append(f"{stage} {rate:.2g} samples/s")
    for stage, queue in (progress.get("queues") or {}).items():
        size = queue["bytes"] / (1 << 20)
        parts.append(f"{queue['items']} clips ({size:.0f} MB) wait to {stage}")
    return ", ".join(parts) or "starting"
