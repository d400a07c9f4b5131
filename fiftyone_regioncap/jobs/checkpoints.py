"""Stores the checkpoint of an interrupted propagation until it is resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fiftyone_regioncap.propagation.base import Checkpoint


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk, tied to the job that made it.

    Attributes:
        path: Path of a safetensors file, in a folder of its sample and field.
        signature: Hash of everything the results depend on; a checkpoint of another
            signature is ignored.
    """

    path: Path
    signature: str

    def load(self) -> Checkpoint | None:
        """Returns the arrays by name; None where there are none, or of another job."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                if (file.metadata() or {}).get("signature") != self.signature:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes the arrays so that a reader sees the old file or the new, never half.

        Raises:
            OSError: When the disk is full; the old file stays.
        """
        arrays = {name: np.ascontiguousarray(a) for name, a in checkpoint.items()}
        data = save(arrays, metadata={"signature": self.signature})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def remove(self) -> None:
        """Forgets the checkpoint, and what killed jobs have left of one."""
        with contextlib.suppress(OSError):
            for path in (self.path, *self.path.parent.glob("*.part")):
                path.unlink(missing_ok=True)
            self.path.parent.rmdir()

    def remove_all(self) -> None:
        """Forgets the checkpoints of all ranges of the sample and field."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def signature(facts: Mapping[str, object]) -> str:
    """Hashes everything that a job's results depend on.

    Args:
        facts: Plain values by name; arrays are hashed by dtype, shape and bytes.
    """

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            return [str(array.dtype), list(array.shape), digest]
        raise TypeError(f"cannot hash a {type(value).__name__}")

    text = json.dumps(facts, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()
