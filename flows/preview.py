"""`mot preview` on a terminal. Prompts and rationales are printed as text, never as markup, with every control
character visible; a newline is shown as ␊ and breaks the line.

Invariant: the loss mask can be read without colours too: a token that the loss counts stands in ⟦…⟧, any other ends
with |. Blanks inside tokens are shown as ␣, so that a line's end hides none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mot_core.preview import ExamplePreview, Preview, PromptPreview, TokenPreview
from mot_core.reasoning import opening_mark
from mot_core.text import visible

TITLE = "bold"
# Neighbouring tokens differ in shade, so that one sees where they meet.
COUNTED, UNCOUNTED = ("black on green", "black on bright_green"), ("default", "bright_black")
FIRST_TOKENS, LAST_TOKENS = 400, 100
"""How many tokens of a prompt or completion are shown from its start and its end; a note says how many lie between."""


def preview_text(preview: Preview) -> Iterator[RenderableType]:
    """What is printed, part by part."""
    yield Text(f"problem {visible(preview.problem.problem_id)}, answer {visible(preview.problem.answer)}", TITLE)
    yield shown(preview.problem.question)
    for prompt in preview.prompts:
        yield Text()
        yield Text(f"teacher {prompt.teacher}: its first prompt", TITLE)
        yield _facts(_prompt_facts(prompt))
        if prompt.prompt is not None:
            yield shown(prompt.prompt)
        if prompt.request is not None:
            yield shown(json.dumps(prompt.request, indent=1, ensure_ascii=False), newlines=False)
    example = preview.example
    yield Text()
    yield Text("student: its first training example", TITLE)
    yield _facts(_example_facts(example))
    yield MaskedTokens(example.tokens)


def shown(text: str, *, newlines: bool = True) -> Text:
    """Untrusted text with nothing hidden in it."""
    return Text(("␊\n" if newlines else "\n").join(visible(line) for line in text.split("\n")))


class MaskedTokens:
    """The tokens of an example: those that the loss counts in colour, or in brackets where there are no colours."""

    def __init__(self, tokens: Sequence[TokenPreview]) -> None:
        self.tokens = tokens

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        coloured = console.color_system is not None and not console.no_color
        parts = [[token for token in self.tokens if token.counts == counts] for counts in (False, True)]
        text = Text()
        for part in parts:
            _append(text, part[:FIRST_TOKENS], coloured)
            hidden = len(part) - FIRST_TOKENS - LAST_TOKENS
            if hidden > 0:
                text.append(
                    f"\n… {hidden:,} tokens, {'all' if part[0].counts else 'none'} of them counted …\n", "italic"
                )
            _append(text, part[max(FIRST_TOKENS, len(part) - LAST_TOKENS) :], coloured)
        yield text


def _append(text: Text, tokens: Sequence[TokenPreview], coloured: bool) -> None:
    for index, token in enumerate(tokens):
        written = shown(token.text).plain.replace(" ", "␣")
        if coloured:
            text.append(written, (COUNTED if token.counts else UNCOUNTED)[index % 2])
        else:
            text.append(f"⟦{written}⟧" if token.counts else f"{written}|")


def _prompt_facts(prompt: PromptPreview) -> dict[str, str]:
    own = ", a part of your own: it may ask otherwise" if ":" in prompt.completer else ""
    facts = {
        "completer": visible(prompt.completer) + own,
        "system": "none" if prompt.system is None else visible(prompt.system),
        "template_kwargs": json.dumps(dict(prompt.template_kwargs)) if prompt.template_kwargs else "none",
    }
    if prompt.rows is not None:
        return {**facts, "asked": f"nothing: its rationales lie in {visible(prompt.rows)}"}
    if prompt.request is not None:
        return {**facts, "asked": "this request, and a seed; the endpoint renders the prompt itself"}
    mark = opening_mark(prompt.prompt or "")
    opening = f"yes, with {mark}" if mark else "no"
    return {**facts, "tokens": f"{prompt.num_tokens:,}", "prompt opens the reasoning": opening}


def _example_facts(example: ExamplePreview) -> dict[str, str]:
    counted = sum(token.counts for token in example.tokens)
    whose = f"{example.teacher} on {visible(example.problem_id)}"
    made_up = f"no rationale is published yet: this one is made up to show the form ({visible(example.problem_id)})"
    limit = "fits" if example.fits else "TOO LONG: raise training.max_example_tokens, nothing is cut"
    return {
        "rationale": made_up if example.made_up else whose,
        "tokens": f"{len(example.tokens):,} of at most {example.max_example_tokens:,}: {limit}",
        "loss": f"{counted:,} tokens count, in ⟦…⟧ or in colour; the prompt's {len(example.tokens) - counted:,} do not",
    }


def _facts(facts: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(Text(name, "dim"), Text(value, overflow="fold"))
    return table
