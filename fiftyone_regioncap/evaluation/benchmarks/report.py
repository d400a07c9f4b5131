"""Reports of benchmarks: our numbers beside published ones, for people and programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fiftyone_regioncap.core.markdown import escape
from fiftyone_regioncap.evaluation.benchmarks.base import Benchmark


@dataclass(frozen=True)
class BenchmarkReport:
    """The result of scoring predictions on a benchmark.

    Attributes:
        benchmark: The benchmark.
        key: Key of the run.
        method: What made the predictions, for people.
        overall: Score by metric, not scaled.
        each: Score by item id.
        items: Number of items.
        counts: What happened by number: missing, unknown, doubled and failed
            predictions, answers that can't be read, and so on.
        first: The first ids of items with a problem, by problem.
        notes: Notes on what differs from the published protocol.
        comparable: Whether the numbers can be compared with the published rows.
        judge: What was asked of the judge; empty without one.
        versions: Versions of the packages that computed the metrics.
        checksums: sha256 of the benchmark's files by name.
        settings: How the predictions were made, where it is known.
        dataset: Name of the dataset that the result is kept in; None for none.
    """

    benchmark: Benchmark
    key: str
    method: str
    overall: Mapping[str, float]
    each: Mapping[str, float]
    items: int
    counts: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    comparable: bool = True
    judge: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None

    @property
    def ok(self) -> bool:
        """Returns whether every item had a prediction."""
        return not any(self.counts.get(name) for name in ("missing", "failed"))

    def rows(self) -> list[dict[str, Any]]:
        """Returns the table: published rows with our difference to each, and ours.

        Returns:
            ``method``, ``source``, ``values`` by metric as printed, and ``difference``
            (ours minus published) by metric.
        """
        scale = self.benchmark.scale
        ours = {name: scale * value for name, value in self.overall.items()}
        table: list[dict[str, Any]] = [
            {"method": self.method, "source": "this run", "values": ours}
        ]
        for row in self.benchmark.published:
            gaps = {n: ours[n] - v for n, v in row.values.items() if n in ours}
            table.append({**asdict(row), "difference": gaps})
        return table

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values, without the score of each item."""
        own = {f: getattr(self, f) for f in self.__dataclass_fields__}
        del own["each"]
        own["benchmark"] = self.benchmark.name
        own["table"] = self.rows()
        return json.loads(json.dumps(own, default=str))

    def to_markdown(self) -> str:
        """Formats the table: ours, published, difference."""
        names = [n for n in self.benchmark.metrics if n in self.overall]
        more = [n for n in self.overall if n not in names and " " not in n]
        ours, *rows = self.rows()
        lines = [
            f"**{self.benchmark.title}**: {self.items} items, {escape(self.method)}"
        ]
        lines += ["", _line(["method", *names, "source"]), _rule(len(names))]
        lines.append(_row(ours, names))
        lines += [_row(row, names) for row in rows if set(names) & set(row["values"])]
        if more:
            values = ", ".join(f"{n} {ours['values'][n]:.2f}" for n in more)
            lines += ["", f"Also: {values}"]
        lines += ["", *(f"- {escape(note)}" for note in self._remarks())]
        return "\n".join(lines).rstrip() + "\n"

    def _remarks(self) -> list[str]:
        remarks = [
            f"{count} {problem.replace('_', ' ')}"
            + (f": {', '.join(self.first[problem])}" if problem in self.first else "")
            for problem, count in self.counts.items()
            if count
        ]
        if self.judge:
            remarks.append(
                "judge " + ", ".join(f"{name} {v}" for name, v in self.judge.items())
            )
        can = "comparable with the published rows"
        return [*remarks, *self.notes, can if self.comparable else f"not {can}"]

    def worst(self, k: int = 25) -> Any:
        """Returns the items with the lowest scores as patches or clips, lowest first.

        Args:
            k: Maximum number of items.

        Raises:
            FieldError: If the benchmark was not prepared as a dataset.
        """
        from fiftyone_regioncap.evaluation.benchmarks import datasets

        return datasets.worst(self, k)

    def plot(self) -> Any:
        """Plots our metrics beside the published rows, with plotly."""
        import plotly.graph_objects as go

        names = [n for n in self.benchmark.metrics if n in self.overall]
        rows = self.rows()
        bars = [
            go.Bar(
                x=[row["method"] for row in rows],
                y=[row["values"].get(name) for row in rows],
                name=name,
            )
            for name in names or list(self.overall)[:1]
        ]
        return go.Figure(bars, {"title": {"text": self.benchmark.title}})

    def write(self, folder: Path) -> list[Path]:
        """Writes ``report.json``, ``report.md`` and ``report.html`` with the plot.

        Args:
            folder: Folder, which is made when it doesn't exist.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"report.{suffix}" for suffix in ("json", "md", "html")]
        document = {**self.to_dict(), "each": dict(self.each)}
        files[0].write_text(json.dumps(document, indent=2), encoding="utf-8")
        files[1].write_text(self.to_markdown(), encoding="utf-8")
        self.plot().write_html(files[2], include_plotlyjs="cdn")
        return files


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return _line(["---", *["---:"] * columns, "---"])


def _row(row: Mapping[str, Any], names: Sequence[str]) -> str:
    cells = []
    for name in names:
        value, gap = row["values"].get(name), row.get("difference", {}).get(name)
        cell = "" if value is None else f"{value:.2f}"
        cells.append(cell if gap is None else f"{cell} ({gap:+.2f})")
    return _line([escape(row["method"]), *cells, escape(row["source"])])
