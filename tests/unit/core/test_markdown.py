from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiftyone_regioncap.core.markdown import code, counted, escape, plain


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("plain", "plain"),
        ("<b>*x*</b>", r"\<b\>\*x\*\<\/b\>"),
        ("{{label}} ![a](b)", r"\{\{label\}\} \!\[a\]\(b\)"),
        ("one\n    two", "one\\\ntwo"),
    ],
)
def test_texts_are_shown_as_they_are(text, markdown):
    assert escape(text) == markdown


def test_nothing_ends_a_span_of_code():
    assert code("a`b\n<i>") == "`a'b <i>`"


@given(st.text(st.characters(exclude_categories=["Z", "C"])))
def test_a_terminal_shows_the_text_itself(text):
    assert plain(f"**{escape(text)}**") == text
    assert plain(code(text)) == text.replace("`", "'")


def test_a_terminal_shows_line_breaks():
    assert plain(escape("one\ntwo")) == "one\ntwo"


def test_numbers_and_nouns_agree() -> None:
    assert [counted(n, "track") for n in (0, 1, 2)] == [
        "**0** tracks",
        "**1** track",
        "**2** tracks",
    ]
