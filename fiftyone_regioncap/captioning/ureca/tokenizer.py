"""The tokenizers of both language models, with URECA's tokens added.

Both are read from the files of their slow versions in transformers 4, which the
checkpoints were trained with and which carry remote code for InternLM2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Pieces
from tokenizers.normalizers import NFC

from fiftyone_regioncap.captioning.confidence import SPACE
from fiftyone_regioncap.captioning.ureca.config import UNREACHABLE
from fiftyone_regioncap.captioning.ureca.prompts import TOKENS
from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import read_json

FILES: dict[str, tuple[str, ...]] = {
    "internlm2": ("tokenizer.model",),
    "qwen2": ("vocab.json", "merges.txt"),
}
"""Files that a tokenizer is read from, by family."""

ORDER = "added_tokens_order.json"
"""A list of the tokens that were added after the vocabulary, in order."""

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_QWEN2_END = "<|endoftext|>"

_TIDY = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
"""Replacements of transformers' clean-up of spaces, in its order."""


class Vocabulary(Protocol):
    """The vocabulary of a family of language models, without special tokens."""

    bos: int | None
    special: Mapping[str, int]

    def __len__(self) -> int:
        """Returns the number of ids before the first added token."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the pieces of ids, a leading space as ``"▁"``."""


class UrecaTokenizer:
    """Encodes and decodes text with URECA's special tokens.

    Args:
        vocabulary: Vocabulary of the tokenizer family.
        added: Ids of the added tokens by their text; they are never split.

    Attributes:
        special: Ids of all special tokens by their text; they are never split.
        bos: Id of the token that begins every prompt; None if there is none.
    """

    def __init__(self, vocabulary: Vocabulary, added: Mapping[str, int]) -> None:
        self._vocabulary = vocabulary
        self.special = {**vocabulary.special, **added}
        self.bos = vocabulary.bos
        self._texts = len(vocabulary)
        self._special_ids = frozenset(self.special.values())
        longest_first = sorted(map(re.escape, self.special), key=len)[::-1]
        self._split = re.compile(f"({'|'.join(longest_first)})")

    def __len__(self) -> int:
        return max(self._texts, *(number + 1 for number in self.special.values()))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a prompt, the beginning token first where there is one."""
        ids = [] if self.bos is None else [self.bos]
        for part in self._split.split(text):
            if part in self.special:
                ids.append(self.special[part])
            elif part:
                ids.extend(self._vocabulary.encode(part))
        return ids

    def is_special(self, token: int) -> bool:
        """Returns whether a token is never part of a text."""
        return token in self._special_ids or not 0 <= token < self._texts

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids without special ones."""
        return self._vocabulary.decode([i for i in ids if not self.is_special(i)])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Returns the pieces of ids without special ones, spaces as ``"▁"``."""
        return self._vocabulary.pieces([i for i in ids if not self.is_special(i)])


def load_tokenizer(folder: Path, family: str) -> UrecaTokenizer:
    """Reads the tokenizer of a checkpoint.

    Args:
        folder: Folder with the tokenizer's files, or next to a folder
            ``tokenizer_<family>`` that has them.
        family: ``"internlm2"`` or ``"qwen2"``.

    Raises:
        WeightsError: When it is missing, corrupt, of the other family, or lacks one of
            URECA's tokens.
    """
    where = locate_tokenizer(folder, family)
    vocabulary: Vocabulary = (
        _InternLM2(where) if family == "internlm2" else _Qwen2(where)
    )
    added = _added_tokens(where, vocabulary, family)
    lacking = [token for token in TOKENS if token not in added]
    if lacking:
        raise WeightsError(
            f"the tokenizer in {where} does not have {', '.join(lacking)}: it is not "
            "URECA's, which adds them to InternVL's; give added_tokens.json or "
            f"tokenizer_config.json as they come with the weights. {UNREACHABLE}"
        )
    return UrecaTokenizer(vocabulary, added)


def tokenizer_files(folder: Path, family: str) -> list[Path]:
    """Returns the files that :func:`load_tokenizer` reads, wherever they are."""
    where = locate_tokenizer(folder, family)
    names = (*FILES[family], "added_tokens.json", "tokenizer_config.json", ORDER)
    found = [where / name for name in names if (where / name).is_file()]
    if where / ORDER not in found and (where.parent / ORDER).is_file():
        found.append(where.parent / ORDER)
    return found


def locate_tokenizer(folder: Path, family: str) -> Path:
    """Returns the folder of a checkpoint's tokenizer; see :func:`load_tokenizer`."""
    places = (folder, folder.parent / f"tokenizer_{family}")
    for place in places:
        if all((place / name).is_file() for name in FILES[family]):
            return place
    wanted = " and ".join(FILES[family])
    for other, names in FILES.items():
        if other != family and all((folder / name).is_file() for name in names):
            raise WeightsError(
                f"{folder} has the tokenizer of {other}, but config.json names a "
                f"language model of {family}; give {wanted}"
            )
    raise WeightsError(
        f"{folder} has no tokenizer ({wanted}), nor is there one in {places[1]}; "
        "put it beside the weights"
    )


def _added_tokens(folder: Path, vocabulary: Vocabulary, family: str) -> dict[str, int]:
    """Returns the ids of the tokens after the vocabulary."""
    known: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        known |= read_json(folder / "added_tokens.json")
    if (folder / "tokenizer_config.json").is_file():
        config = read_json(folder / "tokenizer_config.json")
        for number, token in config.get("added_tokens_decoder", {}).items():
            known[token["content"]] = int(number)
    order = [p / ORDER for p in (folder, folder.parent) if (p / ORDER).is_file()]
    if known or not order:
        return known
    names = json.loads(order[0].read_text(encoding="utf-8"))
    # Qwen2's own end token comes after its vocabulary, before all others.
    first = [_QWEN2_END] if family == "qwen2" else []
    return {name: len(vocabulary) + n for n, name in enumerate([*first, *names])}


class _InternLM2:
    """InternLM2's sentencepiece vocabulary."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.model"
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{path} is no sentencepiece model: {error}") from error
        self.bos: int | None = self._model.bos_id()
        self.special: Mapping[str, int] = {
            self._model.id_to_piece(token): token
            for token in (
                self._model.unk_id(),
                self._model.bos_id(),
                self._model.eos_id(),
            )
            if token >= 0
        }

    def __len__(self) -> int:
        return int(self._model.get_piece_size())

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        text = str(self._model.decode(list(ids)))
        # Done by InternLM2's own tokenizer, whatever its settings are.
        for apart, joined in _TIDY:
            text = text.replace(apart, joined)
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(self._model.id_to_piece(token)) for token in ids]


class _Qwen2:
    """Qwen2's byte-level BPE vocabulary."""

    bos: int | None = None
    special: Mapping[str, int] = {}

    def __init__(self, folder: Path) -> None:
        vocabulary, merges = (str(folder / name) for name in FILES["qwen2"])
        try:
            self._model = Pieces(models.BPE.from_file(vocabulary, merges))
        except Exception as error:  # the library raises no class of its own
            raise WeightsError(
                f"{vocabulary} and merges.txt are no byte-level vocabulary: {error}"
            ) from error
        self._model.normalizer = NFC()
        self._model.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._model.decoder = decoders.ByteLevel()

    def __len__(self) -> int:
        return int(self._model.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._model.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode(list(ids), skip_special_tokens=False))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        names = (self._model.id_to_token(token) or "" for token in ids)
        return [name.replace("Ġ", SPACE) for name in names]
