"""Writes docs/options.md from the declared operations, models and formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fiftyone_regioncap.core.options import fields_of, markdown_table
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.exporters import FORMATS
from fiftyone_regioncap.jobs.options import ExecutionOptions
from fiftyone_regioncap.models.options import LoadOptions
from fiftyone_regioncap.operations import OPERATIONS, REGISTRIES

PATH = Path(__file__).resolve().parents[1] / "docs" / "options.md"


def document() -> str:
    """The whole page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Options"
    yield ""
    yield (
        "Made by `python -m scripts.options_docs` from the declarations in the code. "
        "Names are the same in the shell (`--with-dashes`), in the SDK and in the App."
    )
    for operation in OPERATIONS.values():
        yield from ("", f"## {operation.label}", "", operation.summary, "")
        yield (
            f"Shell `regioncap {operation.command}`, SDK `{operation.name}`, App "
            f"`{operation.operator}`."
        )
        yield from ("", markdown_table(operation.options))
        for model in operation.models:
            yield from ("", f"`{model.name}` (default `{model.default}`): {model.help}")
    yield from ("", "## Loading models", "", markdown_table(LoadOptions))
    yield from ("", "## Where jobs run", "", markdown_table(ExecutionOptions))
    for kind, target in REGISTRIES.items():
        for card in resolve(target).values():
            if fields_of(card.options):
                yield from ("", f"## {kind.capitalize()} {card.name}", "")
                yield markdown_table(card.options)
            if fields_of(card.training_options):
                yield from ("", f"## Training {card.name}", "")
                yield "These are the values of `recipe_options`."
                yield from ("", markdown_table(card.training_options))
    for name, found in FORMATS.items():
        if fields_of(found):
            yield from ("", f"## Format {name}", "", markdown_table(found))


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
