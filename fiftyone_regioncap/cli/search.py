"""``regioncap search``: finds captions from the shell."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fiftyone_regioncap.search import SearchResults


@click.command()
@click.argument("query")
@click.option("--dataset", "name", required=True, help="Where to search.")
@click.option("--field", default="captions", show_default=True, help="The captions.")
@click.option(
    "-k", type=click.IntRange(1), default=10, show_default=True, help="How many."
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "hybrid", "text", "semantic", "visual"]),
    default="auto",
    show_default=True,
    help="By words (text), by meaning (semantic), both, or by looks (visual).",
)
@click.option(
    "--model",
    help="Folder or hub id of a sentence-transformers model; by looks, of the "
    "captioner that embedded the regions [default: where it was then].",
)
@click.option("--device", help="Where to embed, such as cuda.")
@click.option("--save", help="Save the results as a view of this name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    query: str,
    name: str,
    field: str,
    k: int,
    mode: str,
    model: str | None,
    device: str | None,
    save: str | None,
    as_json: bool,
) -> None:
    """Finds captions: words, "phrases in quotes", and -words to leave out.

    Put a query with a minus in front after two dashes: regioncap search ... -- "-x y"
    """
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.dataset import videos as datasets
    from fiftyone_regioncap.search import search

    dataset = datasets.open_dataset(name)
    results = search(
        dataset,
        query,
        k=k,
        field=field,
        mode=mode,  # type: ignore[arg-type]  # click checked it
        model=model,
        device=device,
        progress=not as_json,
    )
    if save is not None:
        dataset.save_view(save, results.view(), overwrite=True)
    if as_json:
        click.echo(json.dumps(results.to_dict(), indent=2))
    else:
        _show(results)


def _show(results: SearchResults) -> None:
    paths = dict(zip(*results.captions.dataset.values(["id", "filepath"]), strict=True))
    for rank, hit in enumerate(results.hits, start=1):
        click.echo(f"{rank:3}. {hit.score:.3f}  {paths.get(hit.sample_id, '')}")
        click.echo(textwrap.indent(textwrap.fill(hit.caption, 80), " " * 12))
    if not results.hits:
        click.echo("nothing found")
    if results.note is not None:
        click.echo(f"note: {results.note}", err=True)
