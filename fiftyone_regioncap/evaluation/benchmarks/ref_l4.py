"""Ref-L4 as captioning: regions of Objects365 described in detail (DAM's protocol)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from fiftyone_regioncap.core.types import Box
from fiftyone_regioncap.evaluation.benchmarks.base import (
    Answer,
    Benchmark,
    File,
    Item,
    Region,
    Scores,
    Tools,
    published,
)
from fiftyone_regioncap.evaluation.benchmarks.judges import Judge, Question
from fiftyone_regioncap.evaluation.benchmarks.metrics import (
    Means,
    first_words,
    score_texts,
)
from fiftyone_regioncap.evaluation.benchmarks.reading import find, read_records

_FILE = "ref-l4*.json*"

CONDENSE = (
    "Condense the description of an object into a brief phrase that names its category "
    "and its key characteristics. Answer with the phrase alone."
)
"""What the judge is told before short metrics."""

CLAIR = """\
Here are descriptions of a picture by a model, and descriptions that are known to be \
right.
Model:
- {said}
Right:
- {truth}
On a scale from 0 to 100, how likely is it that both are of the same picture? Answer \
as JSON with the keys "score", a number, and "reason", a text.
"""
"""What the judge is asked for CLAIR (arXiv 2310.12971)."""

SHORT = 5
"""Predictions of no more words are taken as they are."""


def load(folder: Path) -> Iterator[Item]:
    """Reads the regions of Objects365's pictures, one by one."""
    for entry in read_records(find(folder, _FILE)):
        if "objects365" in entry["file_name"]:
            region = Region(boxes=(_box(entry["bbox"]),))
            media = entry["file_name"]
            yield Item(str(entry["id"]), media, {0: region}, (entry["caption"],))


def _box(box: list[float]) -> Box:
    """Returns the pixel edges as PixelRefer's code has them.

    Numbers are truncated, and the start is moved into the image without taking the
    width or height back.
    """
    x, y, width, height = (int(number) for number in box)
    x, y = max(x, 0), max(y, 0)
    return (x, y, x + width, y + height)


def score(answers: Iterable[Answer], tools: Tools) -> Scores:
    """Scores texts as they are; with a judge, condensed ones, and CLAIR as well."""
    said = list(answers)
    if tools.judge is None:
        direct = score_texts(said, tools)
        note = (
            "texts as they are: the published rows are of texts that a judge condensed"
        )
        return replace(direct, notes=(*direct.notes, note), comparable=False)
    short = score_texts(_condensed(said, tools.judge), tools)
    direct_scores = score_texts(said, tools).overall
    overall = {
        **short.overall,
        **{f"{name}_uncondensed": value for name, value in direct_scores.items()},
    }
    means, each, unreadable = Means(), {}, 0
    for one, (answer,) in tools.judge.each(_clair(said)):
        value = likelihood(answer or "")
        unreadable += value is None
        each[one.item.id] = value or 0.0
        means.add(clair=value or 0.0)
    overall.update(means.result())
    note = "the judge's instructions are ours, in the sense of the published ones"
    return Scores(
        overall,
        each,
        {"unreadable": unreadable},
        (*short.notes, note),
        comparable=False,
    )


def _condensed(answers: list[Answer], judge: Judge) -> Iterator[Answer]:
    """Yields answers whose prediction and reference are brief phrases."""

    def question(text: str, item: str) -> list[Question]:
        if len(text.split(" ")) <= SHORT:
            return []
        return [Question(text, item, CONDENSE)]

    asked = (
        (
            (one, kind),
            question(one.text if kind else one.item.references[0], one.item.id),
        )
        for one in answers
        for kind in (True, False)
    )
    texts: list[str] = []
    for (one, kind), found in judge.each(asked):
        own = one.text if kind else one.item.references[0]
        texts.append((found[0] if found else None) or own)
        if not kind:
            item = replace(one.item, references=(texts[1],))
            yield replace(one, item=item, prediction=texts[0])
            texts.clear()


def _clair(answers: list[Answer]) -> Iterator[tuple[Answer, list[Question]]]:
    for one in answers:
        text = CLAIR.format(said=one.text, truth=one.item.references[0])
        readable = _readable
        yield one, [Question(text, one.item.id, readable=readable, tries=5)]


def _readable(answer: str) -> bool:
    return likelihood(answer) is not None


def likelihood(answer: str) -> float | None:
    """Reads a judge's answer to CLAIR's question.

    Returns:
        A value in [0, 1] of the first JSON object, else of the first number, where one
        below 1 is taken for a fraction; None when there is none.
    """
    try:
        inner = answer.split("{")[1].split("}")[0]
        return float(json.loads("{" + inner + "}")["score"]) / 100
    except (IndexError, KeyError, TypeError, ValueError):
        numbers = re.findall(r"\d*\.?\d+", answer)
    if not numbers:
        return None
    value = float(numbers[0])
    return value if value < 1 else value / 100


_COLUMNS = "bleu_4 meteor rouge_l cider spice clair"

REF_L4 = Benchmark(
    name="ref-l4",
    title="Ref-L4 as captioning",
    summary="Describes an object of a picture in detail.",
    unit="image region",
    size="those of Objects365 among 7,231 (val)",
    license="annotations CC BY-NC 4.0; pictures of Objects365 under its terms",
    files=(File(_FILE, "huggingface.co/datasets/JierunChen/Ref-L4, val"),),
    load=load,
    score=score,
    metric="Caption metrics of texts that a judge condensed, and CLAIR of whole ones.",
    postprocess=first_words,
    needs=frozenset({"java"}),
    published=(
        *published(
            _COLUMNS,
            "DAM (arXiv 2504.16072), Table 4",
            ("Shikra", "29.5 11.1 23.9 42.7 9.0 34.5"),
            ("GPT4RoI", "27.1 11.6 26.8 59.9 11.1 43.9"),
            ("Ferret-7B", "24.6 10.7 22.3 39.7 8.2 45.2"),
            ("GLaMM", "23.2 10.1 23.8 51.1 8.7 43.8"),
            ("VP-SPHINX-13B", "22.6 10.7 22.6 32.4 7.6 51.2"),
            ("RegionGPT", "25.4 12.2 25.3 42.0 8.1 37.2"),
            ("DAM-8B", "38.7 19.4 37.1 70.0 16.9 57.9"),
        ),
        *published(
            _COLUMNS,
            "PixelRefer (arXiv 2510.23603)",
            ("DAM-3B", "- 17.2 - 56.4 - -"),
            ("PAM-3B", "- 17.2 - 59.7 - -"),
            ("PixelRefer-2B", "- 14.1 - 102.2 - 60.9"),
            ("PixelRefer-7B", "- 13.8 - 98.2 - 60.8"),
        ),
    ),
    traps=(
        "Published code pairs captions by the order of shard files; here by id.",
        "PixelRefer's CLAIR shows the judge the reference character by character, and "
        "its references come condensed.",
    ),
)
