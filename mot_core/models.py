"""Loading and saving models: safetensors only, never remote code. Imported in workers only (torch)."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mot_core.architectures import active_share
from mot_core.errors import ModelError
from mot_core.model_files import check_model_files
from mot_core.prompts import require_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Of a hub repository: what a model or an adapter is made of. Text files and *.model are tokenizers'.
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


def load_tokenizer(locator: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer that has a chat template, an end token and a pad token of its own."""
    _check_local(locator)
    with _explained(locator):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            locator, revision=revision, trust_remote_code=False
        )
    require_chat_template(tokenizer, f"model {locator}")
    if tokenizer.eos_token is None:
        raise ModelError(f"model {locator}: its tokenizer has no end token; generation could not stop")
    return tokenizer


def load_model(
    locator: str, revision: str | None, device: str, dtype: torch.dtype = torch.float32, *, attention: str = "sdpa",
    quantization: str | None = None,
) -> PreTrainedModel:  # fmt: skip
    """A causal language model in `dtype` on a device, in evaluation mode; its linear layers in 4 bits with `nf4`."""
    _check_local(locator)
    how: dict[str, Any] = {}
    if quantization is not None:
        how = {"quantization_config": _four_bits(quantization, dtype), "device_map": {"": device}}
    with _explained(locator), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_pretrained(
            locator, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            attn_implementation=attention, **how,
        )  # fmt: skip
    model.config.use_cache = True
    # Sampling belongs to the spec; what a model's own generation config says about it must not reach saved students.
    for field in ("temperature", "top_p", "top_k"):
        setattr(model.generation_config, field, None)
    placed: PreTrainedModel = model if quantization is not None else model.to(torch.device(device))
    placed.eval()
    return placed


def _four_bits(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def local_copy(locator: str, revision: str | None) -> Path:
    """The directory of a model: its own, or that of a hub model in the local cache."""
    if Path(locator).is_dir():
        _check_local(locator)
        return Path(locator)
    from huggingface_hub import snapshot_download

    with _explained(locator):
        return Path(snapshot_download(locator, revision=revision, allow_patterns=list(MODEL_FILES)))


def _check_local(locator: str) -> None:
    """Refuse a folder with a pickle also here, since what is loaded now may have come after a spec was checked."""
    if Path(locator).is_dir():
        check_model_files(Path(locator), f"model {locator}")


def save_student(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """A directory that `from_pretrained` loads: weights as safetensors, config, generation config, tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextlib.contextmanager
def _explained(locator: str) -> Any:
    try:
        yield
    except ImportError as error:  # what a setting asks for (flash attention, bitsandbytes) is not installed
        raise ModelError(
            f"model {locator}: cannot be loaded as asked: {error}; install what is missing, or change training.attention "
            "or training.lora.quantization"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {locator}: cannot be loaded: {error}; expected a directory with config.json, tokenizer and "
            "*.safetensors, or a hub id that this machine can reach"
        ) from error


def active_parameters(model: PreTrainedModel) -> int:
    """What a token passes through; of a dense model all parameters, adapters included."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return round(active_share(model.config.to_dict()) * total)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills the ends of rows: the tokenizer's own padding token, or its end token where it has none."""
    found: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found)
