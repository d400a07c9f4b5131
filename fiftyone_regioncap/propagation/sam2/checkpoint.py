"""A stream's state as plain arrays, to be taken up again bit by bit."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.propagation.base import Checkpoint
from fiftyone_regioncap.propagation.sam2.bank import Bank, Outcome
from fiftyone_regioncap.propagation.sam2.stream import LogitsStream

TABLES = ("conditioning", "memories", "prompt_pointers", "pointers")


def save_state(stream: LogitsStream, identity: bytes) -> Checkpoint:
    """Writes down where a stream is and what it remembers.

    Args:
        stream: between two frames.
        identity: bytes that differ for runs with other arguments.
    """
    arrays: dict[str, NDArray[np.generic]] = {
        "run": _digest(identity),
        "position": np.array([stream.pass_index, stream.done_in_pass], dtype=np.int64),
    }
    if stream.space is not None:
        arrays["space"] = _to_array(stream.space)
    for index, bank in enumerate(stream.banks):
        for table in TABLES:
            for frame, tensor in getattr(bank, table).items():
                arrays[f"{index}/{table}/{frame}"] = _to_array(tensor)
        for frame, outcome in bank.outcomes.items():
            key = f"{index}/outcomes/{frame}"
            arrays[f"{key}/logits"] = _to_array(outcome.logits)
            arrays[f"{key}/presence"] = _to_array(outcome.presence)
            arrays[f"{key}/iou"] = _to_array(outcome.iou)
    return arrays


def load_state(
    stream: LogitsStream,
    checkpoint: Checkpoint,
    identity: bytes,
    device: torch.device,
) -> None:
    """Puts a fresh stream where another one was.

    Raises:
        BackendError: when the checkpoint belongs to a run with other arguments.
    """
    if "run" not in checkpoint or not np.array_equal(
        checkpoint["run"], _digest(identity)
    ):
        raise BackendError(
            "the checkpoint belongs to a run with another model, video or prompts; "
            "repeat that run's arguments, or start without the checkpoint"
        )
    stream.pass_index, stream.done_in_pass = map(int, checkpoint["position"])
    for name, array in checkpoint.items():
        tensor = _to_tensor(array, device)
        match name.split("/"):
            case ["space"]:
                stream.space = tensor
            case [index, "outcomes", frame, "logits"]:
                key = f"{index}/outcomes/{frame}"
                stream.banks[int(index)].outcomes[int(frame)] = Outcome(
                    logits=tensor,
                    presence=_to_scalar(checkpoint[f"{key}/presence"], device),
                    iou=_to_scalar(checkpoint[f"{key}/iou"], device),
                )
            case [index, table, frame] if table in TABLES:
                bank: Bank = stream.banks[int(index)]
                getattr(bank, table)[int(frame)] = tensor


def _digest(identity: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(identity).digest(), dtype=np.uint8)


def _to_array(tensor: Tensor) -> NDArray[np.generic]:
    """NumPy has no bfloat16: its bits go as int16."""
    host = tensor.detach().contiguous().cpu()
    if host.dtype == torch.bfloat16:
        host = host.view(torch.int16)
    return host.numpy().copy()


def _to_scalar(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Files tend to give scalars back as arrays of one."""
    return _to_tensor(array, device).reshape(())


def _to_tensor(array: NDArray[np.generic], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    if tensor.dtype == torch.int16:
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device)
