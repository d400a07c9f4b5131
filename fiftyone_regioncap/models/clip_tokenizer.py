"""CLIP's vocabulary, for text towers and for decoders that write its tokens."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.pre_tokenizers import ByteLevel

from fiftyone_regioncap.core.errors import PromptError, WeightsError
from fiftyone_regioncap.system import assets

START = "<|startoftext|>"
END = "<|endoftext|>"

CONTEXT = 77
"""The most tokens that CLIP's text tower reads, both special tokens included."""

_SPACE = "▁"
"""Marker of the space before a word in a token, as sentencepiece writes it."""


class ClipVocabulary:
    """CLIP's lower-cased byte-pair encoding (Radford et al. 2021).

    Attributes:
        start_id: Id of the token that begins every text.
        end_id: Id of the token that ends every text.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Wraps a ``transformers.CLIPTokenizer``."""
        self._tokenizer = tokenizer
        by_token: dict[str, int] = tokenizer.get_vocab()
        self._tokens = {number: token for token, number in by_token.items()}
        self.start_id = by_token[START]
        self.end_id = by_token[END]

    @classmethod
    def load(cls, source: str | Path | None = None) -> ClipVocabulary:
        """Loads the vocabulary.

        Args:
            source: A hub repository, a folder that transformers saved a CLIP tokenizer
                in, or the file ``bpe_simple_vocab_16e6.txt.gz`` of OpenAI's release;
                None fetches that file once.

        Raises:
            WeightsError: If there is no such vocabulary there.
        """
        from transformers import CLIPTokenizer

        source = source or assets.fetch("bpe_simple_vocab_16e6.txt.gz")
        if str(source).endswith(".txt.gz"):
            return cls(CLIPTokenizer(*_published_merges(Path(source))))
        try:
            return cls(CLIPTokenizer.from_pretrained(str(source)))
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(
                f"no CLIP vocabulary at {source}: {error}; name a folder with "
                "tokenizer.json (or vocab.json and merges.txt), or OpenAI's "
                "bpe_simple_vocab_16e6.txt.gz"
            ) from error

    def __len__(self) -> int:
        """Returns the number of ids; 49,408 for the published vocabulary."""
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without the special tokens."""
        ids = self._tokenizer(text, add_special_tokens=False)
        return list(ids["input_ids"])

    def tokenize(
        self, texts: Sequence[str], length: int = CONTEXT, *, truncate: bool = False
    ) -> NDArray[np.int64]:
        """Tokenizes texts: start token, ids, end token, zeros.

        Args:
            texts: Any number of texts.
            length: Length of every row.
            truncate: Whether to cut longer texts; the end token goes last then.

        Returns:
            int64 (texts, length).

        Raises:
            PromptError: If a text is longer and may not be cut.
        """
        rows = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_id, *self.encode(text), self.end_id]
            if len(ids) > length:
                if not truncate:
                    raise PromptError(
                        f"the text {text[:60]!r} has {len(ids)} tokens, and CLIP reads "
                        f"{length}; shorten it or allow it to be cut (truncate=True)"
                    )
                ids = [*ids[: length - 1], self.end_id]
            row[: len(ids)] = ids
        return rows

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Returns the tokens of ids, with a leading space as sentencepiece writes it.

        Raises:
            KeyError: If an id is outside the vocabulary.
        """
        pieces, begins = [], True
        for number in ids:
            token = self._tokens[int(number)]
            special = token in (START, END)
            word = "" if special else token.removesuffix("</w>")
            pieces.append(f"{_SPACE}{word}" if begins else word)
            begins = special or token.endswith("</w>")
        return pieces

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, special tokens included, word ends as spaces.

        Raises:
            KeyError: If an id is outside the vocabulary.
        """
        letters = "".join(self._tokens[int(number)] for number in ids)
        return ByteDecoder().decode([letters]).replace("</w>", " ")

    def caption(self, ids: Iterable[int]) -> str:
        """Returns the words up to the first end token, as the decoder writes them.

        Punctuation stands apart and a space follows the last word, as in
        ``"a dog on the grass . "``.
        """
        return self.decode(ids).split(END)[0].replace(START, "")


def _published_merges(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns vocabulary and merges from OpenAI's file, in the order of the ids."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except OSError as error:
        raise WeightsError(f"{path} is not a gzip file of merges: {error}") from error
    # The first line is a heading. 49,152 ids are letters, word ends and merges; what
    # the file holds beyond them was not used.
    used = lines[1 : 49_152 - 256 - 2 + 1]
    merges = [(first, second) for first, second in (line.split() for line in used)]
    # One printable letter stands for each byte, and their order is that of the ids.
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["".join(pair) for pair in merges]
    tokens += [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges
