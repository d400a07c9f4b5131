from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fiftyone_regioncap.captioning.confidence import SPACE
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.gpt2 import Gpt2Config
from fiftyone_regioncap.captioning.patchioner.language import DecapLanguage
from fiftyone_regioncap.core.errors import FieldError, OptionError
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.training.options import DataOptions, LoopOptions, TrainOptions
from fiftyone_regioncap.training.run import TrainingSummary, of_texts, train_on
from tests.support.patchioner import Sizes, write_random_checkpoint

CAPTIONS = [
    f"a {color} {animal} {verb} on the {place} ."
    for color, animal, (verb, place) in itertools.product(
        ("brown", "black", "white"),
        ("dog", "cat", "horse"),
        (("runs", "grass"), ("sleeps", "bed"), ("jumps", "street"), ("sits", "sand")),
    )
]
LOOP = LoopOptions(
    epochs=120,
    batch_size=8,
    accumulation=1,
    learning_rate=5e-3,
    warmup=10,
    precision="float32",
    checkpoint_steps=1000,
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's way to write words with no more words than the captions have."""
    from transformers import CLIPTokenizer

    published = ClipVocabulary.load()
    letters = sorted({t for t in published.pieces(range(256))})
    letters = [letter.removeprefix(SPACE) for letter in letters]
    tokens = {f"{letter}{end}": 0 for end in ("", "</w>") for letter in letters}
    merges: dict[tuple[str, str], None] = {}
    for word in sorted({word for caption in CAPTIONS for word in caption.split()}):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        whole = parts[0]
        for part in parts[1:]:
            merges[whole, part] = None
            whole += part
            tokens[whole] = 0
    tokens |= {"<|startoftext|>": 0, "<|endoftext|>": 0}
    numbered = {token: number for number, token in enumerate(tokens)}
    folder = tmp_path_factory.mktemp("vocabulary")
    CLIPTokenizer(numbered, list(merges)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    sizes = Gpt2Config(64, 2, 4, 40, len(ClipVocabulary.load(vocabulary)))
    return write_random_checkpoint(folder, Sizes(decoder=sizes), vocabulary=vocabulary)


def train(
    base: Path,
    out: Path,
    captions: list[str] = CAPTIONS,
    loop: LoopOptions = LOOP,
    held_out: float = 0.12,
    **recipe: Any,
) -> TrainingSummary:
    options = TrainOptions(
        out=str(out),
        data=DataOptions(held_out=held_out),
        loop=loop,
        recipe_options={"dropout": 0.0, **recipe},
    )
    spec = ModelSpec("patchioner", str(base), "cpu")
    return train_on(of_texts(captions), spec, options)[0]


@pytest.mark.slow
@pytest.mark.parametrize("mitigation", ["memory", "noise", "off"])
def test_training_learns(base: Path, tmp_path: Path, mitigation: str) -> None:
    summary = train(
        base,
        tmp_path,
        held_out=0.0,
        mitigation=mitigation,
        noise=0.02,
        label_smoothing=0.0,
    )
    losses = [loss for _, loss in summary.losses]
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])

    captioner = PatchionerCaptioner.from_pretrained(summary.weights, "cpu")
    language = captioner.model.language
    assert isinstance(language, DecapLanguage)
    assert (language.memory is not None) == (mitigation == "memory")
    described = language.describe(torch.from_numpy(captioner.embed_text(CAPTIONS)))
    right = [
        (row.text or "").strip() == caption
        for row, caption in zip(described, CAPTIONS, strict=True)
    ]
    assert sum(right) >= 0.8 * len(CAPTIONS)


def test_another_training_in_the_same_folder(base: Path, tmp_path: Path) -> None:
    loop = replace(LOOP, epochs=1)
    first = train(base, tmp_path, CAPTIONS[:10], loop)
    again = train(base, tmp_path, CAPTIONS[:10], loop)
    assert again.fit.evaluations == first.fit.evaluations
    with pytest.raises(OptionError, match="epochs=1, not 2"):
        train(base, tmp_path, CAPTIONS[:10], replace(loop, epochs=2))
    with pytest.raises(OptionError, match="other captions"):
        train(base, tmp_path, CAPTIONS[:12], loop)


def test_captions_that_cannot_be_learned(base: Path, tmp_path: Path) -> None:
    loop = replace(LOOP, epochs=1)
    with pytest.raises(FieldError, match=r"0 captions .* minimum=8"):
        train(base, tmp_path / "none", [], loop)
    summary = train(base, tmp_path / "some", [*CAPTIONS[:10], "dog " * 100], loop)
    assert summary.left_out == {"could not be read": 1}
    assert "77" in summary.failures[0] and not summary.ok
