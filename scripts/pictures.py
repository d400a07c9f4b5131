"""Makes the documentation's pictures: the App tests' tours of the demo's clip.

Usage: python scripts/pictures.py [tour] [journey]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("drawn", "propagate", "opened", "propagate-from", "review")
PICTURES = {
    "tour": (1200, ("search", "timeline", "map", "review")),
    "journey": (1000, tuple(f"journey-{step}" for step in STEPS)),
}
"""Width and names of each test's pictures."""

wanted = sys.argv[1:] or list(PICTURES)
with tempfile.TemporaryDirectory() as folder:
    tests = [f"tests/app/test_{test}.py" for test in wanted]
    subprocess.run(
        [sys.executable, "-m", "pytest", *tests, "-k", "demo"],
        cwd=ROOT,
        env={**os.environ, "REGIONCAP_ARTIFACTS": folder},
        check=True,
    )
    for width, names in (PICTURES[test] for test in wanted):
        for name in names:
            picture = Image.open(Path(folder, "demo", f"{name}.png")).convert("RGB")
            picture.thumbnail((width, width))
            target = ROOT / "docs" / "images" / f"{name}.jpg"
            picture.save(target, quality=75, optimize=True)
