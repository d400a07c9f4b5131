"""``regioncap check``: finds captions that are probably bad."""

from __future__ import annotations

import json

import click

from fiftyone_regioncap.core.markdown import plain


@click.command()
@click.option("--dataset", "name", required=True, help="Whose captions.")
@click.option("--field", default="captions", show_default=True, help="The captions.")
@click.option(
    "--similarity",
    is_flag=True,
    help="Compare captions with how their regions look too, where these were embedded.",
)
@click.option(
    "--model",
    help="For that: folder or hub id of the captioner that embedded the regions "
    "[default: where it was then].",
)
@click.option("--device", help="For that, such as cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str,
    field: str,
    similarity: bool,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Finds captions that contradict measurements, each other, or themselves."""
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.analysis.checks import check_captions
    from fiftyone_regioncap.dataset import videos as datasets

    summary = check_captions(
        datasets.open_dataset(name),
        field,
        similarity=similarity,
        model=model,
        device=device,
    )
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2))
    else:
        click.echo(plain(summary.to_markdown()))
