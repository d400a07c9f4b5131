"""``regioncap embed-captions``: puts captions on a map."""

from __future__ import annotations

import json

import click

from fiftyone_regioncap.core.markdown import plain


@click.command()
@click.option("--dataset", "name", required=True, help="Whose captions.")
@click.option("--field", default="captions", show_default=True, help="The captions.")
@click.option(
    "--space",
    type=click.Choice(["text", "visual"]),
    default="text",
    show_default=True,
    help="Near is what says the same (text), or what looks the same (visual).",
)
@click.option(
    "--layout",
    type=click.Choice(["umap", "pca"]),
    default="umap",
    show_default=True,
    help="How points are laid out.",
)
@click.option("--key", help="Of the brain run.")
@click.option("--clusters", type=click.IntRange(1), help="Groups.")
@click.option(
    "--duplicate",
    type=click.FloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="Similarity from which captions are nearly the same.",
)
@click.option("--model", help="As for search.")
@click.option("--device", help="Where to embed, such as cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str,
    field: str,
    space: str,
    layout: str,
    key: str | None,
    clusters: int | None,
    duplicate: float,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Puts captions on a map; finds duplicates, outliers and groups."""
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.dataset import videos as datasets
    from fiftyone_regioncap.visualization.maps import embed_captions

    summary = embed_captions(
        datasets.open_dataset(name),
        field,
        space=space,  # type: ignore[arg-type]  # click checked it
        layout=layout,  # type: ignore[arg-type]
        key=key,
        clusters=clusters,
        duplicate=duplicate,
        model=model,
        device=device,
        progress=not as_json,
    )
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2))
    else:
        click.echo(plain(summary.to_markdown()))
