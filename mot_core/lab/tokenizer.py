r"""The laboratory's tokenizer: a token a character, single tokens for the chat and the reasoning format.

Invariant: `decode(encode(text)) == text` for printable ASCII and newlines, and the chat template emits no
character of its own but the format's tokens. `<think>`, `</think>` and `\boxed{` are ordinary tokens, so
decoding with `skip_special_tokens=True` keeps what the grader reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unknown|>"
THINK_OPEN, THINK_CLOSE, BOX_OPEN = "<think>", "</think>", "\\boxed{"
CONTROL_TOKENS: tuple[str, ...] = (PAD, END, USER, ASSISTANT, UNKNOWN)
FORMAT_TOKENS: tuple[str, ...] = (THINK_OPEN, THINK_CLOSE, BOX_OPEN)
ALPHABET: str = "".join(chr(code) for code in range(32, 127)) + "\n"
MAX_TOKENS = 256

# The generation marks enclose what the assistant writes, `<think>` to `<|end|>`, and nothing else.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<|user|>' + message['content'] + '<|end|>' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}"
    "{{- '<think>' + (message['reasoning_content'] or '') + '</think>' + message['content'] + '<|end|>' -}}"
    "{%- endgeneration -%}"
    "{%- else -%}"
    "{{- raise_exception('the laboratory chat has user and assistant messages only, got role '"
    " + message['role'] + '; put the instruction into the user message') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template; its vocabulary: control tokens, the format, the alphabet."""
    # Imported here: problem families and styles are used where torch and transformers are not loaded.
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [*CONTROL_TOKENS, *FORMAT_TOKENS, *ALPHABET]
    backend = Tokenizer(models.WordLevel({symbol: index for index, symbol in enumerate(symbols)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    # Without Fuse the decoder would set a blank between two tokens.
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in FORMAT_TOKENS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def render_prompt(question: str) -> str:
    """What a model is prompted with, the chat template's text for one user message."""
    return f"{USER}{question}{END}{ASSISTANT}"


def render_completion(rationale: str, answer: str) -> str:
    """What a model shall write: the rationale in think tags, the boxed answer, the end token."""
    return f"{THINK_OPEN}{rationale}{THINK_CLOSE}{BOX_OPEN}{answer}}}{END}"
