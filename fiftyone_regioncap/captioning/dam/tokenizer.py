"""Llama's sentencepiece tokenizer, with DAM's way of placing images.

Read with sentencepiece itself: the ids are those of the tokenizer that the checkpoints
were trained with (transformers' slow ``LlamaTokenizer`` with ``legacy=False``), which
later versions of transformers no longer carry.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import sentencepiece

from fiftyone_regioncap.captioning.dam.prompts import IMAGE_TAG
from fiftyone_regioncap.core.errors import WeightsError

IMAGE_ID = -200
"""Holds the place of one image among the ids of a prompt."""

SPACE = "▁"
"""Character that sentencepiece writes for a space."""

_CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ceaf"
    "\U0002f800-\U0002fa1f]"
)

# Two serialized protocol buffers, one after the other, are their merge: this one sets
# normalizer_spec.add_dummy_prefix to false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class DamTokenizer:
    """Llama's sentencepiece tokenizer with DAM's image tags.

    Args:
        folder: Folder with ``tokenizer.model`` and, optionally,
            ``tokenizer_config.json``.

    Attributes:
        bos: Id of the token that begins every prompt.
        eos: Id of the token that ends an answer.

    Raises:
        WeightsError: When the model is missing or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.model"
        try:
            content = path.read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(
                model_proto=content + _NO_DUMMY_PREFIX
            )
        except FileNotFoundError as error:
            raise WeightsError(
                f"{path} is missing; fetch the checkpoint anew"
            ) from error
        except RuntimeError as error:
            raise WeightsError(f"{path} is no sentencepiece model: {error}") from error
        self.bos: int = self._model.bos_id()
        self.eos: int = self._model.eos_id()
        self._unknown: str = self._model.id_to_piece(self._model.unk_id())
        self._special = {
            self._model.id_to_piece(token): token
            for token in (self._model.unk_id(), self.bos, self.eos)
            if token >= 0
        } | _added_tokens(folder)
        self._special_ids = frozenset(self._special.values())
        self._split = re.compile(
            "(" + "|".join(map(re.escape, sorted(self._special, key=len)[::-1])) + ")"
        )
        self._shield = len(self._model.encode(self._unknown, out_type=str))

    def __len__(self) -> int:
        return int(self._model.get_piece_size())

    def prompt_ids(self, prompt: str) -> list[int]:
        """Returns the ids of a prompt, with :data:`IMAGE_ID` for each image tag."""
        ids = [self.bos]
        for number, chunk in enumerate(prompt.split(IMAGE_TAG)):
            if number:
                ids.append(IMAGE_ID)
            if chunk:
                ids.extend(self.encode(chunk))
        return ids

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text with its leading space, without :attr:`bos`."""
        parts = self._split.split(SPACE + text.replace(SPACE, " "))
        if parts[0] == SPACE and len(parts) > 1:
            parts[0] = ""
        ids: list[int] = []
        for part in parts:
            if part in self._special:
                ids.append(self._special[part])
            elif part.startswith((SPACE, " ")):
                ids.extend(self._model.encode(part))
            elif part:
                # Behind something that is no space, so that nothing is stripped or
                # added before the part.
                ids.extend(self._model.encode(self._unknown + part)[self._shield :])
        return ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids without special ones and those that have no piece."""
        pieces = self.pieces([i for i in ids if not self.is_special(i)])
        if not pieces:
            return ""
        pieces[0] = pieces[0].removeprefix(SPACE)
        return str(self._model.decode(pieces))

    def answer(self, ids: list[int]) -> str:
        """Returns the text of an answer, stripped as the authors' code does."""
        text = self.decode(ids).strip()
        return text.removesuffix(self._model.id_to_piece(self.eos)).strip()

    def pieces(self, ids: list[int]) -> list[str]:
        """Returns the pieces of ids, with :data:`SPACE` for spaces."""
        return [self._model.id_to_piece(token) for token in ids]

    def is_special(self, token: int) -> bool:
        """Returns whether a token is never part of a text."""
        return token in self._special_ids or not 0 <= token < len(self)


class TextStream:
    """Detokenizes an answer in pieces that later tokens don't change.

    Words come when the space after them does, so that the pieces joined are the text.
    """

    def __init__(self, tokenizer: DamTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0

    def put(self, token: int) -> str:
        """Returns the text that a token completes; often none."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\n"):
            piece = text[self._given :]
            self._ids, self._given = [], 0
        else:
            # Chinese has no spaces to wait for.
            whole = text and _CHINESE.match(text[-1])
            piece = text[self._given : None if whole else text.rfind(" ") + 1]
            self._given += len(piece)
        return piece

    def end(self) -> str:
        """Returns the rest of the text at the end of the answer."""
        piece = self._tokenizer.decode(self._ids)[self._given :]
        self._ids, self._given = [], 0
        return piece


def _added_tokens(folder: Path) -> dict[str, int]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
    return {
        token["content"]: int(number)
        for number, token in added.items()
        if token.get("special")
    }
