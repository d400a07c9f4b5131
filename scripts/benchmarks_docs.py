"""Writes docs/benchmarks.md from the declared benchmarks."""

from __future__ import annotations

from pathlib import Path

from fiftyone_regioncap.evaluation.benchmarks.catalog import section, table
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS

PATH = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"

INTRODUCTION = """\
# Benchmarks

Made by `python -m scripts.benchmarks_docs` from the declarations in the code.

Data is never shipped: put a benchmark's published files into a folder, and

```shell
regioncap benchmark list dlc-bench                        # files, license, rows
regioncap benchmark prepare dlc-bench --from FOLDER       # a dataset for the App
regioncap benchmark run dlc-bench --captioner dam --judge http://localhost:9000/v1
regioncap benchmark score dlc-bench --captions FILE --judge http://localhost:9000/v1
regioncap sweep refcocog --captioner dam --set focal=1,2,3,4 --output report
```

or `regioncap.prepare_benchmark`, `run_benchmark`, `score_benchmark` and
`sweep_benchmark` in Python, or the operators of these names in the App. Options are in
[options.md](options.md#prepare-a-benchmark).

**Predictions** of a run are JSON lines of `id` and `pred`, written one by one: a run
that was stopped goes on where it was. `score` takes such lines, an object of texts
by id, or the files that authors publish; those without ids are paired by the reference
that they repeat, never by their order. Predictions that are missing, doubled, failed or
of unknown items are counted and named in the report; a missing one counts as an empty
text unless the benchmark says otherwise.

**Judges** are OpenAI-compatible endpoints, or files of stored answers. Every answer is
kept at once under a hash of all that was asked, so that nothing is asked twice and a
changed caption never gets the answer to another one. Answers that can't be read are
counted. `--judge-prices 0.15,0.6` adds the cost.

**Reports** hold our numbers, the published ones and the difference, the versions of the
metric packages, the checksums of the files, and whether the numbers can be compared.
With a prepared dataset, they are a custom run of it, items get `<key>_caption` and
`<key>_score`, and the App shows the worst ones.

A benchmark of a package of your own is an entry point in the group
`fiftyone_regioncap.benchmarks`, to a `Benchmark` (`evaluation/benchmarks/base.py`).

## All benchmarks
"""


def document() -> str:
    """The whole page."""
    sections = "\n\n".join(map(section, BENCHMARKS.available().values()))
    return f"{INTRODUCTION}\n{table()}\n\n{sections}\n"


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
