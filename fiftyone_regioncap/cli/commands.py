"""Shell commands that are made from declared operations."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.markdown import plain
from fiftyone_regioncap.core.options import OptionField
from fiftyone_regioncap.operations import ModelChoice, Operation

SOME_FAILED = 1
NOTHING_DONE = 3


class FieldType(click.ParamType):
    """A value of a declared option, written as text."""

    def __init__(self, field: OptionField) -> None:
        self.name = "text" if field.kinds == (str,) else field.expects
        self._field = field

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Parses and validates ``value``."""
        try:
            return self._field.parse(value) if isinstance(value, str) else value
        except OptionError as error:
            self.fail(str(error).partition(": ")[2], param, ctx)


class SettingType(click.ParamType):
    """A name and a value; what is no JSON is text."""

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


SETTING = SettingType()


def parameter(field: OptionField, argument: bool = False) -> click.Parameter:
    """Returns the click parameter of an option, whose value is None if not given."""
    if argument:
        return click.Argument([field.name], type=FieldType(field))
    declared = [field.flag, field.name]
    if field.kinds == (bool,) and not field.optional:
        if field.default is True:
            declared[0] = f"{field.flag}/--no-{field.flag[2:]}"
        return click.Option(
            declared, is_flag=True, default=None, help=field.declaration.help
        )
    if "values by name" in field.expects:
        return click.Option(
            declared,
            type=SETTING,
            multiple=True,
            required=field.required,
            help=field.declaration.help,
        )
    text = field.declaration.help
    if not field.required and field.default not in (None, ()):
        shown = field.default
        if isinstance(shown, tuple):
            shown = ",".join(map(str, shown))
        text += f"  [default: {shown}]"
    choices = field.choices
    metavar = None
    if choices and len(choices) < 6:
        metavar = "[" + "|".join(map(str, choices)) + "]"
    return click.Option(
        declared,
        type=FieldType(field),
        required=field.required,
        help=text,
        metavar=metavar or field.name.upper(),
    )


def model_parameters(
    model: ModelChoice, argument: bool = False
) -> list[click.Parameter]:
    """Returns the click parameters by which a model is chosen."""
    flag = f"--{model.name}"
    default = model.default or "none"
    name: click.Parameter = click.Option(
        [flag, model.name],
        help=f"{model.help} See `regioncap models`.  [default: {default}]",
    )
    if argument:
        name = click.Argument([model.name], type=click.Choice(list(model.cards)))
    return [
        name,
        click.Option(
            [f"{flag}-weights", f"{model.name}_weights"],
            help=f"Folder, file or hub id of the weights of the {model.name}.",
        ),
        click.Option(
            [f"{flag}-option", f"{model.name}_options"],
            type=SETTING,
            multiple=True,
            help=f"An option that only this {model.name} has; `regioncap models NAME` "
            "lists them.",
        ),
    ]


def parameters(operation: Operation) -> list[click.Parameter]:
    """Returns all click parameters of an operation's options and models."""
    found = [
        parameter(one, one.name in operation.arguments) for one in operation.fields
    ]
    for model in operation.models:
        found += model_parameters(model, model.name in operation.arguments)
    return [*found, *map(parameter, operation.settings)]


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that were given in the shell, settings as mappings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == ():
            continue
        settings = isinstance(value, tuple) and isinstance(value[0], tuple)
        found[name] = dict(value) if settings else value
    return found


JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.")
DATASET = click.Option(
    ["--dataset", "dataset"], required=True, help="Name of the dataset."
)
VIEW = click.Option(["--view", "view"], help="Only what this saved view shows.")


CAPTIONS = {
    "propagate": ("captions", None),
    "caption": ("output", "captions"),
    "propagate_and_caption": ("captions", "captions"),
}
"""Of operations on tracks: the option that names their captions, and its default."""


def command_of(operation: Operation) -> click.Command:
    """Returns the shell's command for an operation."""

    def run(as_json: bool, **values: Any) -> None:
        dataset = view = None
        if operation.media:
            dataset, view = values.pop("dataset"), values.pop("view")
        options = given(values)
        parsed = operation.parse(options)  # before a database is started
        if not operation.dry:
            ensure_database()
        from fiftyone_regioncap import api

        samples = None if dataset is None else open_samples(dataset, view)
        progress = sys.stderr.isatty() or not as_json
        result = api.run(operation, samples, *parsed, progress)
        if operation.name in CAPTIONS:
            show_tracks(
                samples, result, options.get(*CAPTIONS[operation.name]), as_json
            )
        else:
            show(result, as_json)

    return click.Command(
        operation.command.rpartition(" ")[2],
        callback=run,
        params=[
            *([DATASET, VIEW] if operation.media else []),
            *parameters(operation),
            JSON,
        ],
        help=operation.summary,
    )


def ensure_database() -> None:
    """Starts or finds the database before FiftyOne is imported and looks for it."""
    from fiftyone_regioncap.system import database

    database.ensure(lambda line: click.echo(line, err=True))


def open_samples(dataset: str, view: str | None) -> Any:
    """Opens a dataset, or a view that was saved with it."""
    from fiftyone_regioncap.dataset import videos

    samples = videos.open_dataset(dataset)
    if view is None:
        return samples
    if view not in samples.list_saved_views():
        known = ", ".join(samples.list_saved_views()) or "none yet"
        raise click.BadParameter(f"there is no saved view {view!r}; there are: {known}")
    return samples.load_saved_view(view)


def show(result: Any, as_json: bool) -> None:
    """Prints what was done, and leaves with the exit code if anything failed."""
    if as_json:
        document = result.to_dict()
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
    else:
        click.echo(plain(result.to_markdown()))
    leave(result)


def show_tracks(
    samples: Any,
    summary: Any,
    captions: str | None,
    as_json: bool,
    sheet: Path | None = None,
) -> None:
    """Prints tracks and captions with the summary, and leaves with the exit code.

    Args:
        samples: Samples that the job ran on.
        summary: Summary of the job.
        captions: Field of the captions; None where none were written.
        as_json: Whether to print JSON.
        sheet: A contact sheet that was made.
    """
    from fiftyone_regioncap.dataset.sequences import as_videos
    from fiftyone_regioncap.visualization import report

    with as_videos(samples) as videos:
        rows = [] if captions is None else report.track_rows(videos.samples, captions)
    if as_json:
        document = {
            "dataset": samples._root_dataset.name,
            "summary": summary.to_dict(),
            "tracks": [asdict(row) for row in rows],
            "sheet": None if sheet is None else str(sheet),
        }
        click.echo(json.dumps(document, indent=2))
    else:
        if rows:
            click.echo(report.table(rows))
        click.echo(plain(summary.to_markdown()))
        if sheet is not None:
            click.echo(f"contact sheet: {sheet}")
    leave(summary)


def leave(result: Any) -> None:
    """Ends the process with the exit code of a job's summary if anything failed."""
    if getattr(result, "ok", True):
        return
    nothing = getattr(result, "nothing_done", False)
    sys.exit(NOTHING_DONE if nothing else SOME_FAILED)
