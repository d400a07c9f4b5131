"""Trains a captioner on real clips, and draws its learning curve.

Makes a dataset of clips with masks (frames/, masks/, meta.json and clip.mp4 in a folder
each), with a caption for every object that is taken as accepted by a person, and calls
the SDK's ``train``. Without weights, a tiny DAM of random ones is trained: its curve
shows the loop, not how good captions get.

    python -m benchmarks.training CLIPS --out docs/images/training.png
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from fiftyone_regioncap.system.database import ensure

ensure()
matplotlib.use("Agg")

import fiftyone as fo  # noqa: E402  (reads the database's address when imported)
from matplotlib import pyplot  # noqa: E402

from fiftyone_regioncap import api  # noqa: E402
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask  # noqa: E402
from fiftyone_regioncap.dataset.captions import (  # noqa: E402
    CaptionRecord,
    write_captions,
)
from fiftyone_regioncap.dataset.tracks import TrackWriter  # noqa: E402
from fiftyone_regioncap.training.run import TrainingSummary  # noqa: E402
from tests.support.dam import TINY, write_checkpoint  # noqa: E402

WINDOW = 5
"""Frames of a caption: several of a clip, so that there is something to learn."""


def dataset_of(clips: Path) -> fo.Dataset:
    """Makes a dataset of the clips, with tracks and accepted captions."""
    dataset = fo.Dataset()
    for folder in sorted(path.parent for path in clips.glob("*/meta.json")):
        sample = fo.Sample(filepath=str(folder / "clip.mp4"))
        dataset.add_sample(sample)
        sample.compute_metadata()
        meta = json.loads((folder / "meta.json").read_text())
        names = {int(one["id"]): one["category"] for one in meta["objects"]}
        seen: dict[int, list[int]] = {}
        with TrackWriter(sample, "frames.tracks") as writer:
            for number, path in enumerate(sorted((folder / "masks").glob("*.png"))):
                indices = np.asarray(Image.open(path))
                masks = {i: indices == i for i in names if (indices == i).any()}
                for index in masks:
                    seen.setdefault(index, []).append(number)
                found = {i: ObjectMask(mask, 1.0) for i, mask in masks.items()}
                writer.write(FrameMasks(number, found))
        records = [
            CaptionRecord(
                index,
                (frames[start], frames[min(start + WINDOW, len(frames)) - 1]),
                caption=f"A {names[index]} in the scene.",
                review="accepted",
            )
            for index, frames in seen.items()
            for start in range(0, len(frames), WINDOW)
        ]
        write_captions(sample, "captions", records)
    return dataset


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
    dataset = dataset_of(chosen.clips)
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
