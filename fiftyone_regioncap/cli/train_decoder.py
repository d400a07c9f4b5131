"""Declares ``regioncap train-decoder``: Patch-ioner's decoder, from text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fiftyone_regioncap.cli.commands import given, parameter, show
from fiftyone_regioncap.core.options import fields_of
from fiftyone_regioncap.training.options import LoopOptions, TrainOptions

_OTHERS = ("out", "held_out", "seed", "recipe_options", "processes", "restart")


@click.command()
@click.option(
    "--captions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="A text file, one caption a line.",
)
@click.option("--base", required=True, help="Checkpoint with the text tower.")
@click.option("--device", help="Such as cuda or cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train_decoder(
    captions: Path, base: str, device: str | None, as_json: bool, **values: Any
) -> None:
    """Train a caption decoder on text; killed and run again, it goes on."""
    options = TrainOptions.from_mapping(given(values), "train-decoder")

    from fiftyone_regioncap.models.registry import ModelSpec
    from fiftyone_regioncap.training.run import of_texts, train_on

    lines = captions.read_text("utf-8").splitlines()
    texts = of_texts([line.strip() for line in lines if line.strip()])
    spec = ModelSpec("patchioner", base, device)
    summary, _ = train_on(texts, spec, options)
    show(summary, as_json)


_LOOP = {one.name for one in fields_of(LoopOptions)}
train_decoder.params += [
    parameter(one)
    for one in fields_of(TrainOptions)
    if one.name in _LOOP or one.name in _OTHERS
]
