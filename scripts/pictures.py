"""Makes the documentation's pictures: the App test's tour of the demo's clip.

Usage: python scripts/pictures.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("search", "timeline", "map", "review")
WIDTH = 1200

with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
        [sys.executable, "-m", "pytest", "tests/app/test_tour.py", "-k", "demo"],
        cwd=ROOT,
        env={**os.environ, "REGIONCAP_ARTIFACTS": folder},
        check=True,
    )
    for name in NAMES:
        picture = Image.open(Path(folder, "demo", f"{name}.png")).convert("RGB")
        picture.thumbnail((WIDTH, WIDTH))
        target = ROOT / "docs" / "images" / f"{name}.jpg"
        picture.save(target, quality=78, optimize=True)
