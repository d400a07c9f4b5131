"""Writing of weights: safetensors in the layout that the loaders read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.models.loading import (
    check_report,
    read_json,
    read_tensors,
)
from fiftyone_regioncap.system.leftovers import remove_leftovers

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""PEFT's names of the files of an adapter."""

_PREFIX = "base_model.model."
"""PEFT's prefix of the names of an adapter's tensors."""


def rewrite(
    source: Path, target: Path, replaced: Callable[[str, Tensor], Tensor]
) -> None:
    """Copies a folder of weights, with other values in its safetensors.

    Files keep their names, so that an index of shards stays true; tensors keep their
    names and types. What is no safetensors file is copied as it is, folders are not.

    Args:
        source: Folder of the weights.
        target: Folder to write to; made where it is absent.
        replaced: Gets each tensor by its name; returns the tensor to write, of the same
            shape.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        if path.suffix != ".safetensors":
            copy(path, target / path.name)
            continue
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
        written = {
            name: replaced(name, tensor).detach().to("cpu", tensor.dtype).contiguous()
            for name, tensor in read_tensors(path)
        }
        save_tensors(target / path.name, written, metadata)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file; it is whole or not there.

    Args:
        path: Path of the file.
        tensors: Tensors by name; those that share memory are written each.
        metadata: Texts to store with them.
    """
    # Processes of one training may write the same file at once.
    name = remove_leftovers(path.parent, f"{path.name}.", ".partial")
    partial = path.with_name(f"{name}.partial")
    separate = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }
    try:
        save_file(separate, partial, metadata=metadata or {"format": "pt"})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copies a file or a folder, sharing the disk's blocks where that is possible.

    What is already there is left alone where it is the same file.
    """
    if source.is_dir():
        shutil.copytree(
            source.resolve(), target, copy_function=_link, dirs_exist_ok=True
        )
    else:
        _link(str(source), str(target))


def _link(source: str, target: str) -> None:
    if os.path.exists(target) and os.path.samefile(source, target):
        return
    # Never into a file that is there: it may be a link to another checkpoint's.
    Path(target).unlink(missing_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def save_adapter(
    folder: Path,
    base: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes what was trained, to be loaded with the checkpoint it was trained on.

    Args:
        folder: Folder to write to.
        base: Folder or hub id of that checkpoint.
        tensors: The trained tensors by their names in the network; LoRA matrices end
            with ``lora_A.weight`` and ``lora_B.weight``.
        config: PEFT's configuration of the LoRA matrices, if there are any.
    """
    save_tensors(
        folder / ADAPTER_WEIGHTS,
        {_PREFIX + name.replace(".default", ""): t for name, t in tensors.items()},
    )
    document = {**(config or {}), "base_model_name_or_path": base}
    text = json.dumps(document, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def adapter_base(folder: str | Path) -> str | None:
    """Returns the checkpoint that an adapter belongs to; None for whole weights.

    Raises:
        WeightsError: When the adapter doesn't say.
    """
    path = Path(folder).expanduser() / ADAPTER_CONFIG
    if not path.is_file():
        return None
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise WeightsError(f"{path} names no base_model_name_or_path")
    inside = path.parent / base
    return str(inside) if not os.path.isabs(base) and inside.is_dir() else base


@torch.no_grad()
def apply_adapter(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Merges an adapter into the modules of its base.

    Args:
        folder: Folder of the adapter.
        modules: The network's modules by name.

    Raises:
        WeightsError: When the adapter is of another network.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    scale = float(config.get("lora_alpha", 0)) / float(config.get("r", 1))
    network = nn.ModuleDict(dict(modules))
    places = network.state_dict(keep_vars=True)
    tensors = {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in read_tensors(folder / ADAPTER_WEIGHTS)
    }
    unexpected: list[str] = []
    misshapen: list[str] = []
    for name, tensor in tensors.items():
        if name.endswith(".lora_B.weight"):
            continue
        value, place = tensor, name
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            place = f"{stem}.weight"
            other = tensors.get(f"{stem}.lora_B.weight")
            if other is None:
                unexpected.append(name)
                continue
            value = scale * (other.float() @ tensor.float())
        if place not in places:
            unexpected.append(name)
            continue
        weight = places[place]
        if weight.shape != value.shape:
            misshapen.append(f"{name} is {tuple(value.shape)}")
        elif place == name:
            weight.copy_(value.to(weight))
        else:
            weight.copy_((weight.float() + value.to(weight.device)).to(weight.dtype))
    check_report(folder, (), unexpected, misshapen)
