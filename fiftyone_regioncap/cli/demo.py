"""The demo: a real clip with a clear license, and two boxes on it.

Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0.
"""

from __future__ import annotations

from fiftyone_regioncap.core.types import Prompt

CLIP = "bigbuckbunny.mp4"
"""Name of the asset: 132 frames of 1280 x 720."""

DATASET = "regioncap-demo"
"""Name of the dataset that the demo writes to."""

PROMPTS = (
    Prompt(1, 110, box=(290, 44, 608, 628), label="rabbit"),
    Prompt(2, 0, box=(795, 268, 1180, 436), label="boulder"),
)
"""The rabbit once it stands free, so that the demo shows both directions."""
