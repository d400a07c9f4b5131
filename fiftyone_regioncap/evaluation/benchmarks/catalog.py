"""Describes benchmarks for people: in the shell, and on the page of all of them."""

from __future__ import annotations

from collections.abc import Iterator

from fiftyone_regioncap.evaluation.benchmarks.base import Benchmark
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS


def describe(benchmark: Benchmark) -> str:
    """Says all of a benchmark: what it is, its files, its metric, published rows."""
    return "\n".join(_lines(benchmark)) + "\n"


def _lines(benchmark: Benchmark) -> Iterator[str]:
    yield f"{benchmark.title}: {benchmark.summary}"
    yield f"size: {benchmark.size}"
    yield f"license: {benchmark.license}"
    yield f"metric: {benchmark.metric}"
    if benchmark.needs:
        yield f"needs: {', '.join(sorted(benchmark.needs))}"
    yield "files, to be put into one folder:"
    for file in benchmark.files:
        optional = " (optional)" if file.optional else ""
        yield f"  {file.name} from {file.source}{optional}"
    yield f"then: regioncap benchmark prepare {benchmark.name} --from FOLDER"
    for trap in benchmark.traps:
        yield f"note: {trap}"
    yield "published:"
    for row in benchmark.published:
        values = ", ".join(f"{name} {value:g}" for name, value in row.values.items())
        yield f"  {row.method}: {values} [{row.source}]"


def table() -> str:
    """Formats one table of all benchmarks, for the docs."""
    rows = [
        "| benchmark | what | size | license | metric | needs | best published |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in BENCHMARKS.items():
        cells = (
            f"[`{name}`](#{name})",
            one.summary,
            one.size,
            one.license,
            one.metric,
            ", ".join(sorted(one.needs)) or "-",
            _best(one),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _best(benchmark: Benchmark) -> str:
    """Returns the published row with the highest value of the last common metric."""
    if not benchmark.published:
        return "-"
    rows = benchmark.published
    counts = {n: sum(n in row.values for row in rows) for n in benchmark.metrics}
    name = max(reversed(benchmark.metrics), key=counts.__getitem__)
    row = max(rows, key=lambda row: row.values.get(name, 0.0))
    return f"{row.method}: {name} {row.values[name]:g}"


def section(benchmark: Benchmark) -> str:
    """Formats the section of a benchmark, for the docs."""
    lines = [f"### {benchmark.name}", "", f"{benchmark.title}. {benchmark.summary}"]
    lines += ["", "| file | from |", "|---|---|"]
    for file in benchmark.files:
        optional = " (optional)" if file.optional else ""
        lines.append(f"| `{file.name}`{optional} | {file.source} |")
    lines += ["", f"{benchmark.metric}", ""]
    lines += [f"- {trap}" for trap in benchmark.traps]
    if benchmark.prompt:
        lines.append(f"- Asked: {benchmark.prompt!r}")
    lines += [
        "",
        "```shell",
        f"regioncap benchmark prepare {benchmark.name} --from FOLDER",
        f"regioncap benchmark run {benchmark.name} --captioner dam",
        "```",
        "",
    ]
    metrics = benchmark.metrics
    if metrics:
        lines += [
            f"| method | {' | '.join(metrics)} | source |",
            f"|---|{'---:|' * len(metrics)}---|",
        ]
    for row in benchmark.published:
        values = [f"{row.values[n]:g}" if n in row.values else "" for n in metrics]
        lines.append(f"| {row.method} | {' | '.join(values)} | {row.source} |")
    return "\n".join(lines)
