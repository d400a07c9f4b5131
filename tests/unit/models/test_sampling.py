from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.models.sampling import (
    GREEDY,
    Sampling,
    SamplingRows,
    candidates,
    choose,
    token_probability,
)

CPU = torch.device("cpu")
VOCABULARY = 30

settings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.01, 1),
)


@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 1e12, 1e300])
def test_temperatures_that_no_float32_holds(temperature: float) -> None:
    settings = [Sampling(temperature, top_k=0), Sampling(1.0)]
    rows = SamplingRows.of(settings, VOCABULARY, CPU)
    assert rows is not None
    values = logits(2)
    _, probabilities = candidates(values, rows)
    assert probabilities.isfinite().all()
    chosen = choose(values, rows, torch.tensor([0.5, 0.5]))
    if temperature < 1:
        assert chosen[0] == values[0].argmax()
    else:
        assert probabilities[0].max() < 2 / VOCABULARY


def test_logits_that_are_no_numbers_spoil_their_own_row_only() -> None:
    values = logits(2)
    rows = SamplingRows.of([Sampling(1.0, seed=1)] * 2, VOCABULARY, CPU)
    uniform = torch.tensor([0.9999, 0.3])
    alone = choose(values, rows, uniform)
    values[0] = torch.nan
    both = choose(values, rows, uniform)
    assert both[1] == alone[1] and 0 <= both[0] < VOCABULARY


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, VOCABULARY, generator=generator)


@given(settings, st.integers(0, 99), st.floats(0, 1, exclude_max=True, width=32))
def test_only_what_is_kept_is_chosen(
    sampling: Sampling, seed: int, uniform: float
) -> None:
    scores = logits(1, seed)
    rows = SamplingRows.of([sampling], VOCABULARY, CPU)
    assert rows is not None
    ids, probabilities = candidates(scores, rows)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    kept = ids[0, probabilities[0] > 0].tolist()
    assert kept[0] == scores.argmax()
    assert len(kept) <= (sampling.top_k or VOCABULARY)
    assert choose(scores, rows, torch.tensor([uniform])).item() in kept


@given(st.lists(st.one_of(st.just(GREEDY), settings), min_size=1, max_size=5))
def test_rows_don_t_meddle(samplings: list[Sampling]) -> None:
    scores = logits(len(samplings))
    uniforms = torch.linspace(0, 0.99, len(samplings))
    rows = SamplingRows.of(samplings, VOCABULARY, CPU)
    together = choose(scores, rows, uniforms).tolist()
    alone = [
        choose(
            scores[n : n + 1],
            SamplingRows.of([sampling], VOCABULARY, CPU),
            uniforms[n : n + 1],
        ).item()
        for n, sampling in enumerate(samplings)
    ]
    assert together == alone


def test_draws_follow_the_probabilities() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0]]).expand(4000, 3)
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=5)
    rows = SamplingRows.of([sampling] * 4000, 3, CPU)
    drawn = choose(scores, rows, sampling.uniforms(4000))
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(shares, scores[0].softmax(dim=-1), atol=0.03)


def test_a_seed_fixes_the_numbers() -> None:
    assert torch.equal(
        Sampling(1.0, seed=3).uniforms(9), Sampling(1.0, seed=3).uniforms(9)
    )
    assert not torch.equal(
        Sampling(1.0, seed=3).uniforms(9), Sampling(1.0, seed=4).uniforms(9)
    )


def test_token_probability_is_the_model_s_own() -> None:
    scores = logits(3)
    tokens = torch.tensor([0, 7, 29])
    expected = scores.softmax(dim=-1)[torch.arange(3), tokens]
    assert torch.allclose(token_probability(scores, tokens), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
    ],
)
def test_impossible_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
