"""What fits on a card: counted on the meta device as it is really allocated."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fiftyone_regioncap.models.devices import GIB, Gpu, find_card
from fiftyone_regioncap.models.planning import (
    Footprint,
    Phase,
    Plan,
    bytes_of,
    metered,
    parameters_of,
    phase,
    plan_model,
    rows_that_fit,
    seconds,
)

CARD = Gpu("Card", 24, bandwidth=1000, tflops=100)


@given(
    free=st.integers(0, 10**12), row=st.integers(1, 10**10), most=st.integers(1, 999)
)
def test_rows_fit_into_two_thirds_of_what_is_free(
    free: int, row: int, most: int
) -> None:
    rows = rows_that_fit(free, row, most)
    assert 1 <= rows <= most
    assert rows == 1 or rows * row <= free * 2 / 3
    assert rows == most or (rows + 1) * row > free * 2 / 3 - row


def attention(x: torch.Tensor) -> torch.Tensor:
    heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
    attended = nn.functional.scaled_dot_product_attention(heads, heads, heads)
    return attended.transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.attends = attends
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + (attention(x) if self.attends else x)
        return x + self.down(torch.relu(self.up(x)))


def test_operations_are_counted_by_hand() -> None:
    with torch.device("meta"):
        block, x = Block(True), torch.empty(3, 10, 32)
    found = phase("block", 7, lambda: block(x))
    products = 2 * 2 * 30 * 32 * 128
    scores_and_values = 2 * 2 * 3 * 10 * 10 * 32
    assert (found.flops, found.traffic) == (products + scores_and_values, 7)


@pytest.mark.parametrize("attends", [False, True], ids=["linear", "attention"])
def test_memory_on_the_meta_device_is_what_the_cpu_allocates(attends: bool) -> None:
    def peak(device: str) -> int:
        with torch.device(device):
            block, x = Block(attends), torch.empty(4, 64, 32)
        return int(phase("block", 0, lambda: block(x)).memory)

    # Attention's sums, one a query, have a number format of their own on the CPU.
    assert peak("meta") == pytest.approx(peak("cpu"), abs=4 * 4 * 64 * 2)


def test_memory_is_what_the_allocator_says() -> None:
    block, x = Block(False), torch.randn(4, 64, 32)
    watched = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with torch.inference_mode(), watched:
        block(x)
    held = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert phase("block", 0, lambda: block(x)).memory == pytest.approx(peak, rel=0.02)


def test_memory_of_training_is_that_of_the_cpu() -> None:
    peaks = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            block, x = Block(False), torch.empty(4, 64, 32)
        with metered() as meter:
            block(x).sum().backward()
        peaks.append((meter.peak, meter.flops))
    assert peaks[0] == peaks[1]


def test_shared_parameters_count_once() -> None:
    one = nn.Linear(3, 3)
    assert (parameters_of(one, one), bytes_of(one, one)) == (12, 48)


@pytest.mark.parametrize(
    ("flops", "traffic", "dtype", "takes"),
    [
        (50e12, 0, torch.bfloat16, 1.0),
        (0, 600e9, torch.bfloat16, 1.0),
        (50e12, 1200e9, torch.bfloat16, 2.0),
        (50e12, 0, torch.float32, 8.0),
    ],
    ids=["arithmetic", "reading", "the longer of both", "no tensor cores"],
)
def test_time_follows_from_the_roofline(
    flops: float, traffic: float, dtype: torch.dtype, takes: float
) -> None:
    assert seconds(Phase("", flops, traffic, 0), CARD, dtype) == pytest.approx(takes)


def needs(weights: int, row: int = GIB) -> Footprint:
    return Footprint(
        name="toy",
        parameters=1,
        weights=weights,
        row=row,
        rows={"cuda": 8, "cpu": 2},
        row_name="captions",
        unit="captions",
        phases=lambda rows: [Phase("all", rows * 50e12, 0, 2 * GIB)],
        made=float,
        image_size=384,
    )


def test_a_plan_says_rows_speed_and_whether_it_fits() -> None:
    toy = needs(4 * GIB)
    one = plan_model("captioner", "toy", toy, torch.bfloat16, CARD, 9 * GIB)
    assert (one.rows, one.rates) == (6, {1: pytest.approx(1), 6: pytest.approx(1)})
    plan = Plan(CARD, 13 * GIB, [one])
    assert plan.ok and plan.needs == 12 * GIB
    text = plan.to_markdown()
    assert "13.0 GiB free, 12.0 GiB needed: fits" in text
    assert "captions at once: 6 of 1024.0 MiB" in text
    assert plan.to_dict()["models"][0]["rates"] == {"1": 1.0, "6": 1.0}
    assert not Plan(CARD, 11 * GIB, [one]).ok


def test_models_on_one_card_share_it_and_take_turns() -> None:
    card = find_card("24")
    both = [
        plan_model(role, role, needs(GIB), torch.bfloat16, card, 6 * GIB)
        for role in ("propagator", "captioner")
    ]
    assert Plan(card, 24 * GIB, both).needs == 2 * GIB + 4 * GIB + 2 * GIB


def test_the_cpu_has_rows_and_no_speed() -> None:
    one = plan_model("captioner", "toy", needs(GIB), torch.float32, None, 99 * GIB)
    assert (one.rows, one.rates) == (2, {})
