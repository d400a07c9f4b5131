"""Options of loading models, the same for all models of an operation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import Options, option

_DEVICE = re.compile(r"(cpu|cuda|hip|hpu|mps|mtia|npu|xla|xpu)(:\d{1,4})?")


@dataclass(frozen=True)
class LoadOptions(Options):
    """Options of loading models."""

    weights: str | None = option(
        None,
        "Folder, file or hub id of the weights, for the one model that needs them.",
        picker="file",
    )
    device: str | None = option(
        None, "Device such as cuda or cpu; empty for the best there is.", advanced=True
    )
    accept_license: bool = option(
        False, "Accept the license of the weights; `regioncap models` names it."
    )

    def __post_init__(self) -> None:
        """Checks the values; whether the device is there shows when it is used.

        Raises:
            OptionError: When a value doesn't fit.
        """
        super().__post_init__()
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise OptionError(
                f"device={self.device!r}: give a device of PyTorch, such as cpu, cuda "
                "or cuda:1"
            )
