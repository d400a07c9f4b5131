"""The functions that people call from Python; shell and App call the same.

Each is made from its declaration in :mod:`fiftyone_regioncap.operations`, which names
what does the work.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import OptionField, Options, unknown
from fiftyone_regioncap.core.progress import ProgressListener, progress_listener
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.operations import OPERATIONS, Operation
from fiftyone_regioncap.system import database


def call(
    operation: Operation,
    samples: Any,
    values: Mapping[str, Any],
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Any:
    """Runs an operation.

    Args:
        operation: What to do.
        samples: A dataset or a view; None for an operation that is done to none.
        values: Options and models by name; those that are absent have the default.
        progress: Whether to draw a progress bar, or what is called with each event.
        cancel: Set it to stop after the step at hand.

    Returns:
        What was done, failures included.

    Raises:
        OptionError: When an option is unknown or has a value that it can't have.
        BackendError: When a model can't run here.
        FieldError: When a field is absent or of the wrong kind.
        Canceled: When ``cancel`` was set; what was written stays.
    """
    return run(operation, samples, *operation.parse(values), progress, cancel)


def run(
    operation: Operation,
    samples: Any,
    options: Options,
    models: Mapping[str, Any],
    execution: Options | None,
    progress: bool | ProgressListener = True,
    cancel: threading.Event | None = None,
) -> Any:
    """Runs an operation with what :meth:`Operation.parse` made of values."""
    if operation.dry:
        progress = False
    else:
        database.ensure()
    with progress_listener(progress) as listener:
        if operation.run is not None:
            function = resolve(f"fiftyone_regioncap.{operation.run}")
            function = partial(function, *((samples,) if operation.media else ()))
            function = partial(function, options, **models)
            if operation.dry or not operation.recorded:
                return function(listener=listener, cancel=cancel)
            return _record(operation, samples, function, listener, cancel)
        context = {"listener": listener, "cancel": cancel}
        alone = len(operation.stages) == 1
        stages = {
            stage: options if alone else getattr(options, stage)
            for stage in operation.stages
        }
        run_stages = resolve("fiftyone_regioncap.jobs.executors.choosing:run_stages")
        return run_stages(samples, operation.name, stages, models, execution, **context)


def _record(
    operation: Operation,
    samples: Any,
    function: Callable[..., Any],
    listener: ProgressListener | None,
    cancel: threading.Event | None,
) -> Any:
    """Calls what does an operation that is no job, and puts it on the board."""
    from fiftyone_regioncap.jobs.board import Run

    root = getattr(samples, "_root_dataset", None)
    known = (None, None) if root is None else (root.name, root._doc.id)
    run = Run.begin(operation.name, *known)
    with run.watched(listener, cancel) as (listen, flags):
        run.outcome = function(listener=listen, cancel=flags)
    return run.outcome


def function_of(operation: Operation) -> Callable[..., Any]:
    """The SDK's function for an operation, with signature and documentation."""
    signature = inspect.Signature(_parameters(operation))

    def function(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in signature.parameters:
                known = operation.parameters()
                raise OptionError(f"{operation.name}: {unknown(name, known)}")
        given = dict(signature.bind(*args, **kwargs).arguments)
        samples = given.pop("samples", None)
        progress, cancel = given.pop("progress", True), given.pop("cancel", None)
        return call(operation, samples, given, progress, cancel)

    function.__name__ = function.__qualname__ = operation.name
    function.__doc__ = _documentation(operation)
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__module__ = __name__
    return function


def _parameters(operation: Operation) -> list[inspect.Parameter]:
    positional, keyword = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    fields = {field.name: field for field in operation.fields}
    first = [fields.pop(name) for name in operation.positional]
    own = [_parameter(field, positional) for field in first]
    own += [_parameter(field, keyword) for field in fields.values()]
    for model in operation.models:
        own += [
            inspect.Parameter(name, keyword, default=default, annotation=hint)
            for name, default, hint in (
                (model.name, model.default, "str | Model | None"),
                (f"{model.name}_weights", None, "str | None"),
                (f"{model.name}_options", None, "Mapping[str, Any] | None"),
            )
        ]
    own += [_parameter(field, keyword) for field in operation.settings]
    samples = inspect.Parameter("samples", positional, annotation="SampleCollection")
    return [
        *([samples] if operation.media else []),
        *own,
        inspect.Parameter("progress", keyword, default=True, annotation="bool"),
        inspect.Parameter("cancel", keyword, default=None, annotation="Event | None"),
    ]


def _parameter(field: OptionField, kind: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.required else field.default
    return inspect.Parameter(field.name, kind, default=default, annotation=field.type)


def _documentation(operation: Operation) -> str:
    """A Google docstring."""
    lines = [operation.summary, "", "Args:"]
    if operation.media:
        lines.append("    samples: A dataset or a view.")
    fields = operation.fields + operation.settings
    lines += [f"    {field.name}: {field.documentation}" for field in fields]
    for model in operation.models:
        lines += [
            f"    {model.name}: {model.help} Give a name, a model that is loaded, or "
            f"None; default {model.default!r}.",
            f"    {model.name}_weights: Folder, file or hub id of its weights.",
            f"    {model.name}_options: Its own options by name.",
        ]
    lines += [
        "    progress: Whether to draw a progress bar, or what is called with events.",
        "    cancel: Set it to stop after the step at hand; what was written stays.",
        "",
        "Returns:",
        "    What was done, failures included.",
    ]
    return "\n".join(lines)


def __getattr__(name: str) -> Any:
    """Makes the function of an operation when it is first used."""
    if name not in OPERATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = function_of(OPERATIONS[name])
    return globals()[name]
