"""``regioncap triage``: sorts captions into those to keep, to review and to drop."""

from __future__ import annotations

import json

import click

from fiftyone_regioncap.core.markdown import plain


@click.command()
@click.option("--dataset", "name", required=True, help="Whose captions.")
@click.option("--field", default="captions", show_default=True, help="The captions.")
@click.option(
    "--score",
    default="confidence",
    show_default=True,
    help="Attribute that is larger for better ones, such as image_text_similarity.",
)
@click.option(
    "--keep", type=float, default=0.8, show_default=True, help="From this score on."
)
@click.option("--drop", type=float, default=0.3, show_default=True, help="Below this.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str, field: str, score: str, keep: float, drop: float, as_json: bool
) -> None:
    """Sorts captions by a score, and says how good that is on the reviewed ones."""
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.analysis.checks import triage
    from fiftyone_regioncap.dataset import videos as datasets

    dataset = datasets.open_dataset(name)
    summary = triage(dataset, field, score=score, keep=keep, drop=drop)
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2))
    else:
        click.echo(plain(summary.to_markdown()))
