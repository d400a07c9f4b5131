"""``regioncap caption-everything``: describes all parts of pictures."""

from __future__ import annotations

import json
import sys

import click


@click.command()
@click.option("--dataset", "name", required=True, help="Of images or videos.")
@click.option("--output", default="everything", show_default=True, help="For parts.")
@click.option("--query", help="A text to map on the pictures.")
@click.option("--heatmap", default="similarity", show_default=True, help="For maps.")
@click.option(
    "--every",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Of videos, look at every so many frames.",
)
@click.option(
    "--count",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Parts of a picture at most.",
)
@click.option("--weights", help="Of Patch-ioner: a folder or a hub id.")
@click.option(
    "--propagator",
    help="Whose model finds the parts, such as mobilesam "
    "[default: clusters of like patches].",
)
@click.option("--propagator-weights", help="A folder, file or hub id.")
@click.option("--device", help="Such as cuda or cpu.")
@click.option("--overwrite", is_flag=True, help="Do again what is done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str,
    output: str,
    query: str | None,
    heatmap: str,
    every: int,
    count: int,
    weights: str | None,
    propagator: str | None,
    propagator_weights: str | None,
    device: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Describes all parts of images or frames, and maps where a text is on them."""
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.cli.main import SOME_FAILED
    from fiftyone_regioncap.dataset import videos as datasets
    from fiftyone_regioncap.jobs.dense_captions import (
        DenseCaptionOptions,
        caption_everything,
    )

    summary = caption_everything(
        datasets.open_dataset(name),
        options=DenseCaptionOptions(
            output=output,
            every=every,
            count=count,
            query=query,
            heatmap=heatmap,
            overwrite=overwrite,
        ),
        weights=weights,
        device=device,
        propagator=propagator,
        propagator_weights=propagator_weights,
        progress=sys.stderr.isatty() or not as_json,
    )
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2))
    else:
        click.echo(summary.to_markdown())
    if not summary.ok:
        sys.exit(SOME_FAILED)
