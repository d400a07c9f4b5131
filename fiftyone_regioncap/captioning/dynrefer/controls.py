"""Control words that guide the T5's captions, and their tokenization."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

CONTROL_TOKENS = 32
"""The T5 reads no more control tokens than this, the end token included."""


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


def control_text(words: Iterable[str], tags: Iterable[str]) -> str:
    """Returns the T5's text: the user's words, then tags, each once, then ``|``.

    The authors put both through a set, whose order changes from run to run.
    """
    return ",".join(dict.fromkeys([*words, *tags])) + "|"


def control_words(prompt: str | None) -> list[str]:
    """Returns control words from user input, separated by commas or bars."""
    parts = re.split(r"[,|]", prompt or "")
    return [part.strip() for part in parts if part.strip()]
