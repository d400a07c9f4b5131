"""Trains a captioner on real clips, and draws its learning curve.

Makes a dataset of clips with masks (frames/, masks/, meta.json and clip.mp4 in a folder
each), with a caption for every object that is taken as accepted by a person, and calls
the SDK's ``train``. Without weights, a tiny DAM of random ones is trained: its curve
shows the loop, not how good captions get.

    python -m benchmarks.training CLIPS --out docs/images/training.png
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import matplotlib

from fiftyone_regioncap.system.database import ensure

ensure()
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

from fiftyone_regioncap import api  # noqa: E402
from fiftyone_regioncap.training.run import TrainingSummary  # noqa: E402
from tests.support.dam import TINY, write_checkpoint  # noqa: E402
from tests.support.training import clip_dataset  # noqa: E402


def draw(summary: TrainingSummary, path: Path) -> None:
    """Draws the losses by step."""
    steps, losses = zip(*summary.losses, strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(steps, losses, color="tab:blue", alpha=0.7, label="captions learned")
    held_out = summary.fit.evaluations
    if held_out:
        values = [metrics["loss"] for metrics in held_out.values()]
        axes.plot(list(held_out), values, "o-", color="tab:red", label="held out")
        axes.axvline(summary.fit.best_step, color="gray", linestyle=":", label="kept")
    axes.set(xlabel="step", ylabel="cross-entropy per token", yscale="log")
    axes.set_title(f"{summary.model}: {summary.trained} captions")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Trains and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--out", type=Path, default=Path("training.png"))
    parser.add_argument("--model", default="dam-video")
    parser.add_argument("--weights", type=Path, help="none for tiny random ones")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--device")
    chosen = parser.parse_args()
    dataset = clip_dataset(chosen.clips)
    try:
        with tempfile.TemporaryDirectory() as name:
            weights = chosen.weights or Path(name) / "weights"
            if chosen.weights is None:
                write_checkpoint(weights, TINY)
            begin = time.perf_counter()
            summary = api.train(
                dataset,
                model=chosen.model,
                weights=str(weights),
                device=chosen.device,
                out=str(Path(name) / "training"),
                epochs=chosen.epochs,
                learning_rate=chosen.learning_rate,
                batch_size=4,
                accumulation=1,
                held_out=0.25,
            )
            took = time.perf_counter() - begin
            print(summary.to_markdown())
            print(f"{took / summary.fit.steps:.2f} s a step of 4 captions")
            draw(summary, chosen.out)
    finally:
        dataset.delete()


if __name__ == "__main__":
    main()
