"""Declares the commands of ``regioncap evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fiftyone_regioncap.cli import evaluate_patchioner
from fiftyone_regioncap.cli.commands import command_of
from fiftyone_regioncap.operations import OPERATIONS


@click.group()
def evaluate() -> None:
    """Score captions."""


evaluate.add_command(command_of(OPERATIONS["evaluate_captions"]), "captions")
evaluate.add_command(evaluate_patchioner.command, "patchioner")


@evaluate.command("dlc-bench")
@click.option("--captions", type=click.Path(path_type=Path), required=True)
@click.option("--questions", type=click.Path(path_type=Path), required=True)
@click.option("--class-names", type=click.Path(path_type=Path))
@click.option("--judge", required=True, help="An endpoint's URL, or stored answers.")
@click.option("--model", help="That the endpoint shall use.")
@click.option("--cache", type=click.Path(path_type=Path), help="Keeps its answers.")
@click.option("--default", help="For regions without a caption.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dlc_bench(
    captions: Path,
    questions: Path,
    class_names: Path | None,
    judge: str,
    model: str | None,
    cache: Path | None,
    default: str | None,
    as_json: bool,
) -> None:
    """Scores a file of captions, by annotation id, on DLC-Bench."""
    from fiftyone_regioncap.evaluation.dlc_bench import run

    report = run(
        captions,
        questions,
        judge,
        class_names=class_names,
        cache_file=cache,
        model=model,
        default=default,
    )
    if as_json:
        scores = {
            "positive": report.positive,
            "negative": report.negative,
            "average": report.average,
            "unrecognized": report.unrecognized,
            "unreadable": report.unreadable,
        }
        click.echo(json.dumps(scores, indent=2))
    else:
        click.echo(str(report))
