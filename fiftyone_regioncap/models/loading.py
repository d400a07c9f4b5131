"""Loads checkpoints: finds or downloads their files, reads them, checks every weight.

All models are loaded in these steps, so that they fail in the same words:
:func:`fetch_checkpoint` gives the folder, :func:`read_json` its configuration,
:func:`read_tensors` its weights one by one, and :func:`load_strict` puts them into a
module that was built on the meta device.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.core.options import is_text
from fiftyone_regioncap.system import assets

T = TypeVar("T")

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

NamedTensors: TypeAlias = Iterable[tuple[str, Tensor]]
"""The tensors of a checkpoint with their names."""

Renaming: TypeAlias = Sequence[tuple[str, str]]
"""Regular expressions and what replaces their matches, applied one after the other."""

_WRAPPERS = ("model", "state_dict", "module")
"""Keys under which training code saves the state dict of a model."""

_MAX_LAYERS = 1000
"""No published model comes near; more would build modules for hours."""


# Which files.


def fetch_checkpoint(
    source: str | Path,
    *,
    files: Sequence[str] = ("*.json", "*.safetensors"),
    revision: str | None = None,
    advice: str = "",
) -> Path:
    """Returns the folder of a checkpoint, downloading it when it is on the hub.

    Args:
        source: A folder, or a hub repository as ``owner/name`` or, pinned to a commit,
            tag or branch, ``owner/name@revision``.
        files: Patterns of the files to download; never pickles of code.
        revision: Commit, tag or branch of the repository; None for the one that
            ``source`` names, or else the commit that was fetched first here.
        advice: Sentence that tells the user what to do when there is no such
            checkpoint.

    Raises:
        WeightsError: When there is no such folder, or the hub does not give the files.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    repository, _, pinned = str(source).partition("@")
    if folder.is_absolute() or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise WeightsError(
            f"{source} is no folder and no hub repository (owner/name). {advice}"
        )
    try:
        return assets.snapshot(repository, files, revision=revision or pinned or None)
    # The hub's client raises its own errors, its HTTP library's and OSError.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"{source} is no folder here, and the hub did not give it "
            f"({type(error).__name__}: {reason}). Check the name and the network; a "
            "gated repository needs `hf auth login`. On a machine without network, "
            f"run `hf download {repository}` on another one and name the folder. "
            f"{advice}".rstrip()
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a folder: one, or the shards of its index.

    Raises:
        WeightsError: When there are none, or one that the index names is missing.
    """
    index = folder / INDEX
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, Mapping) or not names:
            raise WeightsError(f"{index} is no safetensors index: it has no weight_map")
        if not all(map(is_file_name, names.values())):
            raise WeightsError(f"{index} names files that no folder can have")
        # Names come out of a file: they must stay inside the folder.
        paths = [folder / Path(name).name for name in sorted(set(names.values()))]
    else:
        paths = [folder / SINGLE]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise WeightsError(
            f"{folder}: {', '.join(missing)} missing of {len(paths)} weight files; "
            "fetch the checkpoint again (only safetensors are read)"
        )
    return paths


def is_file_name(value: Any) -> bool:
    """Returns whether a value of a configuration may be the path of a file."""
    return isinstance(value, str) and is_text(value) and len(value.encode()) < 256


def revision_of(folder: Path, files: Sequence[Path] | None = None) -> str:
    """Returns the fingerprint of a checkpoint: a hub commit, or a hash.

    Args:
        folder: Folder of the checkpoint.
        files: Files with its weights; None for :func:`weight_files`.

    Returns:
        The commit where the folder is a snapshot in the hub's cache, else the sha256 of
        the file, or of the hashes of all files when there are several.

    Raises:
        WeightsError: When there are no weights.
    """
    resolved = folder.resolve()
    if resolved.parent.name == "snapshots":
        return resolved.name
    hashes = [assets.sha256(path) for path in files or weight_files(folder)]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


# What is in them.


def read_json(path: Path, advice: str = "fetch the checkpoint again") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: Path of the file.
        advice: Sentence that tells the user what to do when the file is missing or
            damaged.

    Raises:
        WeightsError: When the file is missing, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing; {advice}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} cannot be read as JSON ({error}); {advice}"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no JSON object; {advice}")
    return content


def check_sizes(config: Mapping[str, Any], where: str) -> None:
    """Checks the sizes in a configuration before modules are built from them.

    Keys that count layers, heads or channels must be whole numbers above 0, layers at
    most 1000 and everything else at most 2**24; heads must divide the hidden size.

    Args:
        config: Configuration with keys such as ``hidden_size`` and
            ``num_hidden_layers``; absent keys are not checked.
        where: File and section, for the message.

    Raises:
        WeightsError: When a size is not possible; the message names the first one.
    """
    sizes = re.compile(r"(hidden|intermediate|vocab|image|patch)_size|num_\w+|head_dim")
    for key, value in config.items():
        if not sizes.fullmatch(key) or isinstance(value, (list, tuple, dict, str)):
            continue
        most = _MAX_LAYERS if key.endswith("layers") else 2**24
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and 1 <= value <= most):
            raise WeightsError(
                f"{where}: {key} is {value!r}; it must be a whole number from 1 to "
                f"{most}"
            )
    heads = config.get("num_attention_heads")
    for key, parts in (
        ("hidden_size", None if config.get("head_dim") else heads),
        ("num_attention_heads", config.get("num_key_value_heads")),
    ):
        whole = isinstance(parts, int) and isinstance(config.get(key), int)
        if whole and config[key] % parts:
            raise WeightsError(
                f"{where}: {key} {config[key]} cannot be split by {parts} heads"
            )


def build_config(kind: Callable[..., T], values: Mapping[str, Any], where: str) -> T:
    """Builds one of transformers' configurations from values of a file.

    Args:
        kind: Class of the configuration.
        values: Values from the file, or some of them.
        where: File and section, for the message.

    Raises:
        WeightsError: When a size is not possible or the class refuses the values.
    """
    check_sizes(values, where)
    with config_errors(where):
        return kind(**values)


@contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Turns errors about values of a configuration into errors that say where.

    Args:
        where: File and section, for the message.

    Raises:
        WeightsError: In place of any other error.
    """
    try:
        yield
    except WeightsError:
        raise
    except KeyError as error:
        raise WeightsError(f"{where} has no {error.args[0]}") from error
    # Configurations of transformers have checks and error types of their own.
    except Exception as error:
        raise WeightsError(f"{where} has values of no use here: {error}") from error


def read_tensors(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a checkpoint with their names; executes nothing.

    Args:
        path: A folder with safetensors, whole or in shards, which are read one tensor
            at a time; or a file that ends in ``.safetensors``, ``.npz``, or ``.pt``,
            ``.pth`` or ``.bin`` with a state dict, alone or as the ``model`` of a
            training checkpoint.
        wanted: Predicate on the names to read; all of them by default.

    Raises:
        WeightsError: When a file is missing, damaged, or holds more than plain data.
    """
    if path.is_dir():
        for file in weight_files(path):
            yield from read_tensors(file, wanted)
    elif path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as opened:
                for name in filter(wanted, opened.keys()):
                    yield name, opened.get_tensor(name)
        except FileNotFoundError as error:
            raise WeightsError(f"{path} is missing") from error
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{path} is no whole safetensors file and cannot be read ({error}); "
                "fetch it again"
            ) from error
    else:
        saved = _read_npz(path) if path.suffix == ".npz" else read_torch(path)
        for wrapper in _WRAPPERS:
            if isinstance(saved, dict) and isinstance(saved.get(wrapper), dict):
                saved = saved[wrapper]
        if not isinstance(saved, dict):
            raise WeightsError(f"{path} holds no tensors by name; give a state dict")
        for name, value in saved.items():
            if isinstance(value, Tensor) and wanted(name):
                yield name, value


def read_torch(path: Path, device: str | torch.device = "cpu") -> Any:
    """Reads what ``torch.save`` wrote: tensors and plain values, never code.

    Args:
        path: Path of the file.
        device: Device that the tensors are loaded to.

    Raises:
        WeightsError: When the file is missing, damaged, or holds more than plain data.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing") from error
    # PyTorch's own text advises to load without weights_only, which runs code: neither
    # shown nor kept as the cause.
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise WeightsError(
                f"{path} holds more than tensors and plain values and was not opened; "
                "save its state dict alone"
            ) from None
        raise WeightsError(
            f"{path} cannot be read (no file of PyTorch's); fetch it again"
        ) from None
    # What is damaged raises errors of PyTorch, pickle, zipfile and Python.
    except Exception as error:
        reason = str(error).split("\n")[0].split("weights_only")[0]
        raise WeightsError(
            f"{path} cannot be read ({reason}); fetch it again"
        ) from None


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing") from error
    # What is damaged raises errors of numpy, zipfile and Python.
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read ({error}); fetch it again"
        ) from error


def rename(name: str, renaming: Renaming) -> str:
    """Returns the name that a published tensor has in our modules."""
    for pattern, replacement in renaming:
        name = re.sub(pattern, replacement, name)
    return name


# Into modules.


def load_strict(
    module: nn.Module,
    tensors: NamedTensors,
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prefix: str = "",
    unused: Callable[[str], bool] = lambda name: False,
    advice: str = "",
) -> None:
    """Fills a module that was built on the meta device, and freezes it.

    Every parameter and buffer must get its tensor, and every tensor find its place.
    Parameters that share their memory (tied weights) need one tensor between them; of
    several, the one under the first of their names counts.

    Args:
        module: Module to fill.
        tensors: Pairs of names and tensors, named as in the module, after the prefix.
        source: Where the tensors come from, for the message.
        device: Device that the tensors are moved to.
        dtype: Type that floating-point tensors are cast to; None keeps theirs.
        prefix: Prefix of the tensors' names before the module's own names.
        unused: Predicate on the names of tensors that the module rightly has no place
            for.
        advice: Sentence that tells the user what to do when the tensors do not fit.

    Raises:
        WeightsError: When tensors are missing, unexpected, of another shape
            or without a number in them.
    """
    owners: dict[int, str] = {}
    places: dict[str, str] = {}
    for name, weight in module.state_dict(keep_vars=True).items():
        places[name] = owners.setdefault(id(weight), name)
    wanted = {name: weight.shape for name, weight in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    unexpected, misshapen, empty = [], {}, []
    for published, tensor in tensors:
        name = published.removeprefix(prefix)
        if not published.startswith(prefix) or name not in places:
            if not unused(published):
                unexpected.append(published)
            continue
        if tensor.shape != wanted[name]:
            misshapen[places[name]] = (
                f"{published} is {tuple(tensor.shape)}, not {tuple(wanted[name])}"
            )
        elif is_all_nan(tensor):
            empty.append(published)
        elif name == places[name] or places[name] not in state:
            cast = dtype if tensor.is_floating_point() else None
            state[places[name]] = tensor.to(device=device, dtype=cast)
    missing = {
        prefix + name
        for name in places.values()
        if name not in state and name not in misshapen and prefix + name not in empty
    }
    check_report(source, missing, unexpected, misshapen.values(), empty, advice)
    shared = {name: state[owner] for name, owner in places.items()}
    module.load_state_dict(shared, assign=True)
    for name, owner in places.items():
        if name != owner:  # one parameter again, which loading made two
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, module.get_parameter(owner))
    module.requires_grad_(False).eval()


def check_report(
    source: str | Path,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    misshapen: Iterable[str] = (),
    empty: Iterable[str] = (),
    advice: str = "",
) -> None:
    """Raises one readable error where weights and modules do not fit together.

    Args:
        source: Where the weights come from, for the message.
        missing: Names of parameters without a tensor.
        unexpected: Names of tensors without a place in the module.
        misshapen: Names of tensors of the wrong shape, with both shapes where known.
        empty: Names of tensors that hold NaN only.
        advice: Sentence that tells the user what to do.

    Raises:
        WeightsError: When there is anything to report.
    """
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (
            ("missing", sorted(missing)),
            ("unexpected", sorted(unexpected)),
            ("of another shape", sorted(misshapen)),
            ("nothing but NaN", sorted(empty)),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"{source}: the weights do not fit the model; {'; '.join(problems)}. "
            f"{advice or 'Give configuration and weights of one checkpoint'}"
        )


def is_all_nan(tensor: Tensor) -> bool:
    """Returns whether all values are NaN; looks at one value of a sound tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return False
    first = float(tensor.reshape(-1)[0])
    return math.isnan(first) and bool(tensor.isnan().all())


def _some(names: Sequence[str], limit: int = 6) -> str:
    """Returns the first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown
