"""The package's version, apart so that nothing heavy is imported for it."""

from __future__ import annotations

__version__ = "0.1.0"
