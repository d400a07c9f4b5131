"""``regioncap embed-regions``: embeds the regions of captions that others wrote."""

from __future__ import annotations

import json
import sys

import click


@click.command()
@click.option("--dataset", "name", required=True, help="Of videos or images.")
@click.option("--field", default="captions", show_default=True, help="The captions.")
@click.option(
    "--tracks",
    help="Where a video's objects are.  [default: the first field of tracks]",
)
@click.option("--captioner", default="patchioner", show_default=True, help="By whom.")
@click.option("--weights", help="Of the captioner: a folder, file or hub id.")
@click.option("--device", help="Such as cuda or cpu.")
@click.option("--overwrite", is_flag=True, help="Embed again what it has embedded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str,
    field: str,
    tracks: str | None,
    captioner: str,
    weights: str | None,
    device: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Embeds the regions of captions by how they look, whoever wrote the captions."""
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.api import embed_regions
    from fiftyone_regioncap.dataset import videos as datasets

    summary = embed_regions(
        datasets.open_dataset(name),
        field,
        tracks=tracks,
        captioner=captioner,
        weights=weights,
        device=device,
        overwrite=overwrite,
        progress=sys.stderr.isatty() or not as_json,
    )
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2))
    else:
        click.echo(summary.to_markdown().replace("**", ""))
    if not summary.ok:
        sys.exit(1)
