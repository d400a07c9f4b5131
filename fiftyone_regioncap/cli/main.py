"""The command line: ``regioncap ...``.

Exit codes: 0 all done; 1 some samples failed, the others are done; 2 wrong usage;
3 nothing could be done; 130 canceled, and the same command goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from fiftyone_regioncap.__about__ import __version__
from fiftyone_regioncap.cli.commands import (
    JSON,
    NOTHING_DONE,
    SOME_FAILED,
    command_of,
    ensure_database,
    given,
    parameters,
    show_tracks,
)
from fiftyone_regioncap.core.errors import Canceled, OptionError, RegionCapError
from fiftyone_regioncap.core.options import fields_of, is_text
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.operations import OPERATIONS, REGISTRIES

CANCELED = 130

_HERE = "fiftyone_regioncap.cli"

OTHERS = {
    "benchmark": f"{_HERE}.evaluate:benchmark",
    "evaluate": f"{_HERE}.evaluate:evaluate",
    "jobs": f"{_HERE}.jobs:jobs",
    "serve": f"{_HERE}.serve:serve",
    "train-decoder": f"{_HERE}.train_decoder:train_decoder",
}
"""Commands that are no operations on samples, ``"module:attribute"`` by name."""

COMMANDS = {one.command: one for one in OPERATIONS.values() if " " not in one.command}


class LazyGroup(click.Group):
    """Makes commands when they are used, and errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *OTHERS, *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command of a name."""
        if cmd_name in COMMANDS:
            command = command_of(COMMANDS[cmd_name])
            if cmd_name in ("export", "import"):
                command.params.append(FORMATS)
            return command
        if cmd_name in OTHERS:
            return resolve(OTHERS[cmd_name])
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; errors become a line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except (Canceled, KeyboardInterrupt):
            click.echo("canceled; the same command goes on from here", err=True)
            sys.exit(CANCELED)
        except OptionError as error:
            raise click.UsageError(str(error)) from None
        except RegionCapError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(NOTHING_DONE)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            click.echo(f"error: {_logged(error)}", err=True)
            sys.exit(NOTHING_DONE)


def _logged(error: Exception) -> str:
    """Writes the traceback of an unexpected error to a file, and names the file."""
    from fiftyone_regioncap.system import assets

    path = assets.cache_dir() / "error.log"
    what = f"{type(error).__name__}: {error}".splitlines()[0][:400]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(traceback.format_exception(error))
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        traceback.print_exception(error)
        return what
    return f"{what} (unexpected; details are in {path})"


def _list_formats(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from fiftyone_regioncap.exporters import FORMATS, importable_formats

    importable = importable_formats()
    for name, found in FORMATS.available().items():
        note = "; can be imported" * (name in importable)
        click.echo(f"{name:18}{found.summary}{note}")
    ctx.exit()


FORMATS = click.Option(
    ["--formats"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_formats,
    help="List the formats and stop.",
)


class NumbersType(click.ParamType):
    """Parses comma-separated numbers."""

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
        if len(numbers) != self._count or not np.isfinite(numbers).all():
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return numbers


class TextType(click.ParamType):
    """Takes text that can be stored, and is not empty."""

    name = "text"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Validates ``value``."""
        if not (value.strip() and is_text(value)):
            self.fail(f"{value!r} is no text", param, ctx)
        return value


class SheetType(click.Path):
    """Takes the path of a file to write, in a folder that can be made."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """Makes the folder of ``value``, before there is anything to write."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            self.fail(f"{path} can't be written: {error}", param, ctx)
        return path


TEXT = TextType()
SHEET = SheetType(dir_okay=False, writable=True)
BOX = NumbersType(4, "x1,y1,x2,y2")
POINT = NumbersType(2, "x,y")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Show log messages.")
def main(verbose: bool) -> None:
    """Turns videos into FiftyOne datasets of tracked, described objects."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)


MAIN_JOB = OPERATIONS["propagate_and_caption"]


def _main_job_parameters() -> list[click.Parameter]:
    """Returns the options of the main job; its prompts are made from other options."""
    return [one for one in parameters(MAIN_JOB) if one.name != "prompts"] + [JSON]


class _MainJobCommand(click.Command):
    """A command that takes the main job's options beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own parameters, then those of the job."""
        own = super().get_params(ctx)
        return own[:-1] + _main_job_parameters() + own[-1:]


@main.command(cls=_MainJobCommand)
@click.argument("video", type=click.Path(exists=True, path_type=Path))
@click.option("--box", "boxes", type=BOX, multiple=True, help="Box in pixels.")
@click.option("--point", "points", type=POINT, multiple=True, help="Point on it.")
@click.option("--not-point", "off", type=POINT, multiple=True, help="Point off it.")
@click.option("--propose", is_flag=True, help="Find the objects of each video first.")
@click.option("--label", "names", type=TEXT, multiple=True, help="What the object is.")
@click.option(
    *("--at", "frames"),
    type=click.IntRange(0, 2**31),
    multiple=True,
    help="Frame, counted from 0.",
)
@click.option(
    *("--dataset", "name"),
    type=TEXT,
    help="Dataset to write to [default: the video's].",
)
@click.option("--sheet", type=SHEET, help="Contact sheet (PNG).")
def run(
    video: Path,
    boxes: Sequence[tuple[float, ...]],
    points: Sequence[tuple[float, ...]],
    off: Sequence[tuple[float, ...]],
    propose: bool,
    names: Sequence[str],
    frames: Sequence[int],
    name: str | None,
    sheet: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Mask and describe the marked objects of VIDEO, or of a folder's videos.

    A folder of images is one video, whose frames are the images in the order of their
    names; what is written goes to the images.

    Each --box is an object of its own; the n-th --label and --at belong to the n-th
    box, and a single one belongs to all. All --point together mark one object. With
    --propose, the objects are found by the propagator's model.
    """
    if propose and any((boxes, points, off, names, frames)):
        raise click.UsageError(
            "--propose finds the objects; give no --box, --point, --label or --at"
        )
    prompts = [] if propose else _prompts(boxes, points, off, names, frames)
    options = given(values)
    MAIN_JOB.parse(options)
    ensure_database()
    from fiftyone_regioncap.dataset import videos as datasets

    images = datasets.find_images(video)
    videos = [] if images else datasets.find_videos(video)
    name = name or f"regioncap-{video.stem}"
    with datasets.dropped_if_empty(name):
        if images:
            _run_images(images, name, prompts, options, sheet, as_json)
        else:
            _run(videos, name, prompts, options, sheet, as_json)


def _run(
    videos: Sequence[Path],
    name: str,
    prompts: Sequence[Prompt],
    options: dict[str, Any],
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Runs the main job on videos with prompts; without any, finds objects first."""
    from fiftyone_regioncap.dataset import videos as datasets
    from fiftyone_regioncap.jobs.summary import Failure

    failures: list[Failure] = []

    def failed(video: Path, error: RegionCapError, whole: bool) -> None:
        path, message = str(video), f"{type(error).__name__}: {error}"
        failures.append(Failure(path, path, "propagate", message, whole))

    if prompts:
        if datasets.has_others(name, videos, prompts):
            # What was made from the old prompts is of no use beside the new ones.
            options.update(overwrite=True, overwrite_captions=True)
        dataset, ids, options["prompts"] = datasets.add_videos(
            name, videos, prompts, failed=failed
        )
    else:
        dataset, ids = datasets.open_videos(name, videos, failed=failed)
        options["prompts"] = f"frames.{datasets.PROMPTS}"
        _propose(dataset.select(ids), options, as_json)
    _main_job(dataset.select(ids), options, sheet, as_json, failures)


def _run_images(
    images: Sequence[Path],
    name: str,
    prompts: Sequence[Prompt],
    options: dict[str, Any],
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Runs the main job on a sequence of images; see :func:`_run`."""
    from fiftyone_regioncap.dataset import videos as datasets

    samples, others = datasets.add_images(name, images, prompts)
    if others:
        options.update(overwrite=True, overwrite_captions=True)
    pointed = any(prompt.points is not None for prompt in prompts)
    options["prompts"] = f"frames.{datasets.POINTS if pointed else datasets.PROMPTS}"
    if not prompts:
        _propose(samples, options, as_json)
    _main_job(samples, options, sheet, as_json)


def _propose(samples: Any, options: dict[str, Any], as_json: bool) -> None:
    from fiftyone_regioncap import api

    shared = OPERATIONS["propose"].parameters()
    api.call(
        OPERATIONS["propose"],
        samples,
        {
            **{key: value for key, value in options.items() if key in shared},
            "output": options["prompts"],
        },
        sys.stderr.isatty() or not as_json,
    )


def _prompts(
    boxes: Sequence[tuple[float, ...]],
    points: Sequence[tuple[float, ...]],
    off: Sequence[tuple[float, ...]],
    names: Sequence[str],
    frames: Sequence[int],
) -> list[Prompt]:
    """Returns the prompts that the options describe."""
    if bool(boxes) == bool(points):
        raise click.UsageError(
            "mark the objects with --box, or one with --point, or take --propose"
        )
    if boxes and off:
        raise click.UsageError("--not-point belongs to --point, not to --box")
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


def _main_job(
    samples: Any,
    options: dict[str, Any],
    sheet: Path | None,
    as_json: bool,
    failures: Sequence[Any] = (),
) -> None:
    """Runs the job, shows what came out, and leaves with the exit code.

    Args:
        samples: Samples with prompts.
        options: Options of the job.
        sheet: Path of the contact sheet; None for none.
        as_json: Whether to print JSON.
        failures: What failed before the job.
    """
    from fiftyone_regioncap import api
    from fiftyone_regioncap.dataset.sequences import as_videos
    from fiftyone_regioncap.visualization import report

    summary = api.call(MAIN_JOB, samples, options, sys.stderr.isatty() or not as_json)
    summary.failures[:0] = failures
    summary.samples += len({one.filepath for one in failures if one.whole})
    captions = options.get("captions", "captions")
    if sheet is not None:
        tracks = options.get("tracks", "frames.tracks")
        with as_videos(samples) as videos:
            report.write_sheet(videos.samples, tracks, captions, sheet)
    show_tracks(samples, summary, captions, as_json, sheet)


@main.command(cls=_MainJobCommand)
@click.option(
    "--sheet",
    type=SHEET,
    default=Path(".regioncap/contact-sheet.png"),
    show_default=True,
    help="Contact sheet (PNG).",
)
def demo(sheet: Path, as_json: bool, **values: Any) -> None:
    """Run on a clip of Big Buck Bunny (CC BY 3.0, Blender Foundation)."""
    from fiftyone_regioncap.cli import demo as clip
    from fiftyone_regioncap.propagation.mobilesam.configuration import WEIGHTS
    from fiftyone_regioncap.system import assets

    options = given(values)
    MAIN_JOB.parse(options)
    video = assets.fetch(clip.CLIP, lambda line: click.echo(line, err=True))
    assets.fetch(WEIGHTS, lambda line: click.echo(line, err=True))
    ensure_database()
    from fiftyone_regioncap.dataset import videos as datasets

    if datasets.has_others(clip.DATASET, [video], clip.PROMPTS):
        # Made by another version of the demo.
        options.update(overwrite=True, overwrite_captions=True)
    dataset, ids, field = datasets.add_videos(clip.DATASET, [video], clip.PROMPTS)
    _main_job(dataset.select(ids), {**options, "prompts": field}, sheet, as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what was found on this machine, and what to do about what is missing."""
    from dataclasses import asdict

    from fiftyone_regioncap.cli import doctor as examiner

    findings = examiner.examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        click.echo(examiner.render(findings))
    sys.exit(0 if all(finding.ok for finding in findings) else SOME_FAILED)


@main.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(name: str | None, as_json: bool) -> None:
    """List the models, or the options of the one called NAME."""
    registries = [resolve(target) for target in REGISTRIES.values()]
    cards = [
        (registry.kind, card)
        for registry in registries
        for card in registry.available().values()
        if name in (None, card.name)
    ]
    if not cards:
        raise click.UsageError(f"there is no model {name!r}; see regioncap models")
    if as_json:
        rows = [
            {
                "kind": kind,
                "name": card.name,
                "summary": card.summary,
                "weights": card.weights,
                "license": card.license,
                "commercial": card.commercial,
                "missing": card.missing(),
                "options": {
                    field.name: field.documentation for field in fields_of(card.options)
                },
                "trainable": card.training is not None,
                "recipe_options": {
                    field.name: field.documentation
                    for field in fields_of(card.training_options)
                },
            }
            for kind, card in cards
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for registry in registries:
        if name is None:
            click.echo(f"{registry.kind}s (auto: {registry.choose()[1]})")
        for kind, card in cards:
            if kind != registry.kind:
                continue
            state = card.missing() or "ready"
            use = "" if card.commercial else ", non-commercial"
            click.echo(f"  {card.name:14} {card.summary}")
            click.echo(f"  {'':14} {card.license}{use}; {state}")
            for field in fields_of(card.options) if name else ():
                click.echo(f"    {field.name}: {field.documentation}")
            training = fields_of(card.training_options) if name else ()
            if training:
                click.echo("  and of its training, as --recipe-option:")
            for field in training:
                click.echo(f"    {field.name}: {field.documentation}")


@main.command()
@click.option("--dataset", "name", required=True, help="Name of the dataset.")
@click.option("--port", type=click.IntRange(1, 65535), default=5151, show_default=True)
def app(name: str, port: int) -> None:
    """Open a dataset in the FiftyOne App and wait until it is closed."""
    ensure_database()
    import fiftyone as fo

    from fiftyone_regioncap.dataset import videos as datasets

    session = fo.launch_app(datasets.open_dataset(name), port=port, address="127.0.0.1")
    click.echo(f"the App is at http://localhost:{port}; stop with Ctrl+C")
    session.wait(-1)
