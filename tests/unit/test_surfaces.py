"""What one door offers, the others offer by the same name."""

from __future__ import annotations

import inspect

import pytest

from fiftyone_regioncap import api
from fiftyone_regioncap.cli.commands import command_of
from fiftyone_regioncap.core.options import fields_of
from fiftyone_regioncap.core.registry import resolve
from fiftyone_regioncap.operations import OPERATIONS, REGISTRIES, Operation
from scripts import benchmarks_docs
from scripts.options_docs import PATH, document

EACH = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=list(OPERATIONS))


@EACH
def test_the_sdk_takes_every_parameter(operation: Operation) -> None:
    signature = inspect.signature(api.function_of(operation))
    assert set(signature.parameters) == {
        *(["samples"] if operation.media else []),
        *operation.parameters(),
        "progress",
        "cancel",
    }


@EACH
def test_the_shell_takes_every_parameter(operation: Operation) -> None:
    names = {parameter.name for parameter in command_of(operation).params}
    samples = {"dataset", "view"} if operation.media else set()
    assert names == {*samples, *operation.parameters(), "as_json"}


@EACH
def test_every_parameter_is_documented(operation: Operation) -> None:
    text = str(api.function_of(operation).__doc__)
    assert all(f"    {name}: " in text for name in operation.parameters())


@EACH
def test_help_is_full_sentences(operation: Operation) -> None:
    assert operation.summary[0].isupper() and operation.summary.endswith(".")
    for field in operation.fields:
        assert field.declaration.help[0].isupper(), field.name
        assert field.declaration.help.endswith("."), field.name


def test_the_docs_hold_the_declared_options() -> None:
    assert PATH.read_text(encoding="utf-8") == document(), (
        "run python -m scripts.options_docs"
    )


def test_the_docs_hold_the_declared_benchmarks() -> None:
    assert benchmarks_docs.PATH.read_text(encoding="utf-8") == (
        benchmarks_docs.document()
    ), "run python -m scripts.benchmarks_docs"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_option_of_a_backend_is_a_full_sentence(kind: str) -> None:
    for card in resolve(REGISTRIES[kind]).values():
        for field in (*fields_of(card.options), *fields_of(card.training_options)):
            assert field.declaration.help.endswith("."), (card.name, field.name)
