"""The command line: ``regioncap ...``.

Exit codes: 0 all done; 1 some samples failed, the others are done; 2 wrong usage;
3 nothing could be done; 130 cancelled, and the same command goes on from there.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.core.errors import Cancelled, RegionCapError
from fiftyone_regioncap.core.types import Prompt

if TYPE_CHECKING:
    import fiftyone as fo

    from fiftyone_regioncap.jobs import Summary

SOME_FAILED = 1
NOTHING_DONE = 3
CANCELLED = 130

F = TypeVar("F", bound=Callable[..., Any])


LAZY: dict[str, str] = {
    "caption-everything": "fiftyone_regioncap.cli.caption_everything:command",
    "check": "fiftyone_regioncap.cli.check:command",
    "embed-captions": "fiftyone_regioncap.cli.embed_captions:command",
    "embed-regions": "fiftyone_regioncap.cli.embed_regions:command",
    "export": "fiftyone_regioncap.cli.export:command",
    "import": "fiftyone_regioncap.cli.import_:command",
    "make-unique": "fiftyone_regioncap.cli.make_unique:command",
    "search": "fiftyone_regioncap.cli.search:command",
    "evaluate": "fiftyone_regioncap.cli.evaluate:evaluate",
    "serve": "fiftyone_regioncap.cli.serve:serve",
    "train-decoder": "fiftyone_regioncap.cli.train_decoder:train_decoder",
    "triage": "fiftyone_regioncap.cli.triage:command",
}
"""Subcommands in modules of their own, ``"module:attribute"`` by name."""


class _Group(click.Group):
    """Turns this package's errors into one line and an exit code.

    Subcommands of other modules are imported when they are used, so that
    ``regioncap --help`` answers at once.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in LAZY:
            return super().get_command(ctx, cmd_name)
        module, attribute = LAZY[cmd_name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Cancelled, KeyboardInterrupt):
            click.echo("cancelled; the same command goes on from here", err=True)
            sys.exit(CANCELLED)
        except RegionCapError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(NOTHING_DONE)


class _Numbers(click.ParamType):
    """Comma-separated numbers."""

    def __init__(self, count: int, name: str) -> None:
        self.name = name
        self._count = count

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parses ``value``; fails with what was expected."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != self._count:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return numbers


class _Setting(click.ParamType):
    """A name and a JSON value; what is no JSON is text."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Parses ``value``; fails when there is no name."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not (equals and name.isidentifier()):
            self.fail(f"{value!r} is not name=value", param, ctx)
        try:
            return name, json.loads(text)
        except json.JSONDecodeError:
            return name, text


class _Window(click.ParamType):
    """A number of frames, or ``change``."""

    name = "frames|change"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Parses ``value``; fails when it is neither."""
        if value == "change" or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of frames nor change", param, ctx)
        return int(value)


SETTING = _Setting()
WINDOW = _Window()
BOX = _Numbers(4, "x1,y1,x2,y2")
POINT = _Numbers(2, "x,y")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Show log messages.")
def main(verbose: bool) -> None:
    """Turns videos into FiftyOne datasets of tracked, described objects."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)


def _propagate_options(command: F) -> F:
    for option in reversed(
        [
            click.option("--propagator", help="See `regioncap models`."),
            click.option("--propagator-weights", help="A folder, file or hub id."),
            click.option(
                "--propagator-option",
                type=SETTING,
                multiple=True,
                help="What only it knows, such as image_size=512.",
            ),
            click.option(
                "--direction",
                type=click.Choice(["forward", "backward", "both"]),
                default="both",
                show_default=True,
                help="Which way from the prompts.",
            ),
            click.option("--start", type=int, default=0, help="First frame, from 0."),
            click.option("--stop", type=int, help="One past the last frame."),
            click.option("--overlap", is_flag=True, help="Objects may share pixels."),
            click.option("--max-frames", type=int, help="To follow from a prompt."),
            click.option(
                "--scene-cuts",
                type=click.Choice(["ignore", "stop", "redetect"]),
                default="ignore",
                show_default=True,
                help="What to do at one.",
            ),
            click.option(
                "--min-score", type=float, help="Below it for long, a track ends."
            ),
            click.option(
                "--patience", type=int, default=5, show_default=True, help="How long."
            ),
            click.option(
                "--masks",
                "mask_storage",
                type=click.Choice(["auto", "inline", "disk"]),
                default="auto",
                show_default=True,
                help="Where masks are kept.",
            ),
            click.option("--output-dir", help="Folder for masks on disk."),
        ]
    ):
        command = option(command)
    return command


def _caption_options(command: F) -> F:
    for option in reversed(
        [
            click.option("--captioner", help="See `regioncap models`."),
            click.option("--captioner-weights", help="A folder, file or hub id."),
            click.option(
                "--captioner-option",
                type=SETTING,
                multiple=True,
                help="What only it knows, such as max_new_tokens=256.",
            ),
            click.option("--prompt", help="A prompt's name, or a text of your own."),
            click.option(
                "--window",
                type=WINDOW,
                help="A caption for every so many frames, or at every `change`.",
            ),
            click.option(
                "--summary", is_flag=True, help="And one of the whole, of theirs."
            ),
        ]
    ):
        command = option(command)
    return command


def _common_options(command: F) -> F:
    for option in reversed(
        [
            click.option("--weights", help="For the one model that needs them."),
            click.option("--device", help="Such as cuda or cpu."),
            click.option(
                "--accept-license",
                is_flag=True,
                help="Accept the weights' license; `regioncap models` names it.",
            ),
            click.option("--overwrite", is_flag=True, help="Do again what is done."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        ]
    ):
        command = option(command)
    return command


@main.command()
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--box", "boxes", type=BOX, multiple=True, help="In pixels.")
@click.option("--point", "points", type=POINT, multiple=True, help="On the object.")
@click.option("--not-point", "off", type=POINT, multiple=True, help="Off the object.")
@click.option("--everything", is_flag=True, help="Find the objects first.")
@click.option("--label", "names", multiple=True, help="What the object is.")
@click.option("--at", "frames", type=int, multiple=True, help="Frame, from 0.")
@click.option("--dataset", "name", help="Dataset to write to [default: the video's].")
@click.option("--sheet", type=click.Path(path_type=Path), help="Contact sheet (PNG).")
@_propagate_options
@_caption_options
@_common_options
def run(
    video: Path,
    boxes: Sequence[tuple[float, ...]],
    points: Sequence[tuple[float, ...]],
    off: Sequence[tuple[float, ...]],
    everything: bool,
    names: Sequence[str],
    frames: Sequence[int],
    name: str | None,
    sheet: Path | None,
    **options: Any,
) -> None:
    """Masks and describes the marked objects of VIDEO, or of a folder's videos.

    Each --box is an object of its own; the n-th --label and --at belong to the n-th
    box, and a single one belongs to all. All --point together mark one object. With
    --everything, the objects are found by the propagator's model.
    """
    if everything and (boxes or points):
        raise click.UsageError("--everything finds the objects; give no box or point")
    prompts = [] if everything else _prompts(boxes, points, off, names, frames)
    _ensure_database()
    from fiftyone_regioncap.dataset import videos as datasets

    videos = datasets.find_videos(video)
    name = name or f"regioncap-{video.stem}"
    if not everything and datasets.has_others(name, videos, prompts):
        # What was made from the old prompts is of no use beside the new ones.
        options["overwrite"] = True
    if everything:
        dataset, ids = datasets.open_videos(name, videos)
        field = f"frames.{datasets.PROMPTS}"
        _propose(dataset.select(ids), field, options)
    else:
        dataset, ids, field = datasets.add_videos(name, videos, prompts)
    _run(dataset.select(ids), prompts=field, sheet=sheet, **options)


def _propose(samples: fo.DatasetView, field: str, options: dict[str, Any]) -> None:
    from fiftyone_regioncap import api

    weights, _ = _weights_of(options)
    api.propose(
        samples,
        output=field,
        propagator=options["propagator"] or "auto",
        weights=weights,
        device=options["device"],
        overwrite=options["overwrite"],
        progress=sys.stderr.isatty() or not options["as_json"],
    )


def _prompts(
    boxes: Sequence[tuple[float, ...]],
    points: Sequence[tuple[float, ...]],
    off: Sequence[tuple[float, ...]],
    names: Sequence[str],
    frames: Sequence[int],
) -> list[Prompt]:
    """The prompts that the options describe."""
    if bool(boxes) == bool(points):
        raise click.UsageError(
            "mark the objects with --box, or one with --point, or take --everything"
        )
    count = len(boxes) or 1

    def spread(values: Sequence[Any], default: Any, option: str) -> Sequence[Any]:
        if len(values) not in (0, 1, count):
            raise click.UsageError(
                f"{len(values)} {option} for {count} objects; give one, or one each"
            )
        return values if len(values) == count else (*values, default)[:1] * count

    labels = spread(names, None, "--label")
    at = spread(frames, 0, "--at")
    if points:
        signs = np.array([True] * len(points) + [False] * len(off))
        return [
            Prompt(
                1,
                at[0],
                points=np.array([*points, *off], dtype=np.float64),
                point_signs=signs,
                label=labels[0],
            )
        ]
    return [
        Prompt(number, frame, box=box, label=label)  # type: ignore[arg-type]
        for number, (box, frame, label) in enumerate(
            zip(boxes, at, labels, strict=True), start=1
        )
    ]


@main.command()
@click.option("--dataset", "name", required=True)
@click.option("--prompts", default="frames.prompts", show_default=True)
@click.option("--output", "tracks", default="frames.tracks", show_default=True)
@_propagate_options
@_common_options
def propagate(name: str, **options: Any) -> None:
    """Carries the prompts of a dataset through its videos."""
    _ensure_database()
    from fiftyone_regioncap.dataset import videos as datasets

    _run(datasets.open_dataset(name), caption=False, **options)


@main.command()
@click.option("--dataset", "name", required=True)
@click.option("--tracks", default="frames.tracks", show_default=True)
@click.option("--output", "captions", default="captions", show_default=True)
@_caption_options
@_common_options
def caption(name: str, **options: Any) -> None:
    """Describes the tracks of a dataset."""
    _ensure_database()
    from fiftyone_regioncap.dataset import videos as datasets

    _run(datasets.open_dataset(name), propagate=False, **options)


def _ensure_database() -> None:
    """Starts or finds the database before FiftyOne is imported and looks for it."""
    from fiftyone_regioncap.system import database

    database.ensure(lambda line: click.echo(line, err=True))


def _weights_of(options: dict[str, Any]) -> tuple[str | None, str | None]:
    """Whose ``--weights`` are meant: the propagator's and the captioner's weights."""
    from fiftyone_regioncap.captioning.registry import CAPTIONERS
    from fiftyone_regioncap.propagation.registry import PROPAGATORS

    own = {kind: options.get(f"{kind}_weights") for kind in ("propagator", "captioner")}
    if options["weights"] is None:
        return own["propagator"], own["captioner"]
    named = {
        registry.kind: registry[options[registry.kind]]
        for registry in (PROPAGATORS, CAPTIONERS)
        if options.get(registry.kind) not in (None, "auto")
    }
    if len(named) > 1:
        named = {k: b for k, b in named.items() if b.missing() is not None}
    if len(named) != 1:
        raise click.UsageError(
            "--weights needs exactly one model that wants them; "
            "use --propagator-weights and --captioner-weights"
        )
    own[next(iter(named))] = options["weights"]
    return own["propagator"], own["captioner"]


def _run(
    samples: fo.DatasetView | fo.Dataset,
    *,
    propagate: bool = True,
    caption: bool = True,
    prompts: str = "frames.prompts",
    tracks: str = "frames.tracks",
    captions: str = "captions",
    sheet: Path | None = None,
    as_json: bool = False,
    **options: Any,
) -> None:
    """Runs the job, shows what came out, and leaves with the exit code."""
    from fiftyone_regioncap import api, jobs
    from fiftyone_regioncap.models.registry import AUTO, ModelSpec
    from fiftyone_regioncap.propagation.policy import Policy
    from fiftyone_regioncap.visualization import report

    propagator_weights, captioner_weights = _weights_of(options)
    summary = api.propagate_and_caption(
        samples,
        propagate=jobs.PropagateOptions(
            prompts=prompts,
            output=tracks,
            direction=options["direction"],
            start=options["start"],
            stop=options["stop"],
            overlap=options["overlap"],
            mask_storage=options["mask_storage"],
            output_dir=options["output_dir"],
            overwrite=options["overwrite"],
            policy=Policy(
                max_frames=options["max_frames"],
                min_score=options["min_score"],
                patience=options["patience"],
                scene_cuts=options["scene_cuts"],
            ),
        )
        if propagate
        else None,
        caption=jobs.CaptionOptions(
            tracks=tracks,
            output=captions,
            prompt=options["prompt"],
            window=options["window"],
            summary=options["summary"],
            overwrite=options["overwrite"],
        )
        if caption
        else None,
        propagator=options.get("propagator") or "auto",
        propagator_load=ModelSpec(
            AUTO,
            propagator_weights,
            options["device"],
            dict(options.get("propagator_option", ())),
            options["accept_license"],
        ),
        captioner=options.get("captioner") or "auto",
        captioner_load=ModelSpec(
            AUTO,
            captioner_weights,
            options["device"],
            dict(options.get("captioner_option", ())),
            options["accept_license"],
        ),
        progress=sys.stderr.isatty() or not as_json,
    )
    rows = report.track_rows(samples, captions) if caption else []
    if caption and sheet is not None:
        report.write_sheet(samples, tracks, captions, sheet)
    _show(samples, summary, rows, sheet, as_json)
    sys.exit(0 if summary.ok else SOME_FAILED)


def _show(
    samples: fo.DatasetView | fo.Dataset,
    summary: Summary,
    rows: Sequence[Any],
    sheet: Path | None,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from fiftyone_regioncap.visualization import report

    name = samples._dataset.name
    if as_json:
        document = {
            "dataset": name,
            "summary": summary.to_dict(),
            "tracks": [asdict(row) for row in rows],
            "sheet": None if sheet is None else str(sheet),
        }
        click.echo(json.dumps(document, indent=2))
        return
    if rows:
        click.echo(report.table(rows))
    click.echo(summary.to_markdown().replace("**", ""))
    if sheet is not None:
        click.echo(f"contact sheet: {sheet}")
    click.echo(f"dataset {name!r}; see it with: regioncap app --dataset {name}")


@main.command()
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    default=Path(".regioncap/contact-sheet.png"),
    show_default=True,
    help="Contact sheet (PNG).",
)
@_propagate_options
@_caption_options
@_common_options
def demo(sheet: Path, **options: Any) -> None:
    """Runs on a clip of Big Buck Bunny (CC BY 3.0, Blender Foundation)."""
    from fiftyone_regioncap.cli import demo as demo_clip
    from fiftyone_regioncap.propagation.mobilesam.configuration import WEIGHTS
    from fiftyone_regioncap.system import assets

    video = assets.fetch(demo_clip.CLIP, lambda line: click.echo(line, err=True))
    assets.fetch(WEIGHTS, lambda line: click.echo(line, err=True))
    _ensure_database()
    from fiftyone_regioncap.dataset import videos as datasets

    if datasets.has_others(demo_clip.DATASET, [video], demo_clip.PROMPTS):
        options["overwrite"] = True  # made by another version of the demo
    dataset, ids, field = datasets.add_videos(
        demo_clip.DATASET, [video], demo_clip.PROMPTS
    )
    _run(dataset.select(ids), prompts=field, sheet=sheet, **options)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Says what was found on this machine, and what to do about what is missing."""
    from dataclasses import asdict

    from fiftyone_regioncap.cli import doctor as examiner

    findings = examiner.examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        click.echo(examiner.render(findings))
    sys.exit(0 if all(f.ok for f in findings) else SOME_FAILED)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """Lists the propagators and captioners, and what each needs."""
    from fiftyone_regioncap.captioning.registry import CAPTIONERS
    from fiftyone_regioncap.propagation.registry import PROPAGATORS

    rows = [
        {
            "kind": registry.kind,
            "name": backend.name,
            "summary": backend.summary,
            "weights": backend.weights,
            "license": backend.license,
            "commercial": backend.commercial,
            "missing": backend.missing(),
        }
        for registry in (PROPAGATORS, CAPTIONERS)
        for backend in registry.available().values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for registry in (PROPAGATORS, CAPTIONERS):
        click.echo(f"{registry.kind}s (auto: {registry.choose()[1]})")
        for row in rows:
            if row["kind"] == registry.kind:
                state = "ready" if row["missing"] is None else row["missing"]
                use = "" if row["commercial"] else ", non-commercial"
                click.echo(f"  {row['name']:14} {row['summary']}")
                click.echo(f"  {'':14} {row['license']}{use}; {state}")


@main.command()
@click.option("--dataset", "name", required=True)
@click.option("--port", type=int, default=5151, show_default=True)
def app(name: str, port: int) -> None:
    """Opens a dataset in the FiftyOne App and waits until it is closed."""
    _ensure_database()
    import fiftyone as fo

    from fiftyone_regioncap.dataset import videos as datasets

    session = fo.launch_app(datasets.open_dataset(name), port=port, address="127.0.0.1")
    click.echo(f"the App is at http://localhost:{port}; stop with Ctrl+C")
    session.wait(-1)
