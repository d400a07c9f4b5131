"""``regioncap evaluate patchioner``: the four tasks of Patch-ioner's paper."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import click


@click.command()
@click.option(
    "--task",
    type=click.Choice(["trace", "dense", "region-set", "image"]),
    required=True,
    help="Which of the paper's tasks.",
)
@click.option(
    "--annotations",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=True,
    help="The published file.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    help="Folder of the images.",
)
@click.option(
    "--captions",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="For the image task, a COCO file of captions.",
)
@click.option("--weights", help="Of Patch-ioner: a folder or a hub id.")
@click.option(
    "--weighting",
    type=click.Choice(["mean", "gaussian", "attention"]),
    default="mean",
    show_default=True,
    help="Of the patches of a region; the paper's whole images take attention.",
)
@click.option("--variance", type=float, default=1.0, help="Of the Gaussian.")
@click.option(
    "--compat",
    type=click.Choice(["reference", "fixed"]),
    default="reference",
    show_default=True,
    help="The published numbers are those of the reference.",
)
@click.option(
    "--metrics",
    default="bleu,meteor,rouge_l,cider",
    show_default=True,
    help="Also: spice. METEOR and SPICE need Java.",
)
@click.option("--limit", type=click.IntRange(1), help="Images to look at.")
@click.option("--device", help="Such as cuda or cpu.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the scores (JSON, Markdown) and the captions (JSON lines).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    task: str,
    annotations: Path,
    images: Path,
    captions: Path | None,
    weights: str | None,
    weighting: str,
    variance: float,
    compat: str,
    metrics: str,
    limit: int | None,
    device: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Describes the regions of an annotation file, and scores the captions."""
    from tqdm import tqdm

    from fiftyone_regioncap.captioning.patchioner.aggregation import Weighting
    from fiftyone_regioncap.captioning.patchioner.checkpoint import (
        DEFAULT_REPOSITORY,
        Checkpoint,
    )
    from fiftyone_regioncap.evaluation.patchioner import Answer, evaluate_task
    from fiftyone_regioncap.models.loading import choose_device

    model = Checkpoint.open(weights or DEFAULT_REPOSITORY, {"compat": compat}).load(
        choose_device(device)
    )
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(unit="caption", disable=not sys.stderr.isatty()))
        lines = None
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            path = output / f"{task}.captions.jsonl"
            lines = stack.enter_context(path.open("w", encoding="utf-8"))

        def listen(answer: Answer) -> None:
            bar.update()
            if lines is not None:
                lines.write(answer.to_json() + "\n")

        scores = evaluate_task(
            task,  # type: ignore[arg-type]  # click checked it
            annotations,
            images,
            model,
            captions=captions,
            weighting=Weighting(weighting, variance),  # type: ignore[arg-type]
            metrics=[name.strip() for name in metrics.split(",") if name.strip()],
            limit=limit,
            listener=listen,
        )
    if output is not None:
        text = json.dumps(scores.to_dict(), indent=2)
        (output / f"{task}.json").write_text(text, encoding="utf-8")
        (output / f"{task}.md").write_text(scores.to_markdown(), encoding="utf-8")
    click.echo(
        json.dumps(scores.to_dict(), indent=2) if as_json else scores.to_markdown()
    )
