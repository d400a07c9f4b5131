"""Metrics that several benchmarks share; what is widely kept is not written again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.evaluation.benchmarks.base import Answer, Scores, Tools
from fiftyone_regioncap.evaluation.captions import score_captions

CAPTION_METRICS = ("bleu", "meteor", "rouge_l", "cider")
"""Caption metrics unless others are wanted; SPICE fetches a parser and is slow."""


def mean(values: Iterable[float]) -> float:
    """Returns the mean; 0 of nothing."""
    known = list(values)
    return fmean(known) if known else 0.0


class Means:
    """Running means by name, which keep no values."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, **values: float) -> None:
        """Adds a value to some of the means."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def result(self) -> dict[str, float]:
        """Returns the means."""
        return {name: total / self.counts[name] for name, total in self._sums.items()}


def score_texts(
    answers: Iterable[Answer],
    tools: Tools,
    metrics: Sequence[str] = CAPTION_METRICS,
) -> Scores:
    """Scores captions against their references with pycocoevalcap.

    Args:
        answers: Answers; their texts are held in memory, since BLEU and CIDEr are
            computed over all of them.
        tools: Which metrics are wanted, and the model of similarity.
        metrics: Metrics unless others are wanted.
    """
    said = {one.item.id: one for one in answers}
    result = score_captions(
        {key: one.text for key, one in said.items()},
        {key: one.item.references for key, one in said.items()},
        tools.metrics or metrics,
        embedder=tools.embedder,
    )
    shown = next(
        (name for name in ("meteor", "rouge_l") if name in result.each),
        next(iter(result.each), None),
    )
    each = {} if shown is None else result.each[shown]
    return Scores(result.overall, each, notes=result.notes)


def first_words(text: str, count: int = 100) -> str:
    """Cuts a text after as many pieces between blanks, as PixelRefer's code does."""
    return " ".join(text.split(" ")[:count])


def google_rouge(pairs: Iterable[tuple[str, str]]) -> list[float]:
    """Computes ROUGE-L F1 with stemming by google-research's ``rouge-score``.

    Args:
        pairs: Predictions with their reference.

    Raises:
        BackendError: If the package is missing.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise BackendError("run `pip install rouge-score`") from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [scorer.score(truth, said)["rougeL"].fmeasure for said, truth in pairs]


def bert_score(pairs: Sequence[tuple[str, str]], model: str) -> list[float]:
    """Computes F1 of BERTScore (Zhang et al., ICLR 2020), without rescaling.

    Args:
        pairs: Predictions with their reference.
        model: Folder or hub id of the model; the last layer is taken of one that
            bert-score knows no best layer for.

    Raises:
        BackendError: If the package is missing.
    """
    try:
        from bert_score import score
        from bert_score.utils import model2layers
    except ImportError as error:
        raise BackendError("run `pip install bert-score`") from error
    from transformers import AutoConfig

    layers = (
        model2layers.get(model) or AutoConfig.from_pretrained(model).num_hidden_layers
    )
    said, truth = [one for one, _ in pairs], [two for _, two in pairs]
    _, _, f1 = score(said, truth, model_type=model, num_layers=layers)
    return f1.tolist()


def word_iou(one: str, other: str) -> float:
    """Computes the IoU of two texts' sets of words; 0 when both are empty."""
    words, others = set(one.split()), set(other.split())
    return len(words & others) / max(1, len(words | others))


def average_precisions(
    scores: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Computes the average precision of each class with scikit-learn.

    Args:
        scores: (N, classes).
        labels: (N, classes): 1 true, 0 false, -1 unknown and left out.

    Returns:
        (classes,); NaN for classes without a true label.
    """
    from sklearn.metrics import average_precision_score

    found = np.full(labels.shape[1], np.nan)
    for number, (own, truth) in enumerate(zip(scores.T, labels.T, strict=True)):
        known = truth >= 0
        if (truth == 1).any():
            found[number] = average_precision_score(truth[known], own[known])
    return found


def grouped_means(
    values: Mapping[str, float], groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Averages values by group; NaN is left out, and groups without a value too."""
    found = {}
    for group, names in groups.items():
        known = [values[name] for name in names if not np.isnan(values[name])]
        if known:
            found[group] = fmean(known)
    return found


def span_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Computes the IoU of two spans as PLM-VideoBench does, whose length is b - a."""
    start, end = min(one), max(one)
    first, last = min(other), max(other)
    shared = max(0.0, min(end, last) - max(start, first))
    union = min(max(end, last) - min(start, first), end - start + last - first)
    return shared / (union + 1e-8)


def best_in_order(gains: NDArray[np.float64]) -> float:
    """Returns the best sum of pairs that keep the order of rows and columns (SODA).

    Args:
        gains: (rows, columns), none negative.
    """
    best = np.zeros(gains.shape[1] + 1)
    for row in gains:
        taken = best[:-1] + row
        best[1:] = np.maximum(best[1:], taken)
        np.maximum.accumulate(best, out=best)
    return float(best[-1])
