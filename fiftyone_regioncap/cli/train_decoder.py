"""Declares ``regioncap train-decoder``: Patch-ioner's decoder, from text alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiftyone_regioncap.captioning.patchioner.configuration import (
    DecoderTrainingOptions,
)
from fiftyone_regioncap.cli.commands import given, parameter
from fiftyone_regioncap.core.options import fields_of

if TYPE_CHECKING:
    from fiftyone_regioncap.captioning.patchioner.training import Epoch


@click.command()
@click.option(
    "--captions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="A text file, one caption a line.",
)
@click.option("--base", required=True, help="Checkpoint with the text tower.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--device", help="Such as cuda or cpu.")
def train_decoder(
    captions: Path, base: str, out: Path, device: str | None, **values: Any
) -> None:
    """Train a caption decoder on text; killed and run again, it goes on."""
    from fiftyone_regioncap.captioning.patchioner.training import train_decoder as train
    from fiftyone_regioncap.models.loading import choose_device

    options = DecoderTrainingOptions.from_mapping(given(values), "train-decoder")

    def tell(epoch: Epoch) -> None:
        held = (
            ""
            if epoch.held_out_loss is None
            else f", held out {epoch.held_out_loss:.4f}"
        )
        click.echo(f"epoch {epoch.number}: loss {epoch.loss:.4f}{held}")

    lines = captions.read_text("utf-8").splitlines()
    train(
        [line.strip() for line in lines if line.strip()],
        base,
        out,
        options=options,
        device=choose_device(device),
        progress=tell,
    )
    click.echo(f"use it with --captioner patchioner --weights {out}")


train_decoder.params += [parameter(one) for one in fields_of(DecoderTrainingOptions)]
