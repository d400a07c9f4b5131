"""Sweeps: one benchmark over values of options, as papers' ablations are made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.core.options import OptionField, fields_of, unknown
from fiftyone_regioncap.core.progress import ProgressListener
from fiftyone_regioncap.evaluation.benchmarks.options import RunOptions, SweepOptions
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.benchmarks.running import run_benchmark
from fiftyone_regioncap.models.registry import ModelSpec

OF_THE_RUN = ("prompt", "window")
"""Options of the run that can be swept, beside the captioner's own."""

WEIGHTS = "weights"


@dataclass(frozen=True)
class SweepReport:
    """The results of a sweep.

    Attributes:
        names: Options that were swept.
        runs: Values of these options, with the report of each run.
    """

    names: tuple[str, ...]
    runs: tuple[tuple[tuple[Any, ...], BenchmarkReport], ...]

    @property
    def ok(self) -> bool:
        """Returns whether every run was complete."""
        return all(report.ok for _, report in self.runs)

    @property
    def metrics(self) -> list[str]:
        """The metrics that are shown: the benchmark's, as far as they were computed."""
        first = self.runs[0][1]
        shown = [name for name in first.benchmark.metrics if name in first.overall]
        return shown or list(first.overall)[:5]

    def to_dict(self) -> dict[str, Any]:
        """Returns the table and all reports as JSON values."""
        return {
            "options": list(self.names),
            "runs": [
                {
                    "values": dict(zip(self.names, map(str, values), strict=True)),
                    "report": report.to_dict(),
                }
                for values, report in self.runs
            ],
        }

    def to_markdown(self) -> str:
        """Formats the table: a row a run."""
        head = [*self.names, *self.metrics]
        rule = ["---"] * len(self.names) + ["---:"] * len(self.metrics)
        rows = [
            [
                *(escape(str(value)) for value in values),
                *(
                    f"{report.benchmark.scale * report.overall.get(name, 0.0):.2f}"
                    for name in self.metrics
                ),
            ]
            for values, report in self.runs
        ]
        lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
        return "\n".join(lines) + "\n"

    def plot(self) -> Any:
        """Plots each metric over the values, with plotly."""
        import plotly.graph_objects as go

        points = [", ".join(map(str, values)) for values, _ in self.runs]
        if len(self.names) == 1 and all(
            isinstance(values[0], int | float) for values, _ in self.runs
        ):
            points = [values[0] for values, _ in self.runs]
        curves = [
            go.Scatter(
                x=points,
                y=[r.benchmark.scale * r.overall.get(name, 0.0) for _, r in self.runs],
                name=name,
                mode="lines+markers",
            )
            for name in self.metrics
        ]
        title = self.runs[0][1].benchmark.title
        axis = {"title": {"text": ", ".join(self.names)}}
        return go.Figure(curves, {"title": {"text": title}, "xaxis": axis})

    def write(self, folder: Path) -> None:
        """Writes ``sweep.md`` and ``sweep.html``, the table and the curve."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.md").write_text(self.to_markdown(), encoding="utf-8")
        self.plot().write_html(folder / "sweep.html", include_plotlyjs="cdn")


def sweep_benchmark(
    options: SweepOptions,
    captioner: ModelSpec,
    propagator: ModelSpec | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> SweepReport:
    """Runs a benchmark once for each combination of values.

    Each run has its own predictions, so that a sweep that was stopped goes on.

    Args:
        options: The benchmark, and the values by option.
        captioner: Specification of the captioner.
        propagator: Specification of the propagator, for benchmarks of masks.
        listener: Called with progress events.
        cancel: Set it to stop after the prediction at hand.

    Raises:
        OptionError: If an option is unknown or a value doesn't fit; before any run.
        BenchmarkError: If a file is missing or not what it should be.
        BackendError: If the captioner, the judge or a metric's package isn't there.
    """
    if not isinstance(captioner, ModelSpec):
        raise OptionError("sweeps load the captioner anew: give its name, not a model")
    values = {
        name: tuple(_values(_field(captioner, name), name, given))
        for name, given in options.values.items()
    }
    if not values:
        raise OptionError("values is empty; give an option with a list of values")
    base = {n: getattr(options, n) for n in options.__dataclass_fields__}
    del base["values"]
    output = None if options.output is None else Path(options.output)
    runs = []
    for chosen in product(*values.values()):
        own = dict(zip(values, chosen, strict=True))
        name = "_".join(f"{key}_{value}" for key, value in own.items())
        prefix = options.key or captioner.name
        run = {
            **base,
            **{key: own.pop(key) for key in OF_THE_RUN if key in own},
            "key": f"{prefix}_{name}",
            "output": None if output is None else str(output / _file(name)),
        }
        weights = own.pop(WEIGHTS, captioner.weights)
        spec = replace(captioner, weights=weights, options={**captioner.options, **own})
        report = run_benchmark(RunOptions(**run), spec, propagator, listener, cancel)
        runs.append((chosen, report))
    sweep = SweepReport(tuple(values), tuple(runs))
    if output is not None:
        sweep.write(output)
    return sweep


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[:80]


def _field(captioner: ModelSpec, name: str) -> OptionField | None:
    """Returns the declaration of an option; None for the weights.

    Raises:
        OptionError: If there is no such option.
    """
    if name == WEIGHTS:
        return None
    own = {field.name: field for field in fields_of(RunOptions)}
    known = {key: own[key] for key in OF_THE_RUN}
    known |= {f.name: f for f in fields_of(CAPTIONERS[captioner.name].options)}
    if name not in known:
        raise OptionError(
            f"captioner {captioner.name}: {unknown(name, [*known, WEIGHTS])}"
        )
    return known[name]


def _values(field: OptionField | None, name: str, given: Any) -> Iterator[Any]:
    """Validates the values of an option, given as a list or separated by commas."""
    listed = given.split(",") if isinstance(given, str) else given
    if not isinstance(listed, list | tuple):
        listed = [listed]
    if not listed:
        raise OptionError(f"{name}: give a list of values")
    for value in listed:
        if field is None:
            yield str(value)
        else:
            text = isinstance(value, str)
            yield field.parse(value.strip()) if text else field.check(value)
