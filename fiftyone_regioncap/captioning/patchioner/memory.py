"""A memory of text embeddings, and the projection of patch features onto it.

The modality gap between image and text features is closed by replacing a feature by the
softmax-weighted mean of the memory's text embeddings (DeCap, arXiv 2303.03032).
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.errors import BackendError, WeightsError
from fiftyone_regioncap.models.loading import read_torch

TEMPERATURE = 0.01
"""Of the softmax over cosines, fixed in all published models."""

ROWS_AT_ONCE = 16_384
"""Rows of the memory per chunk; with 1,369 queries, similarities take 90 MB."""

NEIGHBORS = 128
"""Rows per feature that an index is asked for."""

_NEGLIGIBLE = 1e-6

_EMBEDDINGS, _TEXT = "-embeddings", "-text"
_loaded: weakref.WeakValueDictionary[tuple[object, ...], TextMemory] = (
    weakref.WeakValueDictionary()
)


class TextMemory:
    """Text embeddings to project features onto.

    Rows of zeros (the published file is padded with them) never match anything.

    Attributes:
        embeddings: Embeddings, (rows, D), float32 or, on CUDA, half precision; not
            normalized.
        texts: The captions, row by row; empty when the memory has none.
        raw_values: Whether rows are averaged as they are (Talk2DINO's memories, where
            long rows weigh more) or with length 1 (the CLIP memories).
    """

    def __init__(
        self,
        embeddings: Tensor | NDArray[np.float32],
        texts: Sequence[str] = (),
        *,
        raw_values: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Takes embeddings, (rows, D) float32, and the lengths of their rows.

        Args:
            embeddings: Stay where they are (and on disk, when memory-mapped) as float32
                on CPU; other devices and dtypes get a copy.
            texts: Captions, one per row, or none.
            raw_values: Whether rows are averaged as they are, see the class's
                attribute.
            device: Device to search on.
            dtype: Number format of the search; half precision is meant for CUDA.

        Raises:
            WeightsError: If there are no rows, or only rows of zeros.
        """
        if not isinstance(embeddings, Tensor):
            embeddings = torch.from_numpy(embeddings)
        if embeddings.ndim != 2 or 0 in embeddings.shape:
            raise WeightsError(
                f"the memory's embeddings are {tuple(embeddings.shape)}; "
                "a memory needs at least one row (rows, channels)"
            )
        if len(texts) not in (0, len(embeddings)):
            raise WeightsError(
                f"the memory has {len(embeddings)} rows but {len(texts)} texts"
            )
        self.embeddings = embeddings.to(device, dtype)
        self.texts = texts
        self.raw_values = raw_values
        self._index: Any = None
        lengths = torch.empty(len(embeddings), dtype=torch.float32)
        for rows in self._chunks():
            torch.linalg.vector_norm(embeddings[rows].float(), dim=1, out=lengths[rows])
        self._lengths = lengths.to(device)
        if not (lengths > 0).any():
            raise WeightsError("the memory has only rows of zeros; build it again")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        raw_values: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        width: int | None = None,
    ) -> TextMemory:
        """Reads a published HDF5 file, once per process.

        Embeddings are mapped from disk when the file stores them in one piece; else
        they are read.

        Args:
            path: Path of the ``.h5`` file with ``<name>-embeddings`` float32 (rows, D)
                and ``<name>-text``.
            raw_values: Whether rows are averaged as they are, see the class's
                attribute.
            device: Device to search on.
            dtype: Number format of the search.
            width: D that the decoder and the backbone need; None takes any.

        Raises:
            WeightsError: If the file cannot be read, has no rows, or another width.
        """
        path = Path(path).resolve()
        try:
            stamp = path.stat()
        except OSError as error:
            raise WeightsError(f"no memory at {path}: {error}") from error
        options = raw_values, str(device), dtype
        key = (path, stamp.st_mtime_ns, stamp.st_size, *options)
        memory = _loaded.get(key)
        if memory is None:
            embeddings, texts = _read(path)
            try:
                memory = cls(
                    embeddings,
                    texts,
                    raw_values=raw_values,
                    device=device,
                    dtype=dtype,
                )
            except WeightsError as error:
                raise WeightsError(f"{path}: {error}") from error
            _loaded[key] = memory
        if width is not None and memory.width != width:
            raise WeightsError(
                f"the memory {path} has {memory.width} channels, this model {width}; "
                "use the memory that belongs to it"
            )
        return memory

    @classmethod
    def load_folder(
        cls, folder: str | Path, device: torch.device | str = "cpu"
    ) -> TextMemory:
        """Reads MeaCap's layout: ``memory_captions.json`` and the vectors beside it.

        Args:
            folder: Folder with ``memory_captions.json`` (a list) and
                ``memory_clip_embeddings.pt`` (float (rows, D)).
            device: Device to search on.

        Raises:
            WeightsError: If a file is missing or they don't fit.
        """
        folder = Path(folder)
        try:
            texts = json.loads((folder / "memory_captions.json").read_text())
        except (OSError, ValueError) as error:
            raise WeightsError(f"no memory in {folder}: {error}") from error
        vectors = read_torch(folder / "memory_clip_embeddings.pt")
        if not isinstance(texts, list) or not isinstance(vectors, Tensor):
            raise WeightsError(f"no memory in {folder}: give a list and a tensor")
        return cls(vectors.float(), texts, device=device)

    @property
    def width(self) -> int:
        """Returns D, the number of channels."""
        return self.embeddings.shape[1]

    def __len__(self) -> int:
        """Returns the number of rows that are not zero."""
        return int((self._lengths > 0).sum())

    @torch.inference_mode()
    def project(
        self,
        features: Tensor,
        *,
        temperature: float = TEMPERATURE,
        normalize: bool = True,
    ) -> Tensor:
        """Replaces features by the memory's mean around them.

        Args:
            features: Features, (N, D); only their direction counts, and a vector of
                zeros, which has none, gives NaN.
            temperature: Temperature of the softmax over cosines.
            normalize: Whether to scale the results to length 1.

        Returns:
            float32 (N, D).
        """
        queries = self._directions(features)
        if self._index is not None:
            means = self._project_neighbors(queries, temperature)
        else:
            means = self._project_all(queries, temperature)
        return torch.nn.functional.normalize(means, dim=1) if normalize else means

    @torch.inference_mode()
    def search(self, features: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
        """Finds the nearest rows.

        Args:
            features: Features, (N, D).
            count: Number of rows per feature, at most as many as there are.

        Returns:
            Cosines, float32 (N, count), descending, and row numbers, int64 (N, count).
        """
        queries = self._directions(features)
        count = min(count, len(self))
        best = queries.new_full((len(queries), 0), 0, dtype=torch.float32)
        numbers = torch.empty_like(best, dtype=torch.int64)
        for rows in self._chunks():
            cosines = self._cosines(queries, rows)
            offsets = torch.arange(rows.start, rows.stop, device=cosines.device)
            best = torch.cat([best, cosines], dim=1)
            numbers = torch.cat([numbers, offsets.expand(len(queries), -1)], dim=1)
            best, places = best.topk(min(count, best.shape[1]), dim=1)
            numbers = numbers.gather(1, places)
        return best, numbers

    def nearest_texts(
        self, features: Tensor, *, skip_zero_rows: bool = False
    ) -> list[str]:
        """Returns the caption of the nearest row to each feature.

        Args:
            features: Features, (N, D).
            skip_zero_rows: Whether to count rows without the zero ones, as the
                reference does: a zero row in the middle shifts all captions after it.

        Raises:
            WeightsError: If the memory has no texts.
        """
        if not self.texts:
            raise WeightsError("this memory has no texts; build it from captions")
        _, found = self.search(features)
        numbers = found[:, 0].cpu()
        if skip_zero_rows:
            numbers = torch.cumsum(self._lengths.cpu() > 0, dim=0)[numbers] - 1
        return [self.texts[number] for number in numbers.tolist()]

    def use_index(self, path: str | Path | None = None, **options: int) -> None:
        """Searches by faiss from now on: faster, but approximate.

        At temperature 0.01 the softmax lives off the nearest rows, so that the mean
        over the nearest hundreds is the mean over all to many digits, if they are
        found; :meth:`agreement` measures how often.

        Args:
            path: Path of the index; one that is not there is built and written. None
                keeps it in RAM only.
            options: Options of :func:`build_faiss_index`.

        Raises:
            BackendError: If faiss is not installed.
            WeightsError: If the file is the index of another memory.
        """
        faiss = _faiss()
        if path is not None and Path(path).is_file():
            index = faiss.read_index(str(path))
            if (index.ntotal, index.d) != tuple(self.embeddings.shape):
                raise WeightsError(
                    f"{path} indexes {index.ntotal} rows of {index.d} channels, the "
                    f"memory has {tuple(self.embeddings.shape)}; delete it"
                )
        else:
            index = build_faiss_index(self, **options)
            if path is not None:
                faiss.write_index(index, str(path))
        self._index = index

    def use_all_rows(self) -> None:
        """Searches every row again."""
        self._index = None

    def agreement(self, features: Tensor) -> Tensor:
        """Compares the index with the search over every row.

        Args:
            features: Typical features, (N, D).

        Returns:
            Cosines between both projections, float32 (N,); all 1 without an index.
        """
        index, near = self._index, self.project(features)
        try:
            self._index = None
            exact = self.project(features)
        finally:
            self._index = index
        return torch.nn.functional.cosine_similarity(near, exact)

    def _directions(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.width:
            raise WeightsError(
                f"features are {tuple(features.shape)}, the memory's rows have "
                f"{self.width} channels; use the memory that belongs to the backbone"
            )
        features = features.to(self.embeddings.device, torch.float32)
        return features / features.norm(dim=1, keepdim=True)

    def _chunks(self) -> Iterator[slice]:
        count = len(self.embeddings)
        for start in range(0, count, ROWS_AT_ONCE):
            yield slice(start, min(start + ROWS_AT_ONCE, count))

    def _cosines(self, queries: Tensor, rows: slice) -> Tensor:
        """Cosines with some rows, float32 (N, rows); -inf for rows of zeros."""
        lengths = self._lengths[rows]
        products = (queries.to(self.embeddings.dtype) @ self.embeddings[rows].T).float()
        return (products / lengths).masked_fill(lengths == 0, -torch.inf)

    def _project_all(self, queries: Tensor, temperature: float) -> Tensor:
        # A softmax in one pass over chunks: sums are kept relative to the largest
        # cosine so far and rescaled when a larger one comes.
        best = queries.new_full((len(queries), 1), -torch.inf)
        total = queries.new_zeros((len(queries), 1))
        means = torch.zeros_like(queries)
        for rows in self._chunks():
            logits = self._cosines(queries, rows).div_(temperature)
            higher = torch.maximum(best, logits.amax(dim=1, keepdim=True))
            shift = torch.nan_to_num(best - higher, nan=0.0, neginf=-torch.inf).exp()
            weights = logits.sub_(higher).exp_()
            total = total * shift + weights.sum(dim=1, keepdim=True)
            if not self.raw_values:
                weights /= self._lengths[rows].clamp_min(torch.finfo().tiny)
            values = self.embeddings[rows]
            means = means * shift + (weights.to(values.dtype) @ values).float()
            best = higher
        return means / total

    def _project_neighbors(self, queries: Tensor, temperature: float) -> Tensor:
        cosines, numbers = self._index.search(
            queries.cpu().numpy(), min(NEIGHBORS, len(self))
        )
        found = torch.from_numpy(numbers).to(queries.device)
        logits = torch.from_numpy(cosines).to(queries.device).div(temperature)
        nothing = (found < 0) | (self._lengths[found.clamp_min(0)] == 0)
        weights = torch.softmax(logits.masked_fill(nothing, -torch.inf), dim=1)
        # Most neighbors of a patch count for nothing: their rows need not be read.
        kept = weights > _NEGLIGIBLE
        owners, _ = kept.nonzero(as_tuple=True)
        rows, places = torch.unique(found[kept], return_inverse=True)
        shares = weights[kept]
        if not self.raw_values:
            shares = shares / self._lengths[found[kept]]
        values = self.embeddings[rows.to(self.embeddings.device)].float()
        starts = torch.searchsorted(owners, torch.arange(len(queries)).to(owners))
        return torch.nn.functional.embedding_bag(
            places, values, starts, per_sample_weights=shares, mode="sum"
        )


def build_faiss_index(
    memory: TextMemory, *, lists: int | None = None, probes: int = 16
) -> Any:
    """Builds an inverted file over a memory's rows, for :meth:`TextMemory.use_index`.

    Args:
        memory: Memory to search.
        lists: Number of lists of the inverted file; None takes about twice the square
            root of the rows.
        probes: Number of lists searched per query; more are slower and find more.

    Raises:
        BackendError: If faiss is not installed.
    """
    faiss = _faiss()
    rows = len(memory.embeddings)
    lists = lists or max(1, min(int(2 * rows**0.5), rows // 39))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(memory.width),
        memory.width,
        lists,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,
    )
    index.cp.seed = 0
    sample = np.random.default_rng(0).permutation(rows)[: 40 * lists]
    index.train(_unit_rows(memory, torch.from_numpy(np.sort(sample))))
    for start in range(0, rows, ROWS_AT_ONCE):
        chunk = torch.arange(start, min(start + ROWS_AT_ONCE, rows))
        index.add(_unit_rows(memory, chunk))
    index.nprobe = min(probes, lists)
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise BackendError(
            "searching the memory with an index needs faiss: pip install faiss-cpu"
        ) from error
    return faiss


def _unit_rows(memory: TextMemory, numbers: Tensor) -> NDArray[np.float32]:
    rows = memory.embeddings[numbers.to(memory.embeddings.device)].float()
    return torch.nn.functional.normalize(rows, dim=1).cpu().numpy()


class _Texts(Sequence[str]):
    """The texts of a memory file, read when asked for."""

    def __init__(self, path: Path, name: str, count: int) -> None:
        self._path, self._name, self._count = path, name, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        with h5py.File(self._path, "r") as file:
            found = file[self._name].asstr()[number]
        return list(found) if isinstance(number, slice) else str(found)


def _read(path: Path) -> tuple[NDArray[np.float32], Sequence[str]]:
    try:
        with h5py.File(path, "r") as file:
            name = next(
                (
                    key
                    for key in file
                    if key.endswith(_EMBEDDINGS) and isinstance(file[key], h5py.Dataset)
                ),
                None,
            )
            if name is None:
                raise WeightsError(
                    f"{path} has no dataset '...{_EMBEDDINGS}' (it has {list(file)}); "
                    "give a memory file of text embeddings"
                )
            dataset = file[name]
            if dataset.ndim != 2 or 0 in dataset.shape:
                raise WeightsError(
                    f"the memory {path} is {dataset.shape}: it has no rows; "
                    "build it again"
                )
            offset = dataset.id.get_offset()
            shape, dtype = dataset.shape, dataset.dtype
            embeddings = None if offset is not None else dataset[:]
            text_name = name.removesuffix(_EMBEDDINGS) + _TEXT
            has_texts = text_name in file
    except OSError as error:
        raise WeightsError(f"{path} is not a readable HDF5 file: {error}") from error
    if embeddings is None:
        # Copy on write, so that torch may take it; nothing ever writes.
        embeddings = np.memmap(path, dtype, mode="c", offset=offset, shape=shape)
    if embeddings.dtype != np.float32:
        embeddings = embeddings.astype(np.float32)
    texts = _Texts(path, text_name, shape[0]) if has_texts else ()
    return embeddings, texts


def memory_file_name(
    size: int,
    *,
    prefix: str = "",
    corpus: str = "coco_captions",
    postfix: str = "-B16",
    clip: str = "ViT-B/16",
) -> str:
    """Returns the file name that the published models look their memory up by.

    Args:
        size: Number of rows, padding included.
        prefix: Prefix such as ``clip-``, ``invite-`` or ``denseclip-``; none for
            Talk2DINO.
        corpus: Name of the corpus of captions.
        postfix: Postfix of the projection, if there is one.
        clip: Name of the text tower.
    """
    tower = clip.replace("/", ".")
    return f"{prefix}{corpus}_text_embeddings{postfix}-{tower}-{size}.h5"


def build_memory(
    path: str | Path,
    captions: Sequence[str],
    encode: Callable[[Sequence[str]], Tensor],
    *,
    corpus: str = "coco_captions",
    batch_size: int = 256,
) -> Path:
    """Writes a memory file in the published layout.

    Args:
        path: Path of the new file; an old one is replaced when the new one is whole.
        captions: Captions, one per row, in order.
        encode: Function from texts to vectors (n, D): a CLIP text tower, and for a DINO
            memory the Talk2DINO projection after it.
        corpus: Name of the corpus.
        batch_size: Number of captions per call of ``encode``.

    Returns:
        The path.

    Raises:
        WeightsError: If there is no caption.
        PromptError: If ``encode`` finds a caption too long.
    """
    if not captions:
        raise WeightsError("there is no caption to build a memory from")
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            dataset = None
            for start in range(0, len(captions), batch_size):
                batch = captions[start : start + batch_size]
                vectors = encode(batch).detach().float().cpu().numpy()
                if dataset is None:
                    # In one piece (not chunked), so that it can be mapped from disk.
                    shape = len(captions), vectors.shape[1]
                    dataset = file.create_dataset(
                        corpus + _EMBEDDINGS, shape=shape, dtype=np.float32
                    )
                dataset[start : start + len(batch)] = vectors
            texts = np.array(captions, dtype=object)
            file.create_dataset(corpus + _TEXT, data=texts, dtype=h5py.string_dtype())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
