"""``regioncap export``: writes captions in the formats of others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fiftyone_regioncap.exporters import ExportSummary

SOME_FAILED = 1


def _list_formats(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from fiftyone_regioncap.exporters import FORMATS, importable_formats

    importable = importable_formats()
    for name, found in FORMATS.available().items():
        note = "; can be imported" * (name in importable)
        click.echo(f"{name:18}{found.summary}{note}")
    ctx.exit()


def _parse_option(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """``key=value`` pairs; values are JSON, or else texts."""
    options: dict[str, Any] = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


@click.command(name="export")
@click.option("--dataset", "name", required=True, help="What to export.")
@click.option("--view", help="Only what this saved view shows.")
@click.option("--format", "format_", required=True, help="See --formats.")
@click.option(
    "--formats",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_formats,
    help="List the formats and stop.",
)
@click.option(
    "--to", "path", required=True, type=click.Path(path_type=Path), help="Folder."
)
@click.option(
    "--option",
    "options",
    multiple=True,
    callback=_parse_option,
    metavar="KEY=VALUE",
    help="Of the format, such as stride=1 or prompts='[\"What is <region>?\"]'.",
)
@click.option("--tracks", default="frames.tracks", show_default=True)
@click.option("--captions", default="captions", show_default=True)
@click.option("--masks-only", is_flag=True, help="Leave captions out.")
@click.option(
    "--review",
    "reviews",
    multiple=True,
    type=click.Choice(["unreviewed", "accepted", "edited", "rejected"]),
    help="Only captions in this state [default: all but rejected].",
)
@click.option("--min-confidence", type=float, help="Leave less sure captions out.")
@click.option("--min-words", type=int, default=1, help="Leave shorter captions out.")
@click.option("--max-words", type=int, help="Leave longer captions out.")
@click.option("--min-frames", type=int, default=1, help="Leave shorter tracks out.")
@click.option("--uncaptioned", is_flag=True, help="Keep tracks without a caption.")
@click.option(
    "--media",
    type=click.Choice(["copy", "link", "none"]),
    default="copy",
    show_default=True,
    help="What to do with videos and images.",
)
@click.option("--clips", is_flag=True, help="Cut the frames of each caption out.")
@click.option("--val", type=float, default=0.0, help="Share of the videos for val/.")
@click.option("--seed", type=int, default=0, help="Which videos these are.")
@click.option(
    "--overwrite", is_flag=True, help="Replace an earlier export in the folder."
)
@click.option("--workers", type=int, default=1, help="Processes to use.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: str,
    view: str | None,
    format_: str,
    path: Path,
    captions: str,
    masks_only: bool,
    reviews: tuple[str, ...],
    clips: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Writes tracks and captions in a format that other tools read.

    The folder appears when it is whole; a stopped export goes on where it was when the
    same command is given again.
    """
    from fiftyone_regioncap.system import database

    database.ensure()
    from fiftyone_regioncap import exporters
    from fiftyone_regioncap.dataset import videos as datasets

    samples: Any = datasets.open_dataset(name)
    if view is not None:
        samples = _saved_view(samples, view)
    if reviews:
        options["reviews"] = reviews
    if clips:
        samples = samples.to_clips(captions)
    summary = exporters.export(
        samples,
        format_,
        path,
        captions=None if masks_only else captions,
        cut=clips,
        progress=sys.stderr.isatty() or not as_json,
        **options,
    )
    show(summary, as_json)


def _saved_view(dataset: Any, name: str) -> Any:
    if name not in dataset.list_saved_views():
        known = ", ".join(dataset.list_saved_views()) or "none yet"
        raise click.BadParameter(f"there is no saved view {name!r}; there are: {known}")
    return dataset.load_saved_view(name)


def show(summary: ExportSummary, as_json: bool) -> None:
    """Prints what was done, and leaves with the exit code."""
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo(summary.to_markdown().replace("**", ""))
    sys.exit(0 if summary.ok else SOME_FAILED)
