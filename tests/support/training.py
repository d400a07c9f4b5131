"""What parity tests of training compare: gradients, norms, and the loaded numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from fiftyone_regioncap.captioning.trainable import TrainingText
from fiftyone_regioncap.core.types import RLE, FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import CaptionRecord, write_captions
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.review import session
from fiftyone_regioncap.review.queue import ReviewQueue
from fiftyone_regioncap.training.examples import Example, write_examples
from fiftyone_regioncap.training.loop import HELD_OUT, TRAIN, Settings
from fiftyone_regioncap.training.options import LoopOptions
from tests.support.dam import write_checkpoint
from tests.support.patchioner import write_viecap_checkpoint


@dataclass(frozen=True)
class SmallModel:
    """A captioner with small weights, and options with which it takes little time.

    Attributes:
        captioner: Name of the captioner.
        recipe: Options of its training.
        captioning: Options of its captions.
        golden: Folder of its weights below the golden numbers; empty for random ones.
        viecap: Whether a Patch-ioner has ViECap's decoder.
    """

    captioner: str
    recipe: Mapping[str, Any]
    captioning: Mapping[str, Any]
    golden: str = ""
    viecap: bool = False

    def weights(self, golden: Path, patchioner: Path, folder: Path) -> Path:
        """Returns a folder of weights to begin with; skips the test without any.

        Args:
            golden: Folder of the golden numbers.
            patchioner: Folder of a Patch-ioner of random weights.
            folder: Folder to write random weights to.
        """
        if self.captioner == "dam-video":
            write_checkpoint(folder)
            return folder
        if self.captioner == "patchioner":
            if not self.viecap:
                return patchioner
            return write_viecap_checkpoint(folder, patchioner)
        if not (golden / self.golden).is_dir():
            pytest.skip(f"no folder {golden / self.golden}")
        return golden / self.golden


SMALL_MODELS: Mapping[str, SmallModel] = {
    "dam-video": SmallModel("dam-video", {"rank": 2}, {"max_new_tokens": 4}),
    "dynrefer": SmallModel(
        "dynrefer", {"dropout": 0}, {"max_new_tokens": 4}, "dynrefer/model"
    ),
    "ureca": SmallModel(
        "ureca",
        {"rank": 2, "max_tiles": 1},
        {"max_new_tokens": 4, "max_tiles": 1},
        "ureca/model_qwen2",
    ),
    "patchioner": SmallModel("patchioner", {"mitigation": "memory"}, {"frames": 1}),
    "viecap": SmallModel(
        "patchioner", {"trains": "mapping"}, {"frames": 1}, viecap=True
    ),
}
"""Every captioner that can be trained; of Patch-ioner, both decoders."""


@dataclass(frozen=True)
class Golden:
    """The numbers of a reference's training steps, and the set of its checkpoint."""

    values: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    base: Path


def read_golden(golden: Path, model: str, base: str | None = None) -> Golden:
    """Reads ``<model>_train``; skips the test where there is none."""
    folder = golden / f"{model}_train"
    base_folder = golden / (base or model)
    for path in (folder, base_folder):
        if not path.is_dir():
            pytest.skip(f"no folder {path}")
    with np.load(folder / "train.npz") as stored:
        arrays = {name: stored[name] for name in stored}
    values = json.loads((folder / "train.json").read_text())
    return Golden(values, arrays, base_folder)


def gradients(
    network: nn.Module, names: Mapping[str, str]
) -> dict[str, NDArray[np.float64]]:
    """Returns gradients by their published names; zeros where there is none.

    Args:
        network: The network after its backward pass.
        names: From published names to ours.
    """
    ours = dict(network.named_parameters())
    found = {}
    for published, name in names.items():
        gradient = ours[name].grad
        found[published] = (
            np.zeros(tuple(ours[name].shape))
            if gradient is None
            else gradient.double().numpy()
        )
    return found


def close_gradient(
    ours: NDArray[Any], theirs: NDArray[Any], tolerance: float, name: str = ""
) -> None:
    """Compares gradients, relative to the largest entry of the reference's."""
    assert ours.shape == theirs.shape, name
    scale = max(float(np.abs(theirs).max(initial=0)), 1e-12)
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=tolerance * scale, err_msg=name
    )


def close_norms(
    ours: Iterable[float],
    theirs: Sequence[float] | NDArray[Any],
    names: Sequence[str],
    *,
    relative: float,
    absolute: float = 1e-6,
    skip: float = 0.0,
) -> None:
    """Compares norms by name; those below ``skip`` are rounding noise."""
    for name, mine, wanted in zip(names, ours, theirs, strict=True):
        if wanted >= skip or wanted == 0:
            assert mine == pytest.approx(wanted, rel=relative, abs=absolute + skip), (
                name
            )


def image_examples(
    folder: Path, cases: Sequence[tuple[str, NDArray[np.bool_], str]]
) -> list[Example]:
    """Makes examples of regions of images.

    Args:
        folder: Folder of the images.
        cases: File, mask and caption of each.
    """
    return [
        Example(
            id=f"{number:024x}",
            path=str(folder / file),
            kind="image",
            frames=(0,),
            masks=(RLE.encode(mask).counts.decode("ascii"),),
            size=(mask.shape[0], mask.shape[1]),
            text=TrainingText(caption),
            source="captions",
        )
        for number, (file, mask, caption) in enumerate(cases)
    ]


def start_training(
    folder: Path,
    model: str,
    weights: Path,
    examples: Sequence[Example],
    held_out: Sequence[Example] = (),
    recipe: Mapping[str, Any] | None = None,
    **loop: Any,
) -> Path:
    """Writes the folder of a training; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(folder / TRAIN, examples)
    write_examples(folder / HELD_OUT, held_out)
    options = LoopOptions(**{"precision": "float32", "accumulation": 1, **loop})
    Settings(model, str(weights), "cpu", recipe or {}, options, 0).write(folder)
    return folder


def drawn_examples(folder: Path, count: int) -> list[Example]:
    """Draws pictures of a colored square each, with its name as the caption."""
    colors = {
        "red": (200, 30, 30),
        "green": (30, 180, 30),
        "blue": (30, 30, 200),
        "white": (240, 240, 240),
    }
    cases = []
    for number in range(count):
        name, color = list(colors.items())[number % len(colors)]
        frame = np.full((96, 128, 3), 90, dtype=np.uint8)
        mask = np.zeros((96, 128), dtype=bool)
        top, left = 8 + 5 * number, 10 + 11 * number
        mask[top : top + 30, left : left + 30] = True
        frame[mask] = color
        Image.fromarray(frame).save(folder / f"{number}.png")
        cases.append((f"{number}.png", mask, f"a {name} square"))
    return image_examples(folder, cases)


def clip_dataset(clips: Path, names: Sequence[str] = (), window: int = 5) -> fo.Dataset:
    """Makes a dataset of real clips whose captions a person went through.

    All are accepted but those of the first window of each object, which are edited.

    Args:
        clips: Folder with ``meta.json``, ``masks/`` and ``clip.mp4`` in a folder each.
        names: Names of the clips; all of them when empty.
        window: Frames of a caption: several of a clip, so that there is something to
            learn.
    """
    dataset = fo.Dataset()
    folders = sorted(path.parent for path in clips.glob("*/meta.json"))
    for folder in folders:
        if names and folder.name not in names:
            continue
        sample = fo.Sample(filepath=str(folder / "clip.mp4"))
        dataset.add_sample(sample)
        sample.compute_metadata()
        meta = json.loads((folder / "meta.json").read_text())
        objects = {int(one["id"]): one["category"] for one in meta["objects"]}
        seen: dict[int, list[int]] = {}
        with TrackWriter(sample, "frames.tracks") as writer:
            for number, path in enumerate(sorted((folder / "masks").glob("*.png"))):
                indices = np.asarray(Image.open(path))
                masks = {i: indices == i for i in objects if (indices == i).any()}
                for index in masks:
                    seen.setdefault(index, []).append(number)
                found = {i: ObjectMask(mask, 1.0) for i, mask in masks.items()}
                writer.write(FrameMasks(number, found))
        records = [
            CaptionRecord(
                index,
                (frames[start], frames[min(start + window, len(frames)) - 1]),
                caption=f"A {objects[index]} in the scene.",
            )
            for index, frames in seen.items()
            for start in range(0, len(frames), window)
        ]
        write_captions(sample, "captions", records)
    queue = ReviewQueue.of(dataset, "captions")
    first, rest = [], []
    for sample in dataset:
        known: set[int] = set()
        for label in sample["captions"].detections:
            ref = queue[queue.position(label.id) or 0]
            (rest if label.index in known else first).append(ref)
            known.add(label.index)
    session.apply(dataset, "captions", rest, session.accept)
    edited = session.edit("One of the scene, from its first frame on.")
    session.apply(dataset, "captions", first, edited)
    return dataset
