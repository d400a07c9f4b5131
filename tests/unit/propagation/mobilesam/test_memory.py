"""Which frames are remembered, and what a correction makes forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fiftyone_regioncap.propagation.mobilesam.memory import Memory, MemoryBank
from fiftyone_regioncap.propagation.mobilesam.settings import Settings

SETTINGS = Settings(recent=2, kept=1, kept_every=3)


def memory(*ids):
    label = torch.full((4, 16), 255, dtype=torch.uint8)
    features = torch.eye(4, 8, dtype=torch.bfloat16)
    return Memory(features, {k: label.clone() for k in ids})


def bank_after(count, settings=SETTINGS):
    bank = MemoryBank(settings)
    bank.remember(0, memory(1, 2), {1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}, {1, 2})
    for index in range(1, count):
        bank.remember(index, memory(1, 2), {1: 0.9, 2: 0.9}, {1: 0.9, 2: 0.9}, set())
    return bank


def test_frames_have_roles_and_their_number_is_bounded():
    bank = bank_after(52)
    assert bank.known(1) == {0: "prompted", 49: "kept", 50: "recent", 51: "recent"}
    assert set(bank.frames) == {0, 49, 50, 51}


def test_frames_on_which_all_are_unsure_are_not_remembered():
    bank = bank_after(3)
    bank.remember(3, memory(1, 2), {1: 0.2, 2: 0.1}, {1: 0.2, 2: 0.1}, set())
    assert 3 not in bank.frames


def test_a_frame_says_nothing_of_an_object_that_was_lost_on_it():
    bank = bank_after(3)
    bank.remember(3, memory(2), {1: 0.0, 2: 0.9}, {1: 0.0, 2: 0.9}, set())
    assert 3 in bank.known(2)
    assert 3 not in bank.known(1)


@pytest.mark.parametrize(
    ("contradicted", "left"), [((), [0]), ((0,), [])], ids=["agreeing", "contradicted"]
)
def test_a_correction_drops_what_was_not_prompted(contradicted, left):
    bank = bank_after(6)
    others = bank.known(2)
    bank.correct(1, contradicted)
    assert list(bank.known(1)) == bank.prompted(1) == left
    assert bank.known(2) == others
    bank.remember(6, memory(1, 2), {1: 1.0, 2: 0.9}, {1: 1.0, 2: 0.9}, {1})
    assert bank.prompted(1) == [*left, 6]


def test_a_restored_bank_is_the_same():
    bank = bank_after(9)
    bank.correct(2, [0])
    other = MemoryBank(SETTINGS)
    state = {name: np.array(array) for name, array in bank.state().items()}
    other.restore(state, torch.device("cpu"))
    for object_id in (1, 2):
        assert other.known(object_id) == bank.known(object_id)
        assert other.prompted(object_id) == bank.prompted(object_id)
    for index, found in bank.frames.items():
        assert torch.equal(other.frames[index].features, found.features)
        assert other.frames[index].labels.keys() == found.labels.keys()
