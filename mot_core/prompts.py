"""From a question and a rationale to a model's own text: chat rendering in its tokenizer's template.

Invariant: an example that is rendered parses back to its rationale; one that would not is refused, never changed.
Text of a teacher is untrusted: what a tokenizer would read as a control token of its own is refused too. The
format itself is `mot_core.reasoning`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mot_core.errors import ModelError
from mot_core.reasoning import (
    Rationale,
    canonical_text,
    fault_of,
    parse_completion,
    thinking_marks,
    with_opening_mark,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
TemplateKwargs = Mapping[str, bool | int | float | str]

_PROBE = Rationale("2+2=4", "4")
_REMEDY = (
    "give the student a template that writes the reasoning (message.reasoning_content, or <think> in the content) and "
    "ends with the end token: tokenizer.chat_template = …; tokenizer.save_pretrained(dir)"
)


def user_messages(question: str, system: str | None = None) -> list[Message]:
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": question}]


def asked_question(prompt: str | None, question: str) -> str:
    """What is asked with a benchmark's prompt, which has `{question}` in it; without a prompt the bare question."""
    return question if prompt is None else prompt.replace("{question}", question)


def assistant_message(rationale: Rationale) -> Message:
    return {"role": "assistant", "reasoning_content": rationale.reasoning, "content": rationale.answer}


def require_chat_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise `ModelError` if a tokenizer cannot render a chat."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{where}: its tokenizer has no chat template; expected one that renders user and assistant messages; "
            "save one with the tokenizer (tokenizer.chat_template = …; tokenizer.save_pretrained(dir))"
        )


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, *, system: str | None = None,
    template_kwargs: TemplateKwargs | None = None,
) -> str:  # fmt: skip
    """The text that a model continues.

    Raises:
        ModelError: a template that fails, or an argument that it never reads.
    """
    return _render(tokenizer, user_messages(question, system), template_kwargs or {}, add_generation_prompt=True)


def render_example(
    tokenizer: PreTrainedTokenizerBase, question: str, rationale: Rationale, *, system: str | None = None,
    template_kwargs: TemplateKwargs | None = None,
) -> tuple[str, str]:  # fmt: skip
    """`(prompt, completion)` texts of a training example, in the tokenizer's own template.

    The reasoning goes in as the message's `reasoning_content`; where the template does not keep that, inside the
    content (`canonical_text`).

    Raises:
        ModelError: the rationale cannot be rendered, or the template drops or moves the reasoning, or the example
            does not start with its prompt.
    """
    fault = _fault(tokenizer, question, rationale)
    if fault is not None:
        raise ModelError(f"the rationale cannot be rendered: {fault}")
    return _rendered(tokenizer, question, rationale, system, template_kwargs)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, question: str, rationale: Rationale, system: str | None = None,
    template_kwargs: TemplateKwargs | None = None,
) -> tuple[str, str]:  # fmt: skip
    """The example of a rationale whose texts are without a fault."""
    asked, settings = user_messages(question, system), template_kwargs or {}
    prompt = _render(tokenizer, asked, settings, add_generation_prompt=True)
    inline = {"role": "assistant", "content": canonical_text(rationale)}
    faults = []
    for message in (assistant_message(rationale), inline):
        try:
            whole = _render(tokenizer, [*asked, message], settings, add_generation_prompt=False)
            return prompt, _completion(tokenizer, prompt, whole, rationale)
        except ModelError as error:
            faults.append(str(error))
    # Both forms often fail alike.
    second = f"; with the reasoning inside the content: {faults[1]}" if faults[1] != faults[0] else ""
    raise ModelError(f"{faults[0]}{second}; {_REMEDY}")


def check_renderable(tokenizer: PreTrainedTokenizerBase, question: str, rationale: Rationale) -> str | None:
    """Why a rationale cannot become a training example of a student; None if it can.

    Raises:
        ModelError: the template cannot hold any rationale, so the fault is not this one's.
    """
    if rationale.ended == "empty":
        return "it holds no answer"
    fault = _fault(tokenizer, question, rationale)
    if fault is not None:
        return fault
    try:
        prompt, completion = _rendered(tokenizer, question, rationale)
    except ModelError as error:
        render_example(tokenizer, "2+2", _PROBE)
        return str(error).removesuffix(f"; {_REMEDY}")
    if tokenizer.unk_token_id is not None:
        ids: list[int] = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
        # Some tokenizers name their end token as the unknown one; the template's own does not count.
        if ids.count(tokenizer.unk_token_id) > (prompt + completion).count(str(tokenizer.unk_token)):
            return "it holds characters that the student's tokenizer cannot write"
    return None


def _fault(tokenizer: PreTrainedTokenizerBase, question: str, rationale: Rationale) -> str | None:
    """What in the texts themselves, whatever the template, would not come back or not mean what it says."""
    fault = fault_of(rationale)
    if fault is not None:
        return fault
    # Tokens such as `<think>` are added, but ordinary.
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    control.update(tokenizer.all_special_tokens)
    for where, text in (("question", question), ("reasoning", rationale.reasoning), ("answer", rationale.answer)):
        token = _first_of(control, text)
        if token is not None:
            return f"its {where} holds the control token {token!r}"
    return None


def _first_of(tokens: set[str], text: str) -> str | None:
    """The token that a text holds first, the longest of those that begin there."""
    found = [token for token in tokens if token in text]
    return min(found, key=lambda token: (text.index(token), -len(token))) if found else None


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], settings: TemplateKwargs, *,
    add_generation_prompt: bool,
) -> str:  # fmt: skip
    _check_settings(tokenizer, settings)
    render: Any = tokenizer.apply_chat_template
    try:
        return str(render(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **settings))
    except Exception as error:  # a template is a program of others: what it raises is not known
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the chat template fails on messages of {roles} with template_kwargs {dict(settings)}: "
            f"{type(error).__name__}: {error}; change system or template_kwargs, or give the tokenizer another template"
        ) from error


def _check_settings(tokenizer: PreTrainedTokenizerBase, settings: TemplateKwargs) -> None:
    if not settings:
        return
    # A setting of one of these names would change the rendering, not the template.
    reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"}
    for name in settings:
        if name in reserved:
            raise ModelError(f"template_kwargs.{name}: belongs to the renderer, not to a chat template; leave it out")
        template = tokenizer.chat_template
        texts = template.values() if isinstance(template, dict) else [str(template)]
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts):
            raise ModelError(
                f"template_kwargs.{name}: the chat template never reads it, so it would change nothing; leave it out, or "
                "look its name up in the template"
            )


def _completion(tokenizer: PreTrainedTokenizerBase, prompt: str, whole: str, rationale: Rationale) -> str:
    """The completion in a rendered example, up to its end token."""
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
    written = with_opening_mark(prompt, completion.removesuffix(end))
    parsed = parse_completion(written)
    if len(thinking_marks(written)) > 2:  # an empty block before the real one would parse back, and be learnt
        raise ModelError(f"the chat template adds a thinking block of its own: got {written[:80]!r}")
    if parsed != rationale:
        raise ModelError(
            f"the chat template does not keep the rationale: expected {rationale!r}, rendering and parsing gave {parsed!r}"
        )
    return completion
