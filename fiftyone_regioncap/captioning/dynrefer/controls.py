"""Control words that guide the T5's captions, and their tokenization."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

CONTROL_TOKENS = 32
"""The T5 reads no more control tokens than this, the end token included."""

CAPTION_WORDS = 50
"""Words of a caption that are trained on."""


class Controls:
    """The T5's tokenizer, for control words and captions."""

    def __init__(self, path: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="<pad>",
        )

    def encode(self, controls: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns token ids and their mask, int64 (B, K); long lists are cut.

        Args:
            controls: Control words, from :func:`control_text`.
        """
        batch = self._tokenizer(
            list(controls),
            padding="longest",
            truncation=True,
            max_length=CONTROL_TOKENS,
            return_tensors="pt",
        )
        return batch["input_ids"], batch["attention_mask"]

    def decode(self, sequences: Tensor) -> list[str]:
        """Returns the captions, without special tokens."""
        return self._tokenizer.batch_decode(
            sequences, skip_special_tokens=True, clean_up_tokenization_spaces=True
        )

    def pieces(self, sequence: Tensor) -> list[str]:
        """Returns the tokens of one sequence as sentencepiece writes them."""
        return self._tokenizer.convert_ids_to_tokens(sequence.tolist())


def clean_caption(text: str) -> str:
    """Returns a caption as the authors train on it: lower case, few marks, 50 words."""
    spaced = re.sub(r'[.!"()*#:;~]', " ", text.lower())
    return " ".join(re.sub(r" {2,}", " ", spaced).strip().split(" ")[:CAPTION_WORDS])


def noun_phrases(tagged: Sequence[tuple[str, str]] | None) -> list[str]:
    """Returns nouns and adjectives of a caption, each with the nouns that follow it.

    A word that comes twice is taken where it came first, as the authors do.

    Args:
        tagged: Words with their part of speech, as the Penn Treebank names them; None
            where none are known.

    Returns:
        Phrases in the order of the caption; one empty phrase where there is none.
    """
    words = [word for word, _ in tagged or ()]
    phrases = []
    for word, kind in tagged or ():
        if kind.startswith(("NN", "JJ")):
            start = words.index(word)
            stop = start + 1
            while stop < len(words) and (tagged or ())[stop][1].startswith("NN"):
                stop += 1
            phrases.append(" ".join(words[start:stop]))
    return phrases or [""]


def drawn_controls(
    candidates: Sequence[str], draw: random.Random, all_share: float, share: float
) -> str:
    """Draws the control words of one training sample.

    Args:
        candidates: Words and phrases; duplicates count once.
        draw: Source of the numbers.
        all_share: Chance that there are none at all.
        share: Chance of each to be left out, otherwise.

    Returns:
        The words that were kept, in random order, then ``|``.
    """
    if draw.random() < all_share:
        return "|"
    kept = [word for word in dict.fromkeys(candidates) if draw.random() > share]
    draw.shuffle(kept)
    return control_text(kept, ())


def control_text(words: Iterable[str], tags: Iterable[str]) -> str:
    """Returns the T5's text: the user's words, then tags, each once, then ``|``.

    The authors put both through a set, whose order changes from run to run.
    """
    return ",".join(dict.fromkeys([*words, *tags])) + "|"


def control_words(prompt: str | None) -> list[str]:
    """Returns control words from user input, separated by commas or bars."""
    parts = re.split(r"[,|]", prompt or "")
    return [part.strip() for part in parts if part.strip()]
