"""``regioncap make-unique``: captions that tell objects apart, from the shell."""

from __future__ import annotations

import json
import sys

import click

from fiftyone_regioncap.core.markdown import plain


@click.command()
@click.option("--dataset", "name", required=True, help="Of videos or images.")
@click.option("--field", default="captions", show_default=True, help="The captions.")
@click.option(
    "--tracks",
    help="Where a video's objects are.  [default: the first field of tracks]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Share of words in common from which captions are alike.",
)
@click.option("--captioner", help="Asked for differences first; else only measured.")
@click.option("--captioner-weights", help="A folder, file or hub id.")
@click.option("--device", help="Such as cuda or cpu.")
@click.option(
    "--parts", is_flag=True, help="Also write which masks are parts of which."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str,
    field: str,
    tracks: str | None,
    threshold: float,
    captioner: str | None,
    captioner_weights: str | None,
    device: str | None,
    parts: bool,
    as_json: bool,
) -> None:
    """States what tells objects apart that have nearly the same captions."""
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap.analysis.hierarchy import write_hierarchy
    from fiftyone_regioncap.analysis.unique import make_unique
    from fiftyone_regioncap.dataset import videos as datasets
    from fiftyone_regioncap.dataset.fields import track_fields
    from fiftyone_regioncap.models.registry import AUTO, ModelSpec

    dataset = datasets.open_dataset(name)
    tracks = tracks or next(iter(track_fields(dataset)), None)
    report = make_unique(
        dataset,
        field,
        tracks_field=tracks,
        threshold=threshold,
        captioner=captioner,
        captioner_load=ModelSpec(AUTO, captioner_weights, device),
        progress=not as_json,
    )
    results = report.to_dict()
    lines = [plain(report.to_markdown())]
    if parts:
        masks = tracks or field
        results["parts"] = sum(
            write_hierarchy(dataset[sample_id], masks)
            for sample_id in dataset.values("id")
        )
        lines.append(f"- {results['parts']} labels of {masks} are parts of others")
    click.echo(json.dumps(results, indent=2) if as_json else "\n".join(lines))
    if not report.ok:
        sys.exit(1)
