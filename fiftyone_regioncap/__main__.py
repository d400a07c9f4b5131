"""``python -m fiftyone_regioncap`` is ``regioncap``."""

from __future__ import annotations

from fiftyone_regioncap.cli.main import main

if __name__ == "__main__":
    main()
