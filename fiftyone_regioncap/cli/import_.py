"""``regioncap import``: reads captions of other tools back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fiftyone_regioncap.cli.export import show


@click.command(name="import")
@click.option("--dataset", "name", required=True, help="Whose videos they are of.")
@click.option("--format", "format_", required=True, help="See export --formats.")
@click.option(
    "--from",
    "path",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="The exported folder, or its main file.",
)
@click.option("--tracks", default="frames.tracks", show_default=True)
@click.option("--captions", default="captions", show_default=True)
@click.option(
    "--masks",
    "mask_storage",
    type=click.Choice(["auto", "inline", "disk"]),
    default="auto",
    show_default=True,
    help="Where masks are kept.",
)
@click.option("--output-dir", help="Folder for masks on disk.")
@click.option("--overwrite", is_flag=True, help="Replace reviewed captions too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, format_: str, path: Path, as_json: bool, **options: Any) -> None:
    """Reads tracks and captions into the fields of a dataset's videos.

    Videos are found by the names of their files. One that doesn't fit is left as it is,
    and the others are imported.
    """
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap import exporters
    from fiftyone_regioncap.dataset import videos as datasets

    summary = exporters.import_captions(
        datasets.open_dataset(name),
        format_,
        path,
        progress=sys.stderr.isatty() or not as_json,
        **options,
    )
    show(summary, as_json)
