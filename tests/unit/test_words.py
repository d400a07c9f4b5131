"""What messages may not say, wherever they come from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT


def texts(path: Path) -> Iterator[str]:
    """The strings of a module; of those with values in them, what is around these."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("folder", ["fiftyone_regioncap", "operators"])
def test_no_message_names_an_extra_of_ours(folder: str) -> None:
    """The package is on no index: ``pip install`` needs the names of others."""
    paths = list((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        for text in texts(path):
            assert "fiftyone-regioncap[" not in text, f"{path}: {text}"
