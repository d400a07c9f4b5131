"""One process of a training: ``accelerate launch -m fiftyone_regioncap.training DIR``.

The folder was made by ``regioncap train`` or the SDK's ``train``. Called again with the
same options afterwards, these evaluate, and write the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fiftyone_regioncap.training.loop import fit


def main() -> None:
    """Trains what a folder describes."""
    if len(sys.argv) != 2:
        sys.exit("give the folder of the training")
    fit(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
