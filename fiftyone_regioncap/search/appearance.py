"""How the regions of captions look: their embeddings by row, one store a model.

The vectors that labels keep are the only ones that count; what lies here is made of
them, for the sake of speed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fiftyone_regioncap.captioning.base import EmbeddingSpace, TextEncoder
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError, FieldError, RegionCapError
from fiftyone_regioncap.dataset.embeddings import RegionEmbedding, space_of, vectors_of
from fiftyone_regioncap.models.registry import ModelSpec, in_hub_cache
from fiftyone_regioncap.search.catalog import Catalog
from fiftyone_regioncap.search.source import Changes, settled
from fiftyone_regioncap.search.vectors import VectorStore

_AT_ONCE = 2048
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class LookSource(Protocol):
    """Region embeddings that know when they changed."""

    def embeddings(
        self, since: datetime | None
    ) -> Iterator[Changes[tuple[str, RegionEmbedding | None]]]:
        """Label ids and their embeddings, sample by sample.

        Args:
            since: only samples that changed then or later; None for all.
        """


@dataclass(frozen=True)
class KnownSpace:
    """A model whose region embeddings are stored.

    Attributes:
        space: that they are of.
        regions: how many there are.
    """

    space: EmbeddingSpace
    regions: int


@dataclass
class _State:
    """What the files say about themselves.

    Attributes:
        mark: where the next reading begins.
        spaces: by fingerprint.
    """

    mark: str | None
    spaces: dict[str, EmbeddingSpace]


class LookIndex:
    """The region embeddings of one field, in a folder.

    Args:
        folder: is made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def update(self, source: LookSource, catalog: Catalog) -> None:
        """Reads embeddings that changed since the last time.

        Args:
            source: always the same one for the same folder.
            catalog: brought up to date with the same source before; embeddings of
                labels that it doesn't know are left out until it does.
        """
        state = self._read()
        since = None if state.mark is None else datetime.fromisoformat(state.mark)
        rows = catalog.rows
        stores = {key: self._open(space) for key, space in state.spaces.items()}
        hashes = {key: store.hashes(rows) for key, store in stores.items()}
        latest: datetime | None = None
        batch: list[tuple[str, RegionEmbedding | None]] = []

        def write() -> None:
            places = catalog.rows_of([label for label, _ in batch])
            by_space: dict[str, dict[int, RegionEmbedding]] = {}
            for label, embedding in batch:
                if label in places and embedding is not None:
                    own = by_space.setdefault(embedding.revision, {})
                    own[places[label]] = embedding
            for key, found in by_space.items():
                # The model may have moved since: the last place counts.
                last = [*found.values()][-1]
                width = len(last.vector())
                state.spaces[key] = space_of(last.model, key, width)
                if key not in stores:
                    stores[key] = self._open(state.spaces[key])
                    hashes[key] = stores[key].hashes(rows)
            seen = np.array([*places.values()], np.int64)
            for key, store in stores.items():
                _change(store, hashes[key], by_space.get(key, {}), seen)
            batch.clear()

        for change in source.embeddings(since):
            if change.modified is not None:
                latest = max(latest or change.modified, change.modified)
            batch += change.items
            if len(batch) >= _AT_ONCE:
                write()
        write()
        for key, store in stores.items():
            if store.version == catalog.version and latest is None:
                continue
            if store.version != catalog.version:
                # Rows of captions that are gone; they may be past the last one's.
                gone = hashes[key] != 0
                gone[:rows] &= catalog.hashes() == 0
                store.drop(np.flatnonzero(gone))
            store.finish(catalog.version)
        # What the catalog doesn't know yet is read again.
        if latest is not None and catalog.mark is not None:
            state.mark = min(settled(latest), catalog.mark).isoformat()
            self._write(state)

    def spaces(self) -> list[KnownSpace]:
        """The models whose embeddings are stored, that of most regions first."""
        known = [
            KnownSpace(space, self._open(space).count())
            for space in self._read().spaces.values()
        ]
        filled = [one for one in known if one.regions]
        return sorted(filled, key=lambda one: -one.regions)

    def store(self, space: EmbeddingSpace) -> VectorStore:
        """The vectors of a model by row.

        Raises:
            KeyError: when there are none.
        """
        return self._open(self._read().spaces[space.fingerprint])

    def _open(self, space: EmbeddingSpace) -> VectorStore:
        folder = self._folder / blake2b(space.fingerprint.encode()).hexdigest()[:16]
        return VectorStore(folder, space.fingerprint, space.dimension)

    def _read(self) -> _State:
        path = self._folder / "state.json"
        if not path.is_file():
            return _State(None, {})
        values = json.loads(path.read_text(encoding="utf-8"))
        spaces = {key: EmbeddingSpace(**own) for key, own in values["spaces"].items()}
        return _State(values["mark"], spaces)

    def _write(self, state: _State) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "state.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(state)), encoding="utf-8")
        part.replace(path)


def _change(
    store: VectorStore,
    hashes: NDArray[np.int64],
    found: dict[int, RegionEmbedding],
    seen: NDArray[np.int64],
) -> None:
    """Brings the rows of some labels up to date.

    Args:
        store: of one model.
        hashes: of all its rows; changed along.
        found: the embeddings of that model, by row.
        seen: rows of all labels that were looked at.
    """
    lost = np.array([row for row in seen if row not in found and hashes[row]], np.int64)
    if len(lost):
        store.drop(lost)
        hashes[lost] = 0
    new = {row: _hash(one) for row, one in found.items() if hashes[row] != _hash(one)}
    if new:
        rows = np.array([*new], np.int64)
        hashes[rows] = [*new.values()]
        store.put(rows, hashes[rows], vectors_of([found[row] for row in new]))


def _hash(embedding: RegionEmbedding) -> int:
    digest = blake2b(embedding.data, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


class RegionTexts:
    """Texts among the regions of a model, as search embeds texts.

    Args:
        encoder: of the model.
        truncate: whether to cut texts that are too long for it.
    """

    def __init__(self, encoder: TextEncoder, *, truncate: bool = False) -> None:
        self._encoder = encoder
        self._truncate = truncate
        self.space = encoder.space

    @property
    def name(self) -> str:
        """Of the model's text side."""
        return f"{self.space.captioner}-{self._encoder.text_fingerprint}"

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.space.dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds texts; see :meth:`~.embedding.TextEmbedder.embed`.

        Raises:
            PromptError: when one is too long and may not be cut.
            WeightsError: when what embeds texts is not there.
        """
        return self._encoder.embed_text(texts, truncate=self._truncate)


_LOADED: dict[tuple[str, str, str | None], TextEncoder] = {}


def load(captioner: str, source: str, device: str | None = None) -> TextEncoder:
    """The text side of a captioner's model; loaded once in a process.

    Args:
        captioner: by its name.
        source: a folder or a hub id.
        device: None for the best there is.

    Raises:
        BackendError: when the captioner has none.
        WeightsError: when there is no such model.
    """
    key = captioner, source, device
    if key not in _LOADED:
        _LOADED[key] = CAPTIONERS.text_encoder(ModelSpec(captioner, source, device))
    return _LOADED[key]


def choose(
    known: Sequence[KnownSpace],
    field: str,
    model: str | TextEncoder | None = None,
    device: str | None = None,
) -> TextEncoder:
    """What places texts among the regions of a field.

    Args:
        known: the models whose embeddings the field holds.
        field: its name.
        model: a folder, a hub id, or one of your own; None for the one that most
            regions were embedded by.
        device: None for the best there is.

    Raises:
        FieldError: when the field holds no embeddings.
        BackendError: when the model isn't at hand, or isn't the one that made them.
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
    """Whether a folder or a hub's repository is on this machine."""
    if Path(model).is_dir():
        return True
    return bool(_REPOSITORY.fullmatch(model)) and in_hub_cache(model, "config.yaml")


def others(known: Sequence[KnownSpace], space: EmbeddingSpace) -> str | None:
    """A note on regions that were embedded by another model; None without any."""
    left = [one for one in known if one.space.fingerprint != space.fingerprint]
    if not left:
        return None
    count = sum(one.regions for one in left)
    names = ", ".join(one.space.model for one in left)
    return f"{count} regions embedded by another model are left out ({names})"
