"""Text of others on a line: nothing in it moves a cursor, reorders what is read, or ends a line early."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from flows.show import plain
from mot_core.text import LINE_CHARACTERS, log_line, visible
from tasks.artifacts import markdown_text

ANY = st.text(st.characters(), max_size=60)  # lone surrogates too


@given(ANY, st.booleans())
def test_nothing_hidden_is_left(text: str, keep_layout: bool) -> None:
    shown = visible(text, keep_layout=keep_layout)
    kept = {"\n", "\t"} if keep_layout else set()
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [c for c in shown if unicodedata.category(c) in hidden and c not in kept]
    shown.encode("utf-8")


@given(ANY)
def test_a_log_line_is_one_line(text: str) -> None:
    assert len(log_line(text).splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\x1b[33mWARNING\x1b[0m x\r\n", "WARNING x"), ("10%\r20%", "10%␍20%"), ("a\tb", "a\tb"),
        ("\x1b]0;title\x07", "␛]0;title␇"), ("\x1b[2J\x08", "␛[2J␈"), ("a\u202eb\u2028c", "a⟨U+202E⟩b⟨U+2028⟩c"), ("", ""),
    ],
)  # fmt: skip
def test_a_log_line(text: str, line: str) -> None:
    assert log_line(text) == line


def test_a_long_line_is_cut_and_says_so() -> None:
    line = log_line("x" * 12_345)
    assert line == "x" * LINE_CHARACTERS + "… [cut: 12,345 characters]"


def test_a_terminal_gets_no_control_of_ours() -> None:
    console = Console(force_terminal=True, width=80, color_system=None)
    with console.capture() as captured:
        console.print(plain("\x1b[2J\x1b]0;t\x07[red]a[/red]\u202e\ud800"))
    assert captured.get() == "␛[2J␛]0;t␇[red]a[/red]⟨U+202E⟩⟨U+D800⟩\n"


@given(ANY)
def test_markdown_of_a_text_is_one_line(text: str) -> None:
    assert len(markdown_text(text).splitlines()) <= 1


def test_markdown_of_a_text_has_no_markup() -> None:
    pytest.importorskip("markdown_it")
    from markdown_it import MarkdownIt

    hostile = "[x](javascript:alert(1)) <script>alert(1)</script> ![i](http://h/i.png) **b** `c` | d\n# e <http://h> ~~f~~ \u202eg"
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown_text(hostile))
    assert html.count("<") == 2 and html.startswith("<p>") and "javascript:" in html and "⟨U+202E⟩" in html
    assert markdown_text("www.h.x a@b.c") == "www\\.h.x a\\@b.c"
