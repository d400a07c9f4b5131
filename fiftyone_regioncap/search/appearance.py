"""Searches regions by appearance: one store of embeddings per model.

The vectors that labels keep are the only ones that count; the files here are made of
them, for the sake of speed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import EmbeddingSpace, TextEncoder
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError, FieldError, RegionCapError
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding, space_of, vectors_of
from fiftyone_regioncap.models.registry import ModelSpec, in_hub_cache
from fiftyone_regioncap.search.catalog import Catalog
from fiftyone_regioncap.search.source import FieldSource, hash_of, next_checkpoint
from fiftyone_regioncap.search.vectors import VectorStore, replace_json

_BATCH = 2048
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class KnownSpace:
    """A model whose region embeddings are stored.

    Attributes:
        space: The embedding space of the model.
        regions: Number of regions that it embedded.
    """

    space: EmbeddingSpace
    regions: int


@dataclass
class _Store:
    """The vectors of one model while they are updated."""

    vectors: VectorStore
    hashes: NDArray[np.int64]

    def change(
        self, found: dict[int, RegionEmbedding], seen: NDArray[np.int64]
    ) -> None:
        """Updates the rows of some labels.

        Args:
            found: Embeddings by this model, by row.
            seen: Rows of all labels that were read.
        """
        kept = np.isin(seen, list(found))
        lost = seen[~kept & (self.hashes[seen] != 0)]
        self.vectors.drop(lost)
        self.hashes[lost] = 0
        hashes = {row: hash_of(own.data) for row, own in found.items()}
        rows = np.array([r for r, h in hashes.items() if self.hashes[r] != h], np.int64)
        if len(rows):
            self.hashes[rows] = [hashes[row] for row in rows.tolist()]
            vectors = vectors_of([found[row] for row in rows.tolist()])
            self.vectors.put(rows, self.hashes[rows], vectors)


class EmbeddingIndex:
    """The region embeddings of one field, in a folder.

    Args:
        folder: Folder of the index, which is made once there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def update(self, source: FieldSource, catalog: Catalog) -> None:
        """Reads embeddings that changed since the last update.

        Args:
            source: Always the same one for the same folder.
            catalog: Updated from the same source before; embeddings of labels that it
                doesn't know are left out until it does.
        """
        checkpoint, spaces = self._read()
        rows = catalog.rows
        stores: dict[str, _Store] = {}

        def open_store(space: EmbeddingSpace) -> None:
            vectors = self._open(space)
            stores[space.fingerprint] = _Store(vectors, vectors.hashes(rows))

        for space in spaces.values():
            open_store(space)
        latest: datetime | None = None
        for batch, modified in _batches(source, checkpoint):
            latest = max(filter(None, (latest, modified)), default=None)
            row_of = catalog.rows_of([label for label, _ in batch])
            found: dict[str, dict[int, RegionEmbedding]] = {}
            for label, own in batch:
                if own is not None and label in row_of:
                    found.setdefault(own.revision, {})[row_of[label]] = own
            for key, embeddings in found.items():
                # The model may have moved since: the last place counts.
                last = [*embeddings.values()][-1]
                spaces[key] = space_of(last.model, key, len(last.vector()))
                if key not in stores:
                    open_store(spaces[key])
            seen = np.array([*row_of.values()], np.int64)
            for key, store in stores.items():
                store.change(found.get(key, {}), seen)
        for store in stores.values():
            current = store.vectors.version == catalog.version
            if current and latest is None:
                continue
            if not current:
                # Rows of captions that are gone; they may be past the last one's.
                gone = store.hashes != 0
                gone[:rows] &= catalog.hashes() == 0
                store.vectors.drop(np.flatnonzero(gone))
            store.vectors.finish(catalog.version)
        # What the catalog doesn't know yet is read again.
        if latest is not None and catalog.checkpoint is not None:
            checkpoint = min(next_checkpoint(latest), catalog.checkpoint)
            self._folder.mkdir(parents=True, exist_ok=True)
            values = {key: asdict(space) for key, space in spaces.items()}
            replace_json(
                self._folder / "state.json",
                {"checkpoint": checkpoint.isoformat(), "spaces": values},
            )

    def spaces(self) -> list[KnownSpace]:
        """Lists the models whose embeddings are stored, that of most regions first."""
        known = [
            KnownSpace(space, self._open(space).count())
            for space in self._read()[1].values()
        ]
        return sorted((o for o in known if o.regions), key=lambda own: -own.regions)

    def store(self, space: EmbeddingSpace) -> VectorStore:
        """Opens the vectors of a model by row.

        Raises:
            KeyError: If there are none.
        """
        return self._open(self._read()[1][space.fingerprint])

    def _open(self, space: EmbeddingSpace) -> VectorStore:
        folder = self._folder / blake2b(space.fingerprint.encode()).hexdigest()[:16]
        return VectorStore(folder, space.fingerprint, space.dimension)

    def _read(self) -> tuple[datetime | None, dict[str, EmbeddingSpace]]:
        """Returns where the next update begins, and the models by fingerprint."""
        try:
            text = (self._folder / "state.json").read_text(encoding="utf-8")
            values = json.loads(text)
            spaces = {key: EmbeddingSpace(**o) for key, o in values["spaces"].items()}
            return datetime.fromisoformat(values["checkpoint"]), spaces
        except (OSError, ValueError, KeyError, TypeError):
            return None, {}


def _batches(
    source: FieldSource, since: datetime | None
) -> Iterator[tuple[list[tuple[str, RegionEmbedding | None]], datetime | None]]:
    """Label ids with their embeddings, many at once, and when the last one changed."""
    batch: list[tuple[str, RegionEmbedding | None]] = []
    latest: datetime | None = None
    for change in source.embeddings(since):
        latest = max(filter(None, (latest, change.modified)), default=None)
        batch += change.items
        if len(batch) >= _BATCH:
            yield batch, latest
            batch = []
    yield batch, latest


class RegionTextEmbedder:
    """Embeds texts among the regions of a model, with the interface that search has.

    Args:
        encoder: Text encoder of the model.
        truncate: Whether to truncate texts that are too long for it.
    """

    def __init__(self, encoder: TextEncoder, *, truncate: bool = False) -> None:
        self._encoder = encoder
        self._truncate = truncate
        self.space = encoder.space

    @property
    def name(self) -> str:
        """Name of the model's text side."""
        return f"{self.space.captioner}-{self._encoder.text_fingerprint}"

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.space.dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds texts; see :meth:`~.embedding.TextEmbedder.embed`.

        Raises:
            PromptError: If one is too long and may not be truncated.
            WeightsError: If the weights of the text encoder are missing.
        """
        return self._encoder.embed_text(texts, truncate=self._truncate)


@lru_cache(maxsize=4)
def load(captioner: str, source: str, device: str | None = None) -> TextEncoder:
    """Loads the text side of a captioner's model; once in a process.

    Args:
        captioner: Name of the captioner.
        source: Folder or hub id.
        device: Device such as ``"cuda"``; None for the best there is.

    Raises:
        BackendError: If the captioner has none.
        WeightsError: If there is no such model.
    """
    return CAPTIONERS.text_encoder(ModelSpec(captioner, source, device))


def select_encoder(
    known: Sequence[KnownSpace],
    field: str,
    model: str | TextEncoder | None = None,
    device: str | None = None,
) -> TextEncoder:
    """Selects the text encoder for the regions of a field.

    Args:
        known: Models whose embeddings the field holds.
        field: Name of the field, for messages.
        model: Folder, hub id, or text encoder; None for the model that most regions
            were embedded by.
        device: Device such as ``"cuda"``; None for the best there is.

    Raises:
        FieldError: If the field holds no embeddings.
        BackendError: If the model isn't at hand, or isn't the one that made them.
    """
    if not known:
        raise FieldError(
            f"{field} holds no region embeddings; caption with a captioner that makes "
            "them, such as patchioner, or add them with embed_regions"
        )
    most = known[0].space
    made = f"the regions of {field} were embedded by {most.captioner} from {most.model}"
    if model is None and not _at_hand(most.model):
        # What a dataset names is not downloaded unasked.
        raise BackendError(
            f"{made}, which is not on this machine; name the folder or hub id of that "
            "model with model="
        )
    if model is None or isinstance(model, str):
        source = model or most.model
        try:
            encoder = load(most.captioner, source, device)
        except RegionCapError as error:
            raise BackendError(
                f"{made}, and {source} can't be loaded here: {error}; name the folder "
                "or hub id of that model with model="
            ) from error
    else:
        encoder = model
    if all(one.space.fingerprint != encoder.space.fingerprint for one in known):
        raise BackendError(
            f"{made} (fingerprint {most.fingerprint}), and {encoder.space.model} is "
            f"another model now ({encoder.space.fingerprint}); name the one that made "
            "them with model=, or embed the regions again"
        )
    return encoder


def _at_hand(model: str) -> bool:
    """Returns whether a folder or a hub's repository is on this machine."""
    if Path(model).is_dir():
        return True
    return bool(_REPOSITORY.fullmatch(model)) and in_hub_cache(model, "config.yaml")


def note_on_others(known: Sequence[KnownSpace], space: EmbeddingSpace) -> str | None:
    """Returns a note on regions embedded by other models; None without any."""
    left = [one for one in known if one.space.fingerprint != space.fingerprint]
    if not left:
        return None
    count = sum(one.regions for one in left)
    names = ", ".join(one.space.model for one in left)
    return f"{count} regions embedded by another model are left out ({names})"
