"""Declares the commands of ``regioncap evaluate`` and ``regioncap benchmark``."""

from __future__ import annotations

import json
from typing import Any

import click

from fiftyone_regioncap.cli.commands import command_of
from fiftyone_regioncap.operations import OPERATIONS


@click.group()
def evaluate() -> None:
    """Score captions."""


@click.group()
def benchmark() -> None:
    """Score captioners on the benchmarks of the literature."""


for _operation in OPERATIONS.values():
    for _group in (evaluate, benchmark):
        if _operation.command.startswith(f"{_group.name} "):
            _group.add_command(command_of(_operation))


@benchmark.command("list")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_benchmarks(name: str | None, as_json: bool) -> None:
    """List the benchmarks, or say all of the one called NAME."""
    from fiftyone_regioncap.evaluation.benchmarks.catalog import describe
    from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS

    known = BENCHMARKS.available() if name is None else {name: BENCHMARKS[name]}
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "name": one.name,
                "title": one.title,
                "summary": one.summary,
                "size": one.size,
                "license": one.license,
                "metric": one.metric,
                "files": {file.name: file.source for file in one.files},
            }
            for one in known.values()
        ]
        click.echo(json.dumps(rows, indent=2))
    elif name is not None:
        click.echo(describe(known[name]))
    else:
        for one in known.values():
            click.echo(f"  {one.name:22} {one.summary}")
            click.echo(f"  {'':22} {one.size}; {one.license}")
