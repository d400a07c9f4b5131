"""The options of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fiftyone_regioncap.core.options import Options, group, option
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from fiftyone_regioncap.evaluation.options import METRICS


@dataclass(frozen=True)
class JudgeOptions(Options):
    """Options of the language model that judges answers."""

    judge: str | None = option(
        None,
        "URL of an OpenAI-compatible endpoint, or a file of stored answers; its own "
        "answers are kept, and nothing is asked twice.",
    )
    judge_model: str | None = option(
        None, "Model of the judge; empty for the first that the endpoint lists."
    )
    judge_workers: int = option(
        8, "Number of questions that are asked at once.", minimum=1, advanced=True
    )
    judge_pictures: bool = option(
        False,
        "Show the judge the picture and the mask too, where the benchmark knows it.",
        advanced=True,
    )
    judge_prices: tuple[float, float] = option(
        (0.0, 0.0),
        "Prices of a million tokens that the judge reads, and writes, for the report.",
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Options):
    """Options of making a dataset of a benchmark."""

    benchmark: str = option(
        help="Name of the benchmark; docs/benchmarks.md describes them.",
        choices=dict.fromkeys(BENCHMARKS, ""),
    )
    folder: str = option(
        help="Folder of the benchmark's published files.", picker="folder", flag="from"
    )
    media: str | None = option(
        None,
        "Folder of its images or videos, subfolders included; empty for the folder.",
        picker="folder",
    )
    limit: int | None = option(
        None, "Number of items, the first ones; empty for all.", minimum=1
    )
    dataset: str | None = option(
        None, "Name of the dataset; empty for one of the benchmark's name."
    )
    overwrite: bool = option(False, "Replace a dataset of this name.")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(Options):
    """Options of scoring, whoever makes the predictions."""

    benchmark: str = option(
        help="Name of the benchmark; docs/benchmarks.md describes them.",
        choices=dict.fromkeys(BENCHMARKS, ""),
    )
    folder: str | None = option(
        None,
        "Folder of the benchmark's published files; empty for the one that it was "
        "prepared from.",
        picker="folder",
        flag="from",
    )
    media: str | None = option(
        None,
        "Folder of its images or videos; empty for the one that it was prepared with, "
        "else the folder.",
        picker="folder",
    )
    dataset: str | None = option(
        None,
        "Dataset that the result is kept in; empty for the prepared one, if any.",
        advanced=True,
    )
    key: str | None = option(
        None, "Key of the run; empty for one of what made the predictions."
    )
    metrics: tuple[str, ...] | None = option(
        None,
        f"Caption metrics, out of {', '.join(METRICS)}; empty for the usual ones.",
        choices=dict.fromkeys(METRICS, ""),
        advanced=True,
    )
    models: Mapping[str, Any] | None = option(
        None,
        "Folders of models that metrics need, by name: clip and pac for CLIP-S, PAC-S "
        "and RefPAC-S, bert for BERTScore, embedder for sentence embeddings.",
        flag="metric-model",
        advanced=True,
    )
    default: str | None = option(
        None,
        "Text of items without a prediction; empty for what the benchmark does.",
        advanced=True,
    )
    limit: int | None = option(
        None, "Number of items, the first ones; empty for all.", minimum=1
    )
    output: str | None = option(
        None,
        "Folder of predictions, the judge's answers and the report; empty for one in "
        "the cache.",
        picker="folder",
    )
    judging: JudgeOptions = group(JudgeOptions)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(BenchmarkOptions):
    """Options of scoring a file of predictions."""

    captions: str = option(
        help="Predictions: JSON lines of id and pred, an object of them by id, or as "
        "authors publish them; or a folder of such files.",
        picker="file",
    )
    method: str | None = option(
        None, "Name of what made them, for the table; empty for the file's."
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions(BenchmarkOptions):
    """Options of running a captioner on a benchmark."""

    prompt: str | None = option(
        None,
        "Name of one of the captioner's prompts, or a text; empty for the benchmark's.",
    )
    baseline: Literal["crop", "image", "cls"] | None = option(
        None,
        "What is described in place of the region, to compare with; empty for the "
        "region.",
        choices={
            "crop": "the region's box, cut out of the picture",
            "image": "the whole picture",
            "cls": "the image token of the box cut out; Patch-ioner's tasks alone",
        },
        advanced=True,
    )
    window: int | None = option(
        None,
        "Number of marked frames around the middle one that are shown of a video; "
        "empty for all.",
        unit="frames",
        minimum=1,
        advanced=True,
    )
    overwrite: bool = option(
        False, "Ask the captioner again for what was answered already."
    )


@dataclass(frozen=True, kw_only=True)
class SweepOptions(RunOptions):
    """Options of running a benchmark over values of options."""

    values: Mapping[str, Any] = option(
        help="Values by option, of the captioner or of the run (prompt, window), or "
        "weights: a list each. Every combination is run.",
        flag="set",
    )
