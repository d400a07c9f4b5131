"""URECA's labels, losses and gradients against the reference, whatever their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fiftyone_regioncap.captioning.trainable import Inputs, merged_tensors
from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner
from fiftyone_regioncap.captioning.ureca.configuration import (
    UrecaOptions,
    UrecaTrainingOptions,
)
from fiftyone_regioncap.captioning.ureca.tiling import normalize
from fiftyone_regioncap.captioning.ureca.training import UrecaTraining, jpeg_encoded
from fiftyone_regioncap.captioning.ureca.weights import (
    RENAMED,
    fuse_wqkv,
    split_wqkv,
)
from fiftyone_regioncap.models.loading import rename
from tests.support.training import Golden, close_gradient, read_golden

LOSS, GRADIENT, NORM, STEPS, MERGED, JPEG = 1e-5, 1e-4, 1e-4, 1e-4, 1e-3, 1e-3
PIXELS = 1e-3
"""Of the sum of a tile's normalized values, in float64."""

RUNS = [
    pytest.param((family, mode), id=f"{family} {mode}")
    for family in ("internlm2", "qwen2")
    for mode in ("dynamic", "static")
]
DYNAMIC = [
    pytest.param((family, "dynamic"), id=family) for family in ("internlm2", "qwen2")
]


@pytest.fixture(scope="module")
def ureca(golden: Path) -> Golden:
    torch.set_num_threads(1)
    return read_golden(golden, "ureca")


@pytest.fixture
def run(ureca: Golden, request: pytest.FixtureRequest) -> dict[str, Any]:
    family, mode = request.param
    found = ureca.values["runs"].get(f"{family}/{mode}")
    if found is None:
        pytest.skip(f"no run {family}/{mode}")
    return {**found, "family": family, "mode": mode}


def load(ureca: Golden, run: dict[str, Any], **options: Any) -> UrecaTraining:
    settings = ureca.values["settings"]
    folder = ureca.base / f"model_{run['family']}"
    captioner = UrecaCaptioner.from_pretrained(
        folder,
        device="cpu",
        options=UrecaOptions(
            dtype="float32",
            max_tiles=settings["max_num"],
            dynamic_mask=run["mode"] == "dynamic",
        ),
    )
    return UrecaTraining(
        captioner, folder, UrecaTrainingOptions(compat="reference", **options)
    )


def samples(ureca: Golden, recipe: UrecaTraining) -> list[Inputs]:
    made = []
    for number, item in enumerate(ureca.values["items"]):
        image = Image.open(ureca.base / "inputs" / item["image"]).convert("RGB")
        frame = np.asarray(image.crop(item["crop"]))
        height, width = item["mask_shape"]
        bits = np.unpackbits(ureca.arrays[f"mask{number}"])[: height * width]
        mask = bits.reshape(height, width).astype(bool)
        tiles = recipe.captioner().tiles(frame)
        masks = recipe.captioner().mask_tiles(mask)
        ids, labels = recipe.answered(
            item["question"], item["caption"], len(tiles), len(masks)
        )
        made.append(
            {
                "tiles": torch.from_numpy(tiles),
                "masks": torch.from_numpy(masks),
                "ids": ids,
                "labels": labels,
            }
        )
    return made


def runs_of(values: list[int]) -> list[list[int]]:
    return [[value, len(list(same))] for value, same in groupby(values)]


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_ids_labels_and_batch(ureca: Golden, run: dict[str, Any]) -> None:
    recipe = load(ureca, run)
    made = samples(ureca, recipe)
    for sample, expected in zip(made, run["samples"], strict=True):
        assert len(sample["ids"]) == expected["n_ids"]
        assert runs_of(sample["ids"]) == expected["ids_run_length"]
        assert runs_of(sample["labels"]) == expected["labels_run_length"]
        assert len(sample["tiles"]) == expected["image_tiles"]
        sums = sample["masks"].double().sum(dim=(1, 2)).tolist()
        assert sums == expected["mask_sum_per_tile"]
        pixels = normalize(sample["tiles"]).double().sum(dim=(1, 2, 3)).tolist()
        assert pixels == pytest.approx(expected["pixel_sum_per_tile"], abs=PIXELS * 450)
    batch = recipe.collate(made)
    assert list(batch["ids"].shape) == run["batch_shape"]
    assert batch["attention_mask"].sum(dim=1).tolist() == run["attention_mask_sum"]
    for row, sample, (first, last, end) in zip(
        batch["position_ids"], made, run["position_ids_run"], strict=True
    ):
        assert [row[0], row[len(sample["ids"]) - 1], row[-1]] == [first, last, end]


def norms(parameters: Mapping[str, torch.Tensor | None]) -> list[float]:
    return [
        0.0 if tensor is None else float(tensor.detach().double().norm())
        for tensor in parameters.values()
    ]


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_stage_1(ureca: Golden, run: dict[str, Any]) -> None:
    expected = run["stage1"]
    recipe = load(ureca, run, stage="masks")
    made = samples(ureca, recipe)
    there = dict(recipe.network.named_parameters())
    parameters = {name: there[f"model.{name}"] for name in expected["trainable"]}
    trained = [p for p in there.values() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in parameters.values()}
    for sample, alone in zip(made, expected["loss_alone"], strict=True):
        with torch.no_grad():
            loss = recipe.network(**recipe.collate([sample]))["loss"].item()
        assert loss == pytest.approx(alone, rel=LOSS)
    batch = recipe.collate(made)
    loss = recipe.network(**batch)["loss"]
    assert loss.item() == pytest.approx(expected["loss"], rel=LOSS)
    loss.backward()
    found = norms({name: p.grad for name, p in parameters.items()})
    assert found == pytest.approx(expected["grad_norms"], rel=NORM)
    prefix = f"{run['family']}/{run['mode']}/s1/grad/"
    for key, wanted in ureca.arrays.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            gradient = parameters[name].grad
            assert gradient is not None
            mine = gradient.numpy()
            if mine.shape != wanted.shape:
                mine = mine[:, ::97]
            close_gradient(mine, wanted, GRADIENT, name)
    for clip in (None, 1.0):
        steps = expected[f"steps_clip_{clip}"]
        again = load(ureca, run, stage="masks")
        there = dict(again.network.named_parameters())
        parameters = {name: there[f"model.{name}"] for name in expected["trainable"]}
        losses = take_steps(ureca, again, parameters, expected, batch, "stage1", clip)
        assert losses == pytest.approx(steps["losses"], rel=STEPS)
        assert norms(parameters) == pytest.approx(steps["param_norms"], rel=STEPS)


def take_steps(
    ureca: Golden,
    recipe: UrecaTraining,
    parameters: Mapping[str, nn.Parameter],
    expected: dict[str, Any],
    batch: Inputs,
    stage: str,
    clip: float | None = None,
) -> list[float]:
    settings = ureca.values["settings"]
    still = set(expected.get("no_weight_decay", ()))
    groups = [
        {"params": [p for n, p in parameters.items() if n not in still]},
        {
            "params": [p for n, p in parameters.items() if n in still],
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings[stage]["lr"],
        weight_decay=settings[stage]["wd"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
    )
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = recipe.network(**batch)["loss"]
        losses.append(loss.item())
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(list(parameters.values()), clip)
        optimizer.step()
    with torch.no_grad():
        losses.append(recipe.network(**batch)["loss"].item())
    return losses


class Adapters:
    """LoRA matrices by their published names, where InternLM2's are fused."""

    def __init__(self, recipe: UrecaTraining) -> None:
        self.recipe = recipe
        self.ours = dict(recipe.network.named_parameters(remove_duplicate=False))
        self.config = recipe.captioner().model.config

    def parts(self, published: str) -> list[nn.Parameter]:
        """Our parameters of a published matrix: three behind a fused B, else one."""
        name, _, rest = published.partition(".lora_")
        kind = f"lora_{rest}"
        name = rename(f"{name}.weight", RENAMED).removesuffix(".weight")
        stems = [name]
        if name.endswith(".attention.wqkv"):
            stem = name.removesuffix(".attention.wqkv")
            stems = [f"{stem}.self_attn.{part}_proj" for part in "qkv"]
            if "lora_A" in kind:
                stems = stems[:1]
        return [self.ours[f"model.{stem}.{kind}"] for stem in stems]

    def joined(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return tensors[0] if len(tensors) == 1 else fuse_wqkv(tensors, self.config)

    def write(self, published: str, value: torch.Tensor) -> None:
        parts = self.parts(published)
        values = [value] if len(parts) == 1 else split_wqkv(value, self.config)
        for part, one in zip(parts, values, strict=True):
            part.data.copy_(one)


@pytest.mark.parametrize("variant", ["b_zero", "b_random"])
@pytest.mark.parametrize("run", DYNAMIC, indirect=True)
def test_stage_2(ureca: Golden, run: dict[str, Any], variant: str) -> None:
    stage, family = run["stage2"], run["family"]
    expected = stage[variant]
    rank, alpha, dropout = stage["r_alpha_dropout"]
    recipe = load(ureca, run, rank=rank, alpha=alpha, dropout=dropout)
    adapters = Adapters(recipe)
    base = {n: t.clone() for n, t in merged_tensors(recipe.network)}
    for start in ("lora_init", *(["lora_init_b"] if variant == "b_random" else [])):
        for key, value in ureca.arrays.items():
            if key.startswith(f"{family}/{start}/"):
                name = key.removeprefix(f"{family}/{start}/")
                adapters.write(name, torch.from_numpy(value))
    trained = {n: adapters.parts(n) for n in stage["trainable"]}
    batch = recipe.collate(samples(ureca, recipe))
    loss = recipe.network(**batch)["loss"]
    assert loss.item() == pytest.approx(expected["loss"], rel=LOSS)
    loss.backward()
    gradients = {
        name: adapters.joined([part.grad for part in parts])  # type: ignore[misc]
        for name, parts in trained.items()
    }
    assert norms(gradients) == pytest.approx(expected["grad_norms"], rel=NORM, abs=1e-6)
    total = sum(norm**2 for norm in norms(gradients)) ** 0.5
    assert total == pytest.approx(expected["total_grad_norm"], rel=NORM)
    for name, gradient in gradients.items():
        wanted = ureca.arrays.get(f"{family}/s2/{variant}/grad/{name}")
        if wanted is not None:
            close_gradient(gradient.numpy(), wanted, GRADIENT, name)
    parameters = {
        f"{name}{number}": part
        for name, parts in trained.items()
        for number, part in enumerate(parts)
    }
    losses = take_steps(ureca, recipe, parameters, stage, batch, "stage2")
    assert losses == pytest.approx(expected["losses_steps"], rel=STEPS)
    after = {
        name: adapters.joined([part.detach() for part in parts])
        for name, parts in trained.items()
    }
    assert norms(after) == pytest.approx(expected["param_norms_after"], rel=STEPS)
    merged = dict(merged_tensors(recipe.network))
    for name, norm in expected["merged_delta_norms"].items():
        place = rename(f"language_model.{name}", RENAMED)
        places = [f"model.{place}"]
        if ".attention.wqkv." in place:
            places = [
                f"model.{place}".replace(".attention.wqkv.", f".self_attn.{part}_proj.")
                for part in "qkv"
            ]
        moved = sum((merged[p] - base[p]).norm().item() ** 2 for p in places) ** 0.5
        assert moved == pytest.approx(norm, rel=MERGED), name


def test_jpeg_augmentation(ureca: Golden) -> None:
    run = {"family": "qwen2", "mode": "dynamic"}
    tile = samples(ureca, load(ureca, run))[0]["tiles"][0].numpy()
    for quality, expected in ureca.values["jpeg"].items():
        encoded = jpeg_encoded(tile, int(quality))
        assert encoded.sum() == pytest.approx(expected["sum"], rel=JPEG)
        change = np.abs(encoded.astype(int) - tile.astype(int)).mean()
        assert change == pytest.approx(expected["mean_abs_change"], rel=0.05)
