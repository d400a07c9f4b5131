"""Adds pages to the documentation site that are not files in docs/.

The SDK's functions are made from declarations when they are used, so that no reader of
source text finds them: their page is made from their signatures and docstrings. README,
CHANGELOG and the like stay in the repository's root, where people look for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fiftyone_regioncap import api
from fiftyone_regioncap.operations import OPERATIONS, Operation

ROOT = Path(__file__).resolve().parents[1]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
}
"""Pages of the site by their file in the root."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages; called by MkDocs when it has listed docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    functions = "\n".join(_functions()) + "\n"
    files.append(File.generated(config, "functions.md", content=functions))
    return files


def _functions() -> Iterator[str]:
    """The lines of the page of functions."""
    yield "# Functions"
    yield ""
    yield "`import fiftyone_regioncap as regioncap`, then:"
    for operation in OPERATIONS.values():
        yield from _function(operation)


def _function(operation: Operation) -> Iterator[str]:
    function = api.function_of(operation)
    parameters = inspect.signature(function).parameters.values()
    yield from ("", f"## {operation.name}", "", operation.summary, "")
    yield "```python"
    yield f"regioncap.{operation.name}("
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "    *,"
        default = parameter.default
        shown = "" if default is parameter.empty else f"={default!r}"
        yield f"    {parameter.name}{shown},"
    yield from (")", "```", "")
    described = inspect.getdoc(function) or ""
    _, _, arguments = described.partition("Args:\n")
    arguments, _, returned = arguments.partition("\nReturns:\n")
    for line in arguments.strip().splitlines():
        name, _, text = line.strip().partition(": ")
        yield f"- `{name}`: {text.replace('<', '&lt;')}"
    yield from ("", f"Returns: {returned.strip()}")
