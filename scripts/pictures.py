"""Makes the documentation's pictures: the App tests' tours of the demo's clip.

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
STEPS = ("propagate", "opened")
WIDTH = 1200
TESTS = ("tests/app/test_tour.py", "tests/app/test_journey.py")

with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
        [sys.executable, "-m", "pytest", *TESTS, "-k", "demo"],
        cwd=ROOT,
        env={**os.environ, "REGIONCAP_ARTIFACTS": folder},
        check=True,
    )
    for name in (*NAMES, *(f"journey-{step}" for step in STEPS)):
        picture = Image.open(Path(folder, "demo", f"{name}.png")).convert("RGB")
        picture.thumbnail((WIDTH, WIDTH))
        target = ROOT / "docs" / "images" / f"{name}.jpg"
        picture.save(target, quality=78, optimize=True)
