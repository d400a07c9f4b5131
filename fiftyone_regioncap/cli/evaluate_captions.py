"""``regioncap evaluate captions``: compares captions with references."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--dataset", "name", required=True, help="Whose captions.")
@click.option("--captions", default="captions", show_default=True, help="Their field.")
@click.option("--references", required=True, help="Field of the references.")
@click.option("--caption-attribute", default="caption", show_default=True)
@click.option("--reference-attribute", default="caption", show_default=True)
@click.option(
    "--metrics",
    default="bleu,meteor,rouge_l,cider,similarity",
    show_default=True,
    help="Also: spice. METEOR and SPICE need Java.",
)
@click.option("--key", default="caption_eval", show_default=True, help="Of the run.")
@click.option("--model", help="Folder or hub id of a sentence-transformers model.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the results as JSON, Markdown and a plot.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str,
    captions: str,
    references: str,
    caption_attribute: str,
    reference_attribute: str,
    metrics: str,
    key: str,
    model: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compares captions with references by the metrics of the literature."""
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.dataset import videos as datasets
    from fiftyone_regioncap.evaluation.caption_runs import evaluate_captions
    from fiftyone_regioncap.search.embedding import DEFAULT_MODEL

    result = evaluate_captions(
        datasets.open_dataset(name),
        references,
        captions=captions,
        key=key,
        metrics=[metric.strip() for metric in metrics.split(",") if metric.strip()],
        caption_attribute=caption_attribute,
        reference_attribute=reference_attribute,
        model=model or DEFAULT_MODEL,
    )
    files = [] if output is None else result.write(output)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    click.echo(result.to_markdown())
    for file in files:
        click.echo(str(file))
