"""``regioncap train-decoder``: Patch-ioner's decoder, from text alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

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
@click.option("--epochs", type=int, default=10, show_default=True)
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option("--learning-rate", type=float, default=1e-5, show_default=True)
@click.option("--warmup", type=int, default=1000, show_default=True, help="Steps.")
@click.option("--noise", type=float, default=0.0, show_default=True)
@click.option("--held-out", type=float, default=0.0, show_default=True)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--device", help="Such as cuda or cpu.")
def train_decoder(
    captions: Path,
    base: str,
    out: Path,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup: int,
    noise: float,
    held_out: float,
    seed: int,
    device: str | None,
) -> None:
    """Trains a caption decoder on text; killed and run again, it goes on."""
    from fiftyone_regioncap.captioning.patchioner.configuration import (
        DecoderTrainingOptions,
    )
    from fiftyone_regioncap.captioning.patchioner.training import train_decoder as train
    from fiftyone_regioncap.models.registry import best_device

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
        options=DecoderTrainingOptions(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup=warmup,
            noise=noise,
            held_out=held_out,
            seed=seed,
        ),
        device=device or best_device(),
        progress=tell,
    )
    click.echo(f"use it with --captioner patchioner --weights {out}")
