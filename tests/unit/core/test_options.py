from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiftyone_regioncap.core.errors import OptionError
from fiftyone_regioncap.core.options import (
    Options,
    fields_of,
    group,
    markdown_table,
    option,
)


@dataclass(frozen=True)
class Inner(Options):
    patience: int = option(5, "Frames below the score.", minimum=1, unit="frames")


@dataclass(frozen=True)
class Example(Options):
    field: str = option(help="Field to read.", picker="prompts")
    size: int = option(512, "Side of the image.", minimum=64, maximum=2048)
    score: float | None = option(None, "Lowest score.", minimum=0, maximum=1)
    window: int | Literal["change"] | None = option(None, "Window.", minimum=1)
    mode: Literal["a", "b"] = option("a", "Mode.")
    names: tuple[str, ...] = option((), "Names.")
    box: tuple[float, float] | None = option(None, "Two numbers.")
    on: bool = option(False, "Whether it is on.")
    key: str | None = option(None, "Key.", secret=True)
    inner: Inner = group(Inner)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"sizee": 1}, "did you mean 'size'", id="close name"),
        pytest.param({"zzz": 1}, "known options: box, field", id="unknown name"),
        pytest.param({"size": "big"}, "an integer from 64 to 2048", id="text"),
        pytest.param({"size": True}, "size=True", id="bool is no number"),
        pytest.param({"size": 10}, "size=10", id="too small"),
        pytest.param({"score": float("nan")}, "score=nan", id="not a number"),
        pytest.param({"window": 0}, "window=0", id="union out of range"),
        pytest.param({"window": "often"}, "window='often'", id="union text"),
        pytest.param({"mode": "c"}, "one of a, b", id="no choice"),
        pytest.param({"names": "abc"}, "a list of texts", id="text for a list"),
        pytest.param({"box": [1, 2, 3]}, "box=", id="too many"),
        pytest.param({"patience": 0}, "frames", id="in a group"),
        pytest.param({"key": 5}, r"key=\*\*\*", id="secrets are not shown"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Example.from_mapping({"field": "x", **values}, "captioner example")


def test_required_options_are_required() -> None:
    with pytest.raises(OptionError, match="field is missing"):
        Example.from_mapping({})


def test_values_take_the_declared_type() -> None:
    made = Example.from_mapping(
        {"field": "f", "size": np.int64(64), "names": ["a"], "score": 1, "patience": 3}
    )
    assert made == Example("f", 64, 1.0, names=("a",), inner=Inner(3))
    assert type(made.size) is int and type(made.score) is float


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "128", 128),
        ("window", "change", "change"),
        ("window", "8", 8),
        ("on", "true", True),
        ("names", '["a"]', ("a",)),
        ("names", "a, b", ("a", "b")),
        ("field", "12", "12"),
        ("score", "null", None),
    ],
)
def test_texts_are_parsed(name: str, text: str, value: Any) -> None:
    (field,) = (field for field in fields_of(Example) if field.name == name)
    assert field.parse(text) == value


@dataclass(frozen=True)
class Writing(Options):
    output: str = option("made", "Field to write.")


@dataclass(frozen=True)
class Reading(Options):
    source: str = option("made", "Field to read.")
    output: str = option("said", "Field to write.")
    kinds: tuple[str, ...] = option(("a",), "Kinds.", choices={"a": "", "b": ""})


@dataclass(frozen=True)
class Both(Options):
    write: Writing = group(Writing, {"output": "source"})
    read: Reading = group(Reading)


def test_options_of_one_name_share_their_value() -> None:
    assert [field.name for field in fields_of(Both)] == ["source", "output", "kinds"]
    both = Both.from_mapping({"source": "x", "output": "y"})
    assert (both.write.output, both.read.source, both.read.output) == ("x", "x", "y")
    assert both.to_mapping() == {"source": "x", "output": "y", "kinds": ["a"]}


def test_members_of_a_list_are_chosen_too() -> None:
    assert Reading(kinds=("b", "a")).kinds == ("b", "a")
    with pytest.raises(OptionError, match="some of a, b"):
        Reading(kinds=("c",))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"field": TEXTS},
        optional={
            "size": st.integers(64, 2048),
            "score": st.none() | st.floats(0, 1),
            "window": st.none() | st.just("change") | st.integers(1, 10**6),
            "names": st.lists(TEXTS).map(tuple),
            "on": st.booleans(),
            "patience": st.integers(1, 99),
        },
    )
)
def test_mappings_go_round(values: dict[str, Any]) -> None:
    made = Example.from_mapping(values)
    assert Example.from_mapping(made.to_mapping()) == made


@pytest.mark.parametrize("text", ["\udcff.mp4", "a\0b"])
def test_what_can_t_be_stored_is_no_text(text: str) -> None:
    with pytest.raises(OptionError, match="no text in UTF-8"):
        Example(text)
    with pytest.raises(OptionError, match="names="):
        Example("f", names=("good", text))


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
def test_integers_fit_the_database(value: int) -> None:
    with pytest.raises(OptionError, match="window="):
        Example("f", window=value)


def test_secrets_stay_out_of_mappings() -> None:
    assert "key" not in Example("f", key="sk-1").to_mapping()


def test_every_option_is_documented() -> None:
    for text in (markdown_table(Example),):
        assert all(field.name in text for field in fields_of(Example))


def test_undeclared_fields_are_refused() -> None:
    @dataclass(frozen=True)
    class Forgotten(Options):
        size: int = 3

    with pytest.raises(TypeError, match=r"Forgotten\.size is not declared"):
        fields_of(Forgotten)
