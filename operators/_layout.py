"""Layouts that panels share: rows that wrap, and room for what the App lays over."""

from __future__ import annotations

from typing import Any

from fiftyone.operators import types

WRAP = {"grid": {"sx": {"display": "flex", "flexWrap": "wrap"}}}
"""Lets a row go on in the next line where a panel is narrow."""

NARROW = {"item": {"sx": {"width": "auto"}}}
"""Keeps an item of such a row as wide as its content."""


def panel_layout(ctx: Any) -> types.GridView:
    """Returns the layout of a panel.

    Beside an open sample, the App lays arrows to the samples before and after over the
    sides of a panel, which must not cover buttons.
    """
    sides = 2 if ctx.current_sample is None else 8
    return types.GridView(orientation="vertical", gap=1.5, px=sides, py=1)
