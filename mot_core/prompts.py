"""From text to a model's own form and back: chat rendering, and the reasoning format.

A completion is `<think>reasoning</think>answer`. Invariant: rendering a rationale and parsing it gives the
rationale back; an unclosed `<think>` is truncated reasoning and never holds an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mot_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Rationale:
    """What a completion says: its reasoning, its answer text, and whether the reasoning was closed."""

    reasoning: str
    answer: str
    closed: bool = True


def parse_completion(text: str) -> Rationale:
    """Split a completion at its think marks; text without marks is all answer."""
    thought, closed_mark, answer = text.rpartition(THINK_CLOSE)
    if THINK_OPEN in answer:  # opened, perhaps again, and never closed
        return Rationale(text.partition(THINK_OPEN)[2], "", closed=False)
    if not closed_mark:
        return Rationale("", text)
    head, opened, reasoning = thought.partition(THINK_OPEN)
    if not opened or THINK_CLOSE in head:
        # A prompt that ends in <think> leaves only the closing mark in the completion.
        return Rationale(thought, answer)
    return Rationale(reasoning, answer if not head.strip() else head + answer)


def user_messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def assistant_message(rationale: Rationale) -> dict[str, str]:
    return {"role": "assistant", "reasoning_content": rationale.reasoning, "content": rationale.answer}


def require_chat_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise `ModelError` if a tokenizer cannot render a chat."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{where}: its tokenizer has no chat template; expected one that renders user and assistant messages; "
            "save one with the tokenizer (tokenizer.chat_template = …; tokenizer.save_pretrained(dir))"
        )


def render_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The text that a model continues."""
    text: Any = tokenizer.apply_chat_template(user_messages(question), tokenize=False, add_generation_prompt=True)
    return str(text)


def render_example(tokenizer: PreTrainedTokenizerBase, question: str, rationale: Rationale) -> tuple[str, str]:
    """`(prompt, completion)` texts of a training example, in the tokenizer's own template.

    Raises:
        ModelError: the template drops or moves the reasoning, or the example does not start with its prompt.
    """
    prompt = render_prompt(tokenizer, question)
    whole = str(tokenizer.apply_chat_template([*user_messages(question), assistant_message(rationale)], tokenize=False))
    if not whole.startswith(prompt):
        raise ModelError(
            f"the chat template does not begin an example with its own prompt: expected {prompt[-80:]!r} at the start, "
            f"got {whole[:80]!r}; the loss mask would be wrong"
        )
    completion = whole[len(prompt) :]
    end = str(tokenizer.eos_token)
    if end not in completion:
        raise ModelError(f"the chat template ends no completion with the end token {end!r}: got {completion[-80:]!r}")
    completion = completion[: completion.rindex(end) + len(end)]
    if parse_completion(completion.removesuffix(end)) != rationale:
        raise ModelError(
            f"the chat template does not keep the rationale: expected {rationale!r}, "
            f"rendering and parsing gave {parse_completion(completion.removesuffix(end))!r}"
        )
    return prompt, completion
