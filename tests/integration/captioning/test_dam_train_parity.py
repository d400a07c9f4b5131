"""DAM's loss and gradients against the published forward, whatever their sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fiftyone_regioncap.captioning.dam.captioner import DamCaptioner
from fiftyone_regioncap.captioning.dam.configuration import (
    DamOptions,
    DamTrainingOptions,
)
from fiftyone_regioncap.captioning.dam.prompts import SYSTEM
from fiftyone_regioncap.captioning.dam.training import DamTraining, close_gates
from fiftyone_regioncap.captioning.trainable import Inputs
from tests.support.training import (
    Golden,
    close_gradient,
    close_norms,
    gradients,
    read_golden,
)

LOSS, GRADIENT, NORM, STEPS = 1e-5, 1e-3, 5e-4, 1e-4
NOISE = 1e-4
"""Norms below this are of gradients that are zero in exact arithmetic."""

RENAMED = (
    (r"^vision_tower\.vision_tower\.vision_model\.", "encoder.tower."),
    (r"^context_provider\.context_provider_module\.", "encoder.adapters."),
    (r"^mm_projector\.", "projector."),
    (r"^llm\.", "llm."),
)


@pytest.fixture(scope="module")
def dam(golden: Path) -> Golden:
    torch.set_num_threads(1)
    return read_golden(golden, "dam")


@pytest.fixture
def recipe(dam: Golden) -> DamTraining:
    folder = dam.base / "checkpoint"
    captioner = DamCaptioner.from_pretrained(
        folder, device="cpu", options=DamOptions(dtype="float32")
    )
    return DamTraining(captioner, folder, DamTrainingOptions(stage="everything"))


def ours(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def sample(dam: Golden, recipe: DamTraining, case: dict[str, Any]) -> Inputs:
    place = json.loads((dam.base / "cases" / f"{case['case']}.json").read_text())
    image, mask = (
        np.asarray(Image.open(dam.base / place[name])) for name in ("image", "mask")
    )
    views = torch.from_numpy(recipe.captioner().dam.processor.views(image, mask)[0])
    query = case["prompt"].removeprefix(f"{SYSTEM} USER: ").removesuffix(" ASSISTANT:")
    answer = case["target"].removesuffix("</s>")
    ids, labels = recipe.answered(query, answer)
    assert ids == case["input_ids"]
    spoken = [label for label in case["labels"] if label != -100]
    assert [label for label in labels if label != -100] == spoken
    assert labels[-len(spoken) :] == spoken == case["labels"][-len(spoken) :]
    views = views[None]
    distinct = (views[:, :4] != views[:, 4:]).flatten(1).any(dim=1)
    return {"views": views, "distinct": distinct, "ids": ids, "labels": labels}


@pytest.fixture
def samples(dam: Golden, recipe: DamTraining) -> list[Inputs]:
    return [sample(dam, recipe, case) for case in dam.values["cases"]]


def names(dam: Golden, recipe: DamTraining) -> dict[str, str]:
    """Published names that have a place here: what no caption depends on has none."""
    there = dict(recipe.network.named_parameters())
    return {n: ours(n) for n in dam.values["parameters"] if ours(n) in there}


def backward(recipe: DamTraining, samples: list[Inputs]) -> float:
    recipe.network.zero_grad()
    loss = recipe.network(**recipe.collate(samples))["loss"]
    loss.backward()
    return loss.item()


def check_norms(dam: Golden, recipe: DamTraining, key: str) -> None:
    known = names(dam, recipe)
    found = gradients(recipe.network, known)
    wanted = dict(zip(dam.values["parameters"], dam.arrays[key], strict=True))
    assert all(wanted[name] == 0 for name in wanted.keys() - known.keys())
    close_norms(
        [float(np.linalg.norm(found[name])) for name in known],
        [float(wanted[name]) for name in known],
        list(known),
        relative=NORM,
        skip=NOISE,
    )


def test_loss_and_gradients_of_each_case(
    dam: Golden, recipe: DamTraining, samples: list[Inputs]
) -> None:
    for number, (case, one) in enumerate(
        zip(dam.values["cases"], samples, strict=True)
    ):
        assert backward(recipe, [one]) == pytest.approx(case["loss"], rel=LOSS)
        check_norms(dam, recipe, f"case{number}/grad_norms")
        found = gradients(recipe.network, names(dam, recipe))
        for key, wanted in dam.arrays.items():
            kind, _, name = key.removeprefix(f"case{number}/").partition("/")
            if not key.startswith(f"case{number}/") or name not in found:
                continue
            step = (..., slice(None, None, 5), slice(None, None, 5))
            mine = found[name][step] if kind == "grad_sub" else found[name]
            close_gradient(mine, wanted, GRADIENT, name)


def test_loss_and_gradients_of_the_batch(
    dam: Golden, recipe: DamTraining, samples: list[Inputs]
) -> None:
    loss = backward(recipe, samples)
    assert loss == pytest.approx(dam.values["batch_loss"], rel=LOSS)
    check_norms(dam, recipe, "batch/grad_norms")


def test_closed_gates(dam: Golden, recipe: DamTraining, samples: list[Inputs]) -> None:
    close_gates(recipe.network)
    loss = backward(recipe, samples[:1])
    assert loss == pytest.approx(dam.values["zero_gates_loss_case0"], rel=LOSS)
    check_norms(dam, recipe, "zero_gates/grad_norms")
    moved = {
        name
        for name, gradient in gradients(recipe.network, names(dam, recipe)).items()
        if name.startswith("context_provider.") and gradient.any()
    }
    assert moved == set(dam.values["zero_gates_nonzero_in_context_provider"])


@pytest.mark.parametrize(
    ("run", "zero", "rate"),
    [
        pytest.param("steps_from_zero_gates_lr1e-3", True, 1e-3, id="closed gates"),
        pytest.param("steps_from_checkpoint_lr1e-4", False, 1e-4, id="checkpoint"),
    ],
)
def test_steps(
    dam: Golden,
    recipe: DamTraining,
    samples: list[Inputs],
    run: str,
    zero: bool,
    rate: float,
) -> None:
    expected = dam.values[run]
    if zero:
        close_gates(recipe.network)
    known = {name: ours(name) for name in expected["names"]}
    there = dict(recipe.network.named_parameters())
    training = {name: there[place] for name, place in known.items() if place in there}
    recipe.network.requires_grad_(False)
    for parameter in training.values():
        parameter.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in training.items()}
    optimizer = torch.optim.AdamW(training.values(), lr=rate, weight_decay=0)
    losses = list(_losses(recipe, samples, optimizer, len(expected["losses"])))
    assert losses == pytest.approx(expected["losses"], rel=STEPS)
    for name, value in expected["factors"].items():
        if name in training:
            assert training[name].item() == pytest.approx(value, rel=1e-3, abs=1e-6)
    moved = [(p - before[n]).norm().item() for n, p in training.items()]
    wanted = dict(zip(expected["names"], expected["update_norms"], strict=True))
    noisy = [n for n in training if n.endswith("k_proj.bias")]
    for name, mine in zip(training, moved, strict=True):
        if name not in noisy:
            assert mine == pytest.approx(wanted[name], rel=1e-2, abs=1e-6), name


def _losses(
    recipe: DamTraining,
    samples: list[Inputs],
    optimizer: torch.optim.Optimizer,
    count: int,
) -> Iterator[float]:
    for number in range(count):
        yield backward(recipe, samples)
        if number < count - 1:
            optimizer.step()
