"""Strict loading of safetensors, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fiftyone_regioncap.core.errors import WeightsError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def shard_paths(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        WeightsError: when there are none, or one that the index names is missing.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise WeightsError(f"{index} is no safetensors index: {error}") from error
        paths = [folder / Path(name).name for name in names]
    else:
        paths = [folder / SINGLE]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise WeightsError(
            f"{folder}: {', '.join(missing)} missing of {len(paths)} weight files; "
            "fetch the checkpoint anew (only safetensors are read)"
        )
    return paths


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder by its name, one at a time.

    Raises:
        WeightsError: when a file is missing or corrupt.
    """
    for path in shard_paths(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is no whole safetensors file ({error}); fetch it anew"
            ) from error


def load_strict(
    module: nn.Module,
    folder: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    prefix: str = "",
    unused: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fills a module that was built on the meta device.

    Args:
        module: whose parameters get the tensors of the folder.
        folder: with the safetensors.
        device: where the parameters go.
        dtype: what they are cast to.
        prefix: in front of the module's names in the file.
        unused: tells names of tensors that the module rightly does not have.

    Raises:
        WeightsError: naming the tensors that are missing, left over, or of another
            shape.
    """
    # named_parameters gives tied weights once, under the name that files have.
    wanted = {prefix + name: p.shape for name, p in module.named_parameters()}
    state: dict[str, Tensor] = {}
    left_over: list[str] = []
    misshapen: dict[str, str] = {}
    for name, tensor in tensors(folder):
        if name not in wanted:
            if not unused(name):
                left_over.append(name)
        elif tensor.shape != wanted[name]:
            misshapen[name] = (
                f"{name} is {tuple(tensor.shape)}, not {tuple(wanted[name])}"
            )
        else:
            state[name.removeprefix(prefix)] = tensor.to(device=device, dtype=dtype)
    missing = [
        name
        for name in wanted
        if name.removeprefix(prefix) not in state and name not in misshapen
    ]
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (
            ("missing", missing),
            ("not part of DAM", left_over),
            ("of another shape", list(misshapen.values())),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"{folder}: the weights don't fit config.json; " + "; ".join(problems)
        )
    module.load_state_dict(state, strict=False, assign=True)


def _some(names: list[str], limit: int = 6) -> str:
    shown = ", ".join(sorted(names)[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
