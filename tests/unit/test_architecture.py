"""The rooms' order, and what a door may cost before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.support import ROOT


def test_rooms_import_only_what_is_below_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # It sets up logging anew, which would silence the loggers of other tests.
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)
    assert lint_imports(str(ROOT / "pyproject.toml")) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        pytest.param(
            "from fiftyone_regioncap.cli.main import main",
            ("torch", "transformers", "fiftyone"),
            id="shell",
        ),
        pytest.param(
            "import fiftyone_regioncap",
            ("torch", "transformers", "fiftyone", "numpy"),
            id="package",
        ),
        pytest.param(
            "import operators; [o.__name__ for o in operators.OPERATORS]",
            ("torch", "transformers", "tantivy"),
            id="plugin",
        ),
    ],
)
def test_doors_import_models_only_when_they_are_used(
    statement: str, heavy: tuple[str, ...]
) -> None:
    code = f"import sys; {statement}; print(set({heavy!r}) & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
