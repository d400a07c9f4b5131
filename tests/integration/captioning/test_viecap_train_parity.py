"""ViECap's masking, losses and gradients against the reference's, in any size."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import get_linear_schedule_with_warmup

from fiftyone_regioncap.captioning.patchioner.gpt2 import load_gpt2_tokenizer
from fiftyone_regioncap.captioning.patchioner.training import (
    ViecapNetwork,
    as_sentence,
    masked_entities,
    noisy,
    valid_entities,
)
from fiftyone_regioncap.captioning.patchioner.viecap import ViecapDecoder, hard_prompt
from fiftyone_regioncap.captioning.trainable import (
    IGNORED,
    Inputs,
    next_tokens,
    pad_rows,
)
from tests.support.training import Golden, close_gradient, close_norms, read_golden

PREFIX, LOSS, GRADIENT, NORM, STEPS, SHARE = 1e-6, 1e-5, 1e-4, 1e-4, 1e-4, 0.03


@pytest.fixture(scope="module")
def viecap(golden: Path) -> Golden:
    torch.set_num_threads(1)
    return read_golden(golden, "viecap", "patchioner")


@pytest.fixture
def network(viecap: Golden) -> ViecapNetwork:
    values = json.loads((viecap.base / "viecap_in.json").read_text())
    with np.load(viecap.base / "viecap_in.npz") as stored:
        state = {
            name: torch.from_numpy(stored[name].copy())
            for name in stored
            if name.startswith(("gpt.", "mapping_network."))
        }
    decoder = ViecapDecoder.from_state_dict(
        state,
        load_gpt2_tokenizer(),
        heads=values["n_head"],
        mapper_heads=viecap.values["settings"]["mapping_heads"],
    )
    for module in decoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    network = ViecapNetwork(decoder)
    network.requires_grad_(True).train()
    return network


class Injected(random.Random):
    """Gives numbers that were written down."""

    def __init__(self, numbers: Sequence[float]) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


def test_entities(viecap: Golden) -> None:
    vocabulary = set(viecap.values["vocabulary"]["used_single_words"])
    for case in viecap.values["survivors_without_masking"]:
        assert valid_entities(case["detected"], vocabulary) == case["valid_in_order"]
    for case in viecap.values["masking"]:
        draw = Injected(case["u"])
        found = masked_entities(case["detected"], vocabulary, draw, 0.4)
        assert found == list(dict.fromkeys(case["kept_in_order"]))
        assert not draw.numbers
    draw = random.Random(0)
    kept = sum(bool(masked_entities(["dog"], None, draw, 0.4)) for _ in range(4000))
    for share in viecap.values["kept_fraction"]:
        assert kept / 4000 == pytest.approx(share, abs=SHARE)


def test_prompts_and_sentences(viecap: Golden, network: ViecapNetwork) -> None:
    for case in viecap.values["hard_prompts"]:
        text = hard_prompt(case["entities"])
        assert text == case["text"]
        assert network.decoder.tokenizer.encode(text) == case["ids"]
    cleaned = viecap.values["caption_normalisation"]
    raw = [text for texts in cleaned["input"].values() for text in texts]
    assert [as_sentence(text) for text in raw] == cleaned["output"]


def batch_of(
    viecap: Golden, network: ViecapNetwork, number: int, noise: bool = True
) -> Inputs:
    batch = viecap.values["batches"][number]
    arrays, encode = viecap.arrays, network.decoder.tokenizer.encode
    soft = len(network.decoder.mapping_network.prefix_const)
    ids, labels, prefix = [], [], []
    for row, (item, hard, caption) in enumerate(
        zip(batch["items"], batch["hard_prompts"], batch["captions"], strict=True)
    ):
        before, said = encode(hard), encode(as_sentence(caption))
        ids.append([*before, *said])
        targets = [token or IGNORED for token in said]
        labels.append(next_tokens([*[IGNORED] * (soft + len(before)), *targets]))
        drawn = torch.from_numpy(arrays[f"b{number}/noise"][row])
        drawn = viecap.values["settings"]["noise_variance"] ** 0.5 * drawn
        feature = torch.from_numpy(arrays["features"][item])
        prefix.append(noisy(feature, drawn if noise else None))
    return {
        "prefix": torch.stack(prefix),
        "ids": pad_rows(ids, 0),
        "labels": pad_rows(labels, IGNORED),
    }


def padded(ours: torch.Tensor, theirs: NDArray[Any], value: int) -> NDArray[Any]:
    rows = np.full_like(theirs, value)
    rows[:, : ours.shape[1]] = ours.numpy()
    return rows


def test_sequences(viecap: Golden, network: ViecapNetwork) -> None:
    for number in range(len(viecap.values["batches"])):
        batch = batch_of(viecap, network, number)
        ids = viecap.arrays[f"b{number}/ids"]
        assert (padded(batch["ids"], ids, 0) == ids).all()
        targets = viecap.arrays[f"b{number}/targets"]
        labels = batch["labels"].masked_fill(batch["labels"] == IGNORED, 0)
        assert (padded(labels, targets, 0) == targets).all()
        prefix = viecap.arrays[f"b{number}/prefix_after_noise"]
        np.testing.assert_allclose(batch["prefix"], prefix, rtol=0, atol=PREFIX)


def test_losses_and_gradients(viecap: Golden, network: ViecapNetwork) -> None:
    names = viecap.values["parameters"]
    ours = {f"{name}": p for name, p in network.decoder.named_parameters()}
    assert list(ours) and set(names) == set(ours)
    for number, expected in enumerate(viecap.values["batches"]):
        with torch.no_grad():
            quiet = network(**batch_of(viecap, network, number, noise=False))["loss"]
        assert quiet.item() == pytest.approx(expected["loss_without_noise"], rel=LOSS)
        network.zero_grad()
        batch = batch_of(viecap, network, number)
        loss = network(**batch)["loss"]
        assert loss.item() == pytest.approx(expected["loss"], rel=LOSS)
        assert int((batch["labels"] != IGNORED).sum()) == expected["n_targets"]
        loss.backward()
        gradients = {
            name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
            for name, p in ours.items()
        }
        close_norms(
            [np.linalg.norm(gradients[name].astype(np.float64)) for name in names],
            viecap.arrays[f"b{number}/grad_norms"],
            names,
            relative=NORM,
        )
        for key, wanted in viecap.arrays.items():
            if key.startswith(f"b{number}/grad/"):
                name = key.removeprefix(f"b{number}/grad/")
                close_gradient(gradients[name], wanted, GRADIENT, name)
        rows = viecap.arrays[f"b{number}/wte_rows"]
        tokens = gradients["gpt.transformer.wte.weight"][rows]
        close_gradient(tokens, viecap.arrays[f"b{number}/grad_wte_rows"], GRADIENT)
        places = np.linalg.norm(gradients["gpt.transformer.wpe.weight"], axis=1)
        wanted = viecap.arrays[f"b{number}/grad_wpe_norm_per_position"]
        close_gradient(places, wanted, GRADIENT)


def test_steps(viecap: Golden, network: ViecapNetwork) -> None:
    settings = viecap.values["settings"]
    chosen = settings["optimizer"]
    parameters = dict(network.decoder.named_parameters())
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=chosen["lr"],
        betas=tuple(chosen["betas"]),
        eps=chosen["eps"],
        weight_decay=chosen["weight_decay"],
    )
    schedule = get_linear_schedule_with_warmup(
        optimizer, settings["warmup"], settings["total"]
    )
    for number, step in enumerate(viecap.values["steps"]):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(step["lr"], abs=1e-12)
        loss = network(**batch_of(viecap, network, step["batch"]))["loss"]
        assert loss.item() == pytest.approx(step["loss"], rel=STEPS)
        optimizer.zero_grad()
        loss.backward()
        # transformers' AdamW added epsilon before it corrected the second moment.
        correction = (1 - chosen["betas"][1] ** (number + 1)) ** 0.5
        optimizer.param_groups[0]["eps"] = chosen["eps"] / correction
        optimizer.step()
        schedule.step()
        close_norms(
            [
                parameters[name].detach().double().norm().item()
                for name in viecap.values["parameters"]
            ],
            viecap.arrays[f"step{number}/param_norms"],
            viecap.values["parameters"],
            relative=STEPS,
        )
    with torch.no_grad():
        loss = network(**batch_of(viecap, network, 0))["loss"]
    assert loss.item() == pytest.approx(viecap.values["loss_after"], rel=STEPS)


def test_losses_of_tokens(viecap: Golden, network: ViecapNetwork) -> None:
    for number in range(len(viecap.values["batches"])):
        batch = batch_of(viecap, network, number)
        wanted = viecap.arrays[f"b{number}/token_losses"]
        total, count = wanted.sum(), int((wanted != 0).sum())
        with torch.no_grad():
            loss = network(**batch, num_items_in_batch=1)["loss"]
        assert loss.item() == pytest.approx(float(total), rel=LOSS)
        assert count == int((batch["labels"] != IGNORED).sum())
