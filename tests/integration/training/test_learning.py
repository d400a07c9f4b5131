"""Each captioner learns a few captions, and its weights come back by its loader."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.training.examples import Example, Reader
from fiftyone_regioncap.training.loop import fit
from tests.support.training import image_examples, start_training

CAPTIONS = (
    "a small dark bird.",
    "a man in a red coat.",
    "the wide green field.",
    "a white boat at sea.",
)


@pytest.fixture(scope="module")
def dam_examples(golden: Path) -> list[Example]:
    torch.set_num_threads(1)
    folder = golden / "dam"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    cases = [
        json.loads(path.read_text())
        for path in sorted(folder.glob("cases/*.json"))
        if not path.stem.endswith("_layers")
    ]
    images = [case for case in cases if "image" in case][: len(CAPTIONS)]
    return image_examples(
        folder,
        [
            (case["image"], np.asarray(Image.open(folder / case["mask"])) > 0, text)
            for case, text in zip(images, CAPTIONS, strict=False)
        ],
    )


@pytest.fixture(scope="module")
def square_examples(golden: Path) -> list[Example]:
    """Regions of the images that DynRefer's and URECA's numbers were made from."""
    torch.set_num_threads(1)
    folder = golden / "dynrefer" / "inputs"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    files = sorted(path.name for path in folder.glob("*.png"))[:2]
    cases = []
    for number, text in enumerate(CAPTIONS[:3]):
        file = files[number % len(files)]
        width, height = Image.open(folder / file).size
        mask = np.zeros((height, width), dtype=bool)
        left = (number * width) // 4
        mask[height // 4 : height // 2, left : left + width // 3] = True
        cases.append((file, mask, text))
    return image_examples(folder, cases)


def clips_of(examples: Sequence[Example]) -> list[RegionClip]:
    return [Reader().clip(example) for example in examples]


def said(name: str, weights: Path, clips: Sequence[RegionClip], **options: Any):
    spec = ModelSpec(name, str(weights), "cpu", options)
    captioner, _ = CAPTIONERS.load(spec)
    together = [caption.text for caption in captioner.caption(clips)]
    alone = [captioner.caption([clip])[0].text for clip in clips]
    assert together == alone
    return together


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["lora", "both"])
def test_dam_learns_captions_by_heart(
    golden: Path, dam_examples: list[Example], tmp_path: Path, stage: str
) -> None:
    folder = start_training(
        tmp_path / "run",
        "dam",
        golden / "dam" / "checkpoint",
        dam_examples,
        recipe={"stage": stage},
        epochs=30,
        batch_size=4,
        learning_rate=5e-3,
    )
    recipe, result = fit(folder)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.05 < 5 < losses[0]
    clips = clips_of(dam_examples)
    wanted = [example.text.caption for example in dam_examples]
    recipe.export(folder / "whole")
    recipe.export(folder / "adapter", adapter=True)
    for name in ("whole", "adapter"):
        assert said("dam", folder / name, clips) == wanted
    assert not [p for p in (folder / "whole").rglob("*") if p.suffix in (".pt", ".bin")]


@pytest.mark.slow
def test_dynrefer_learns(
    golden: Path, square_examples: list[Example], tmp_path: Path
) -> None:
    folder = start_training(
        tmp_path / "run",
        "dynrefer",
        golden / "dynrefer" / "model",
        square_examples,
        recipe={"dropout": 0.0, "no_controls": 1.0},
        epochs=12,
        batch_size=3,
        learning_rate=3e-3,
    )
    recipe, result = fit(folder)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    clips = clips_of(square_examples)
    trained = [caption.text for caption in recipe.captioner().caption(clips)]
    recipe.export(folder / "whole")
    found = said("dynrefer", folder / "whole", clips, tasks=("caption", "tags"))
    assert found == trained
    assert not (folder / "whole" / "dynrefer_ckpt.pth").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["internlm2", "qwen2"])
@pytest.mark.parametrize(
    ("recipe_options", "rate", "share"),
    [
        pytest.param({"stage": "lora", "rank": 8}, 1e-2, 0.3, id="stage 2"),
        pytest.param({"stage": "masks", "mask_tokens": 5}, 1e-2, 0.9, id="stage 1"),
    ],
)
def test_ureca_learns(
    golden: Path,
    square_examples: list[Example],
    tmp_path: Path,
    family: str,
    recipe_options: dict[str, Any],
    rate: float,
    share: float,
) -> None:
    base = golden / "ureca" / f"model_{family}"
    if not base.is_dir():
        pytest.skip(f"no folder {base}")
    folder = start_training(
        tmp_path / "run",
        "ureca",
        base,
        square_examples[:2],
        recipe={"max_tiles": 1, **recipe_options},
        epochs=20,
        batch_size=2,
        learning_rate=rate,
    )
    recipe, result = fit(folder)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < share * losses[0]
    clips = clips_of(square_examples[:2])
    options = {"max_new_tokens": 16, "max_tiles": 1}
    recipe.export(folder / "whole")
    names = ["whole"]
    if recipe_options["stage"] == "lora":
        recipe.export(folder / "adapter", adapter=True)
        names.append("adapter")
    texts = [said("ureca", folder / name, clips, **options) for name in names]
    captioner = recipe.captioner()
    captioner.options = replace(captioner.options, max_new_tokens=16)
    trained = [caption.text for caption in captioner.caption(clips)]
    assert all(found == trained for found in texts)
