"""Scores predictions on a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from fiftyone_regioncap.evaluation.benchmarks.base import (
    Answer,
    Benchmark,
    Item,
    Tools,
)
from fiftyone_regioncap.evaluation.benchmarks.predictions import Predictions
from fiftyone_regioncap.evaluation.benchmarks.reading import BenchmarkError
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.captions import shared_meteor
from fiftyone_regioncap.system import assets

_PACKAGES = (
    "pycocoevalcap",
    "pycocotools",
    "scikit-learn",
    "sentence-transformers",
    "bert-score",
    "rouge-score",
)


def score_file(
    benchmark: Benchmark,
    predictions: Path,
    tools: Tools,
    *,
    key: str = "benchmark",
    method: str = "ours",
    limit: int | None = None,
    default: str | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
    settings: Mapping[str, Any] | None = None,
) -> BenchmarkReport:
    """Scores a file of predictions.

    Args:
        benchmark: The benchmark.
        predictions: Predictions in our form, or in one that authors publish.
        tools: What metrics need: the folder of the benchmark's files, a judge, ...
        key: Key of the run.
        method: What made the predictions, for people.
        limit: Maximum number of items, the first ones; None for all.
        default: Text of items without a prediction; None for what the benchmark does.
        prices: Prices of a million tokens that the judge reads, and writes.
        settings: How the predictions were made.

    Raises:
        BenchmarkError: If a file is missing or not what it should be, or an item lacks
            a prediction where the benchmark asks for all.
        BackendError: If a metric's package, or the judge, isn't there.
    """
    checksums = checksums_of(benchmark, tools.folder)
    if not predictions.exists():
        raise BenchmarkError(f"{predictions} is not there; give a file of predictions")
    count = 0

    def answers(paired: Iterable[Answer]) -> Iterator[Answer]:
        nonlocal count
        for one in paired:
            count += 1
            yield _prepared(benchmark, one, default)

    with Predictions(predictions) as found, shared_meteor():
        items: Iterator[Item] = islice(benchmark.load(tools.folder), limit)
        how = {"whole": limit is None, "skip": benchmark.missing == "skip"}
        if benchmark.pair is None:
            paired = found.pair(items, **how)
        else:
            paired = benchmark.pair(found, items, predictions, **how)
        scores = benchmark.score(answers(paired), tools)
        problems = found.problems
    if not count:
        raise BenchmarkError(f"{tools.folder} holds no items of {benchmark.title}")
    notes = list(scores.notes)
    if limit is not None:
        notes.append(f"only the first {limit} items were scored")
    known = {file.sha256 for file in benchmark.files if file.sha256}
    if known and not all(set(sums) & set(checksums.values()) for sums in known):
        notes.append("the annotations are another version than the published rows'")
    return BenchmarkReport(
        benchmark=benchmark,
        key=key,
        method=method,
        overall=dict(scores.overall),
        each=dict(scores.each),
        items=count,
        counts={**problems.counts, **scores.counts},
        first=problems.first,
        notes=tuple(notes),
        comparable=scores.comparable and len(notes) == len(scores.notes),
        judge=_usage(tools, prices),
        versions=versions(),
        checksums=checksums,
        settings=dict(settings or {}),
    )


def _prepared(benchmark: Benchmark, answer: Answer, default: str | None) -> Answer:
    """Fills in what is missing, and changes texts as the benchmark does."""
    if answer.missing:
        if default is None:
            if benchmark.missing == "error":
                raise BenchmarkError(
                    f"{answer.item.id} has no caption; caption it, or give a default "
                    "text for such items"
                )
            return answer
        answer = replace(answer, prediction=default, missing=False)
    if benchmark.postprocess is None or not isinstance(answer.prediction, str):
        return answer
    return replace(answer, prediction=benchmark.postprocess(answer.prediction))


def checksums_of(benchmark: Benchmark, folder: Path) -> dict[str, str]:
    """Returns the checksums of a benchmark's annotation files.

    Raises:
        BenchmarkError: If a file is missing; says from whom, and under which license.
    """
    found = {}
    for file in benchmark.files:
        paths = sorted(folder.glob(file.name))
        if not paths and not file.optional:
            raise BenchmarkError(
                f"{benchmark.title} needs {file.name} in {folder}; download it from "
                f"{file.source} ({benchmark.license}) and put it there"
            )
        for path in paths:
            if path.suffix in (".json", ".jsonl"):
                found[path.relative_to(folder).as_posix()] = assets.sha256(path)
    return found


def _usage(tools: Tools, prices: tuple[float, float]) -> dict[str, Any]:
    if tools.judge is None:
        return {}
    usage = tools.judge.usage
    counted = {"model": tools.judge.model, **asdict(usage)}
    return {**counted, "cost": round(usage.cost(prices), 6)} if any(prices) else counted


def versions() -> dict[str, str]:
    """Returns the versions of the packages that compute metrics."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
