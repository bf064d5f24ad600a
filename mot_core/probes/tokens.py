r"""Which tokens of a rationale are typical of its teacher, by a definition that needs no model.

A token is `answer` from the last `\boxed` of the answer on (from the answer's start, where it has none), end token
included. Before, it is `specific` if the n-gram of tokens that ends in it ends nowhere in another teacher's rationale on
the same problem, and `shared` if it does. An n-gram may begin in the prompt, which the teachers of a problem share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mot_core.prompts import render_example
from mot_core.reasoning import Rationale

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mot_core.sft.tokens import Example

CLASSES = ("shared", "specific", "answer")
_BOXED = "\\boxed"

Span = tuple[Sequence[int], int, int]
"""`(token ids, first token that carries loss, first token of the answer)` of an example."""


def token_classes(spans: Mapping[str, Span], ngram: int) -> dict[str, list[str]]:
    """The class of each token that carries loss, by teacher, from the teachers' examples of one problem."""
    ending = {
        name: {_ngram(ids, at, ngram) for at in range(first, answer)} for name, (ids, first, answer) in spans.items()
    }
    classes: dict[str, list[str]] = {}
    for name, (ids, first, answer) in spans.items():
        elsewhere = set[tuple[int, ...]]().union(*(own for other, own in ending.items() if other != name))
        rationale = ["shared" if _ngram(ids, at, ngram) in elsewhere else "specific" for at in range(first, answer)]
        classes[name] = rationale + ["answer"] * (len(ids) - max(first, answer))
    return classes


def _ngram(ids: Sequence[int], at: int, ngram: int) -> tuple[int, ...]:
    return tuple(ids[max(0, at + 1 - ngram) : at + 1])


def span_of(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], example: Example) -> Span:
    """An example's tokens, and where its completion and its answer begin. A token that reaches into the answer is its."""
    assistant = row["messages"][-1]
    rationale = Rationale(assistant["reasoning_content"] or "", assistant["content"])
    prompt, completion = render_example(tokenizer, row["question"], rationale)
    begin = completion.removesuffix(str(tokenizer.eos_token)).rindex(rationale.answer)
    begin += max(0, rationale.answer.rfind(_BOXED))
    before = tokenizer(prompt + completion[:begin], add_special_tokens=False)["input_ids"]
    same = 0
    while same < len(before) and before[same] == example.input_ids[same]:
        same += 1
    return example.input_ids, max(1, example.prompt_length), same
