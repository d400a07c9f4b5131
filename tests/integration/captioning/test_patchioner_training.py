from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fiftyone_regioncap.captioning.confidence import SPACE
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.configuration import (
    DecoderTrainingOptions,
)
from fiftyone_regioncap.captioning.patchioner.gpt2 import Gpt2Config
from fiftyone_regioncap.captioning.patchioner.training import (
    Epoch,
    train_decoder,
)
from fiftyone_regioncap.core.errors import PromptError, WeightsError
from fiftyone_regioncap.models.clip_tokenizer import ClipVocabulary
from tests.support.patchioner import write_random_checkpoint

CAPTIONS = [
    f"a {color} {animal} {verb} on the {place} ."
    for color, animal, (verb, place) in itertools.product(
        ("brown", "black", "white"),
        ("dog", "cat", "horse"),
        (("runs", "grass"), ("sleeps", "bed"), ("jumps", "street"), ("sits", "sand")),
    )
]
RECIPE = DecoderTrainingOptions(
    epochs=300,
    batch_size=8,
    learning_rate=3e-3,
    warmup=10,
    label_smoothing=0.0,
    held_out=0.12,
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
def sizes(vocabulary: Path) -> Gpt2Config:
    return Gpt2Config(64, 2, 4, 40, len(ClipVocabulary.load(vocabulary)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return write_random_checkpoint(folder, vocabulary=vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_training_learns(
    base: Path, sizes: Gpt2Config, tmp_path: Path, noise: float
) -> None:
    recipe = replace(RECIPE, noise=noise)
    epochs = train_decoder(CAPTIONS, base, tmp_path, options=recipe, sizes=sizes)
    first, last = epochs[0], epochs[-1]
    assert first.held_out_loss and last.held_out_loss
    assert last.loss < 0.2 * first.loss
    assert last.held_out_loss < 0.5 * first.held_out_loss

    captioner = PatchionerCaptioner.from_pretrained(tmp_path, "cpu")
    language = captioner.model.language
    assert (language.memory is None) == bool(noise)
    described = language.describe(torch.from_numpy(captioner.embed_text(CAPTIONS)))
    right = [
        (row.text or "").strip() == caption
        for row, caption in zip(described, CAPTIONS, strict=True)
    ]
    # Those held out are among them, and made of the same words.
    assert sum(right) >= 0.8 * len(CAPTIONS)


class Killed(Exception):
    pass


def test_a_killed_training_ends_with_the_same_weights(
    base: Path, sizes: Gpt2Config, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, epochs=3, noise=0.01)
    whole = train_decoder(CAPTIONS, base, tmp_path / "a", options=recipe, sizes=sizes)

    def kill(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise Killed

    with pytest.raises(Killed):
        train_decoder(
            CAPTIONS, base, tmp_path / "b", options=recipe, sizes=sizes, progress=kill
        )
    seen: list[int] = []
    resumed = train_decoder(
        CAPTIONS,
        base,
        tmp_path / "b",
        options=recipe,
        sizes=sizes,
        progress=lambda epoch: seen.append(epoch.number),
    )
    assert seen == [3]
    assert resumed == whole
    weights = [
        torch.load(tmp_path / name / "decoder.pt", weights_only=True)
        for name in ("a", "b")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    # And once more: nothing is left to do.
    again = train_decoder(CAPTIONS, base, tmp_path / "b", options=recipe, sizes=sizes)
    assert again == whole


def test_another_training_in_the_same_folder(
    base: Path, sizes: Gpt2Config, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, epochs=1)
    train_decoder(CAPTIONS[:8], base, tmp_path, options=recipe, sizes=sizes)
    with pytest.raises(WeightsError, match="other options"):
        train_decoder(
            CAPTIONS[:8], base, tmp_path, options=replace(recipe, seed=1), sizes=sizes
        )


def test_nothing_to_learn(base: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no caption"):
        train_decoder([], base, tmp_path)
    with pytest.raises(PromptError, match="77"):
        train_decoder(["dog " * 100], base, tmp_path)
