"""Carrying soft masks from remembered frames to a new one by matching features.

Space-time label propagation as in A. Jabri et al., "Space-Time Correspondence as a
Contrastive Random Walk", NeurIPS 2020, over features of MobileSAM's image encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fiftyone_regioncap.propagation.mobilesam.segmenter import Encoding, Grid


class Describer:
    """Turns encodings into one feature vector per cell.

    Half of the likeness of two cells is that of the embedding, which knows where things
    end, half that of the encoder's third stage, which knows more of what they look
    like. What all cells of the first frame have in common is subtracted from both. The
    principal components of the first frame hold nearly all that tells cells apart, so
    that only they are kept.
    """

    def __init__(self, dimensions: int) -> None:
        """Starts with no frame seen.

        Args:
            dimensions: Number of principal components kept of a cell's features.
        """
        self._dimensions = dimensions
        self._mean: Tensor | None = None
        self._components: Tensor | None = None

    def describe(self, encoding: Encoding, grid: Grid) -> Tensor:
        """Computes the features of a frame's cells.

        Args:
            encoding: Encoding of the frame; the first one determines the components
                that are kept.
            grid: Cell grid of the frame.

        Returns:
            float (cells, dimensions) of unit length in each cell, zeros where it wasn't
            encoded.
        """
        parts = [part.flatten(1).T for part in (encoding.embedding, encoding.stage)]
        if self._mean is None:
            self._mean = torch.cat([part.mean(dim=0) for part in parts])
        means = self._mean.split([part.shape[1] for part in parts])
        features = torch.cat(
            [
                F.normalize(part - mean, dim=1)
                for part, mean in zip(parts, means, strict=True)
            ],
            dim=1,
        )
        if self._components is None:
            _, vectors = torch.linalg.eigh(features.T @ features)
            self._components = vectors[:, -self._dimensions :].contiguous()
        features = F.normalize(features @ self._components, dim=1)
        if encoding.part == grid.whole:
            return features
        whole = features.new_zeros(*grid.cells, features.shape[1])
        whole[encoding.part.slices()] = features.view(*encoding.part.shape, -1)
        return whole.flatten(0, 1)

    def state(self) -> dict[str, Tensor]:
        """Returns what the first frame determined, by name; empty before it."""
        if self._mean is None or self._components is None:
            return {}
        return {"mean": self._mean, "components": self._components}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes up a :meth:`state`."""
        self._mean, self._components = state.get("mean"), state.get("components")


def offsets_squared(
    cells: Tensor, columns: int, rows: int, shift: tuple[float, float]
) -> Tensor:
    """Returns the squared distances of some cells to all cells of another frame.

    Args:
        cells: Indices of cells, int (n,).
        columns: Number of columns of the grid.
        rows: Number of rows of the grid.
        shift: Motion of the object since the other frame, (y, x) in cells.

    Returns:
        float (n, rows * columns), squared distances in cells.
    """
    device = cells.device
    y = (cells // columns)[:, None] - torch.arange(rows, device=device) - shift[0]
    x = (cells % columns)[:, None] - torch.arange(columns, device=device) - shift[1]
    return (y.square()[:, :, None] + x.square()[:, None]).flatten(1)


def carry(
    similarities: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    neighbors: int,
    temperature: float,
) -> Tensor:
    """Returns labels of cells from the remembered cells that they match best.

    Args:
        similarities: Similarities of new to remembered cells for each remembered frame,
            float (n, cells).
        labels: Labels of each remembered frame, float (cells, values).
        neighbors: Number of best matches used for each cell.
        temperature: Temperature of the softmax over the matches.

    Returns:
        float (n, values).
    """
    joined = torch.cat(list(similarities), dim=1)
    top, at = joined.topk(min(neighbors, joined.shape[1]), dim=1, sorted=False)
    weights = (top / temperature).softmax(dim=1)
    return F.embedding_bag(
        at, torch.cat(list(labels)), per_sample_weights=weights, mode="sum"
    )
