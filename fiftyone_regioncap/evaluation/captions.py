"""Compares captions with references, by the metrics of the literature.

BLEU-1 to 4, METEOR, ROUGE-L, CIDEr-D and SPICE are computed by pycocoevalcap, so that
numbers are those of the papers. Its tokenizer, METEOR and SPICE are Java programs:
without Java, a tokenizer of ours takes the place of the first (which is said in the
notes, as numbers differ a little), and the other two can't be had. SPICE also fetches
its parser from the network once, and is left out unless it is asked for.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from fiftyone_regioncap.core.errors import BackendError, RegionCapError
from fiftyone_regioncap.evaluation.options import METRICS
from fiftyone_regioncap.search.embedding import TextEmbedder

DEFAULT_METRICS = tuple(metric for metric in METRICS if metric != "spice")

NEED_JAVA = frozenset({"meteor", "spice"})

Texts: TypeAlias = dict[str, list[str]]
"""Tokenized texts by id, words separated by single blanks."""

_meteor: ContextVar[list[Any] | None] = ContextVar("meteor", default=None)

_PUNCTUATION = re.compile(r"[^\w\s']|(?<!\w)'|'(?!\w)")
_INSTALL = "run `pip install pycocoevalcap`"


@dataclass(frozen=True)
class CaptionScores:
    """The scores of captions.

    Attributes:
        overall: Score over all captions, by metric.
        each: Score by metric, then by caption id.
        notes: Notes on what wasn't possible or differs from the papers.
    """

    overall: dict[str, float]
    each: dict[str, dict[str, float]]
    notes: tuple[str, ...] = field(default=())


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    embedder: TextEmbedder | None = None,
) -> CaptionScores:
    """Compares captions with references.

    Args:
        candidates: A caption by id; an empty one scores 0.
        references: At least one text for each of these ids.
        metrics: Some of :data:`METRICS`; ``bleu`` stands for BLEU-1 to 4.
        embedder: Model for ``similarity``, the cosine of the angle between the meanings
            of a caption and of the reference nearest to it.

    Returns:
        BLEU, METEOR, ROUGE-L, CIDEr and SPICE as pycocoevalcap gives them (CIDEr up
        to 10), similarity as a mean.

    Raises:
        RegionCapError: When a metric is unknown, there are no captions, or a caption
            has no reference.
        BackendError: When pycocoevalcap isn't there, or SPICE can't run.
    """
    _check(candidates, references, metrics)
    overall: dict[str, float] = {}
    each: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    wanted = [metric for metric in METRICS if metric in metrics]
    if java() is None:
        lost = [metric for metric in wanted if metric in NEED_JAVA]
        if lost:
            notes.append(
                f"{' and '.join(lost)} left out: they need Java; install a runtime, "
                "such as default-jre-headless, and run this again"
            )
        wanted = [metric for metric in wanted if metric not in NEED_JAVA]
    counted = [metric for metric in wanted if metric != "similarity"]
    if counted:
        _require_package()
        tokens, targets = _tokenized(candidates, references)
        if java() is None:
            notes.append(
                "tokenized without Java, by rules that differ from those of the papers"
            )
        if "cider" in counted and len(candidates) < 2:
            notes.append("CIDEr of a single caption is 0: it weighs words by rarity")
        for metric in counted:
            for name, (total, scores) in _count(metric, targets, tokens).items():
                overall[name] = total
                each[name] = dict(zip(tokens, scores, strict=True))
    if "similarity" in wanted:
        if embedder is None:
            notes.append("similarity left out: no model to embed texts was given")
        else:
            each["similarity"] = similarities(candidates, references, embedder)
            overall["similarity"] = float(np.mean(list(each["similarity"].values())))
    return CaptionScores(overall, each, tuple(notes))


def _tokenized(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[Texts, Texts]:
    """Tokenizes captions and references together, as each call starts Java anew."""
    both = {key: [text, *references[key]] for key, text in candidates.items()}
    found = tokenize(both)
    return (
        {key: texts[:1] for key, texts in found.items()},
        {key: texts[1:] for key, texts in found.items()},
    )


def bleu(candidates: Texts, references: Texts) -> dict[str, float]:
    """Computes BLEU-1 to 4 over tokenized texts."""
    return {
        name: total
        for name, (total, _) in _count("bleu", references, candidates).items()
    }


def similarities(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    embedder: TextEmbedder,
) -> dict[str, float]:
    """Returns the similarity of each caption to the nearest of its references, by id.

    Args:
        candidates: A caption by id.
        references: At least one text for each of these ids.
        embedder: The model.
    """
    texts = sorted(
        {*candidates.values(), *(t for k in candidates for t in references[k])}
    )
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    return {
        key: max(
            float(np.clip(vectors[text] @ vectors[other], -1, 1))
            for other in references[key]
        )
        if text
        else 0.0
        for key, text in candidates.items()
    }


def meteor(
    pairs: Sequence[tuple[str, Sequence[str]]], *, raw: bool = False
) -> list[float]:
    """Computes METEOR of each caption against its references.

    Args:
        pairs: Captions with their references.
        raw: Whether METEOR gets the texts as they are, not tokenized before.

    Raises:
        BackendError: When Java or pycocoevalcap isn't there.
    """
    if java() is None:
        raise BackendError(
            "METEOR needs Java; install a runtime, such as default-jre-headless"
        )
    _require_package()
    if not pairs:
        return []
    keys = [str(number) for number in range(len(pairs))]
    prepare = _plain if raw else tokenize
    tokens = prepare({k: [text] for k, (text, _) in zip(keys, pairs, strict=True)})
    targets = prepare({k: [*texts] for k, (_, texts) in zip(keys, pairs, strict=True)})
    return _count("meteor", targets, tokens)["meteor"][1]


def tokenize(texts: Mapping[str, Sequence[str]]) -> Texts:
    """Splits into lower-case words, by the Penn Treebank's rules where Java is found.

    Args:
        texts: Texts by id; all blanks in them count as one.
    """
    plain = _plain(texts)
    if java() is None:
        return {
            key: [" ".join(_PUNCTUATION.sub(" ", t).lower().split()) for t in own]
            for key, own in plain.items()
        }
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    wrapped = {key: [{"caption": t} for t in own] for key, own in plain.items()}
    with _utf8_java():
        return PTBTokenizer().tokenize(wrapped)


def java() -> str | None:
    """Returns the Java program; None when there is none."""
    return shutil.which("java")


def _plain(texts: Mapping[str, Sequence[str]]) -> Texts:
    """Joins the lines of each text into one."""
    return {key: [_one_line(text) for text in own] for key, own in texts.items()}


def _one_line(text: str) -> str:
    """Returns the text as the Java programs take it: one line, without separators.

    The tokenizer drops lines that have nothing but blanks, and all after them would
    move up; a full stop is a line, and no word.
    """
    return " ".join(text.replace("|||", " ").split()) or "."


def _check(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
) -> None:
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise RegionCapError(
            f"no metric {', '.join(unknown)}; there are: {', '.join(METRICS)}"
        )
    if not candidates:
        raise RegionCapError("there are no captions to evaluate")
    bare = [key for key in candidates if not references.get(key)]
    if bare:
        raise RegionCapError(
            f"{len(bare)} captions have no reference, the first is {bare[0]}"
        )


def _require_package() -> None:
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise BackendError(f"these metrics need pycocoevalcap; {_INSTALL}")


_SCORERS = {
    "rouge_l": ("rouge.rouge", "Rouge"),
    "cider": ("cider.cider", "Cider"),
    "meteor": ("meteor.meteor", "Meteor"),
}


def _count(
    metric: str, references: Texts, candidates: Texts
) -> dict[str, tuple[float, list[float]]]:
    """Returns overall scores and those of each caption, by name, of pycocoevalcap."""
    if metric == "bleu":
        from pycocoevalcap.bleu.bleu import Bleu

        totals, lists = Bleu(4).compute_score(references, candidates, verbose=0)
        return {
            f"bleu_{n}": (float(total), [float(score) for score in scores])
            for n, (total, scores) in enumerate(zip(totals, lists, strict=True), 1)
        }
    if metric == "spice":
        return {metric: _spice(references, candidates)}
    with _utf8_java():
        total, scores = _scorer(metric).compute_score(references, candidates)
    return {metric: (float(total), [float(score) for score in scores])}


def _spice(references: Texts, candidates: Texts) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    # SPICE sorts ids and gives them back as text.
    order = sorted(references)
    try:
        with _utf8_java():
            total, scores = Spice().compute_score(references, candidates)
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendError(
            f"SPICE can't run ({error}); it fetches Stanford CoreNLP once and needs a "
            "network for that, 8 GB of memory and Java 8 to 11"
        ) from error
    found = {
        key: float(np.nan_to_num(score["All"]["f"]))
        for key, score in zip(order, scores, strict=True)
    }
    return float(total), [found[key] for key in candidates]


@contextmanager
def shared_meteor() -> Iterator[None]:
    """Keeps METEOR's program for all scores inside, as it takes seconds to start."""
    if _meteor.get() is not None:  # kept by who called
        yield
        return
    kept: list[Any] = []
    token = _meteor.set(kept)
    try:
        yield
    finally:
        _meteor.reset(token)


def _scorer(metric: str) -> Any:
    """Returns a scorer of pycocoevalcap; that of METEOR may be one that is kept."""
    module, name = _SCORERS[metric]
    make = getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)
    kept = _meteor.get() if metric == "meteor" else None
    if kept is None:
        return make()
    if not kept or kept[0].meteor_p.poll() is not None:
        kept[:] = [make()]
    return kept[0]


@contextmanager
def _utf8_java() -> Iterator[None]:
    """Lets Java read and write UTF-8 whatever the locale."""
    name = "JAVA_TOOL_OPTIONS"
    before = os.environ.get(name)
    os.environ[name] = f"{before or ''} -Dfile.encoding=UTF-8".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
