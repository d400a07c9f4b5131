from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.captioning.trainable import TrainingText
from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.core.types import RLE
from fiftyone_regioncap.training.examples import (
    EpochSampler,
    Example,
    Examples,
    read_examples,
    write_examples,
)
from tests.support.training import drawn_examples

texts = st.text(max_size=30)


@given(
    st.builds(
        TrainingText,
        caption=texts,
        label=st.none() | texts,
        tags=st.lists(texts, max_size=3).map(tuple),
        speech=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
        nouns=st.lists(texts, max_size=3).map(tuple),
    )
)
def test_examples_survive_their_file(text: TrainingText) -> None:
    mask = np.eye(4, 5, dtype=bool)
    counts = RLE.encode(mask).counts.decode("ascii")
    example = Example("1", "a b.mp4", "video", (3, 7), (counts,) * 2, (4, 5), text)
    assert Example.from_json(example.to_json()) == example
    assert "\n" not in example.to_json()


@given(
    weights=st.lists(st.floats(0.1, 4), min_size=1, max_size=12),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_each_example_comes_as_often_as_its_weight_says(
    weights: list[float], seed: int, epoch: int
) -> None:
    sampler = EpochSampler(weights, seed)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    again = EpochSampler(weights, seed)
    again.set_epoch(epoch)
    assert keys == list(again)
    assert len(keys) == len(sampler)
    counts = Counter(key - epoch * len(weights) for key in keys)
    for place, weight in enumerate(weights):
        assert int(weight) - 1 <= counts[place] <= int(weight) + 1


def test_epochs_have_orders_of_their_own() -> None:
    sampler = EpochSampler([1.0] * 50, 0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append([key % 50 for key in sampler])
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


class Recorder:
    """Gives what it is asked to encode."""

    frames = 1

    def encode(self, clip: Any, text: TrainingText, draw: random.Random) -> Any:
        return {"mask": clip.masks[0], "text": text.caption, "number": draw.random()}


def numbers(examples: Sequence[Example], epoch: int, seed: int = 0) -> list[float]:
    dataset = Examples(examples, Recorder(), seed)  # type: ignore[arg-type]
    first = epoch * len(examples)
    return [dataset[first + place]["number"] for place in range(len(examples))]


def test_chance_depends_on_seed_epoch_and_example_alone(tmp_path: Path) -> None:
    examples = drawn_examples(tmp_path, 3)
    assert numbers(examples, 1) == numbers(examples, 1)
    assert numbers(examples[::-1], 1) == numbers(examples, 1)[::-1]
    assert numbers(examples, 1) != numbers(examples, 2)
    assert numbers(examples, 1) != numbers(examples, 1, seed=1)


def test_a_file_that_was_replaced_is_told(tmp_path: Path) -> None:
    examples = drawn_examples(tmp_path, 2)
    write_examples(tmp_path / "list.jsonl", examples)
    first, second = read_examples(tmp_path / "list.jsonl")
    Path(first.path).write_bytes(b"no picture")
    dataset = Examples([first, second], Recorder(), 0)  # type: ignore[arg-type]
    assert dataset[1]["text"] == second.text.caption
    with pytest.raises(RegionCapError, match=f"{first.id}.*can't be read"):
        dataset[0]
