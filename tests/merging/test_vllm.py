"""A merged model loads in vLLM, sharded too, and gives transformers' log-probabilities.

Tolerance: 2e-3 nats a token in float32 on a CPU; the two compute attention and norms in another order.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from mot_core.merging.plan import inspect
from mot_core.merging.stage import MergeSettings, merge_models
from mot_core.models import load_model

VLLM = os.environ.get("MOT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(not VLLM, reason="needs MOT_VLLM_PYTHON, an interpreter that has vLLM"),
]
TOLERANCE = 2e-3
TOKENS = list(range(5, 37))
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt
engine = LLM(
    sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, distributed_executor_backend="uni",
    skip_tokenizer_init=True,
)
tokens = json.loads(sys.argv[2])
(answer,) = engine.generate(
    [TokensPrompt(prompt_token_ids=tokens)], SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
)
found = [entry[token].logprob for token, entry in zip(tokens[1:], answer.prompt_logprobs[1:])]
print("FOUND " + json.dumps(found))
"""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "true",
}  # fmt: skip


def write_model(directory: Path, seed: int) -> None:
    """A random model whose heads are as wide as vLLM's kernels for a CPU ask for."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=128, hidden_size=64, num_hidden_layers=2, intermediate_size=96, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=256, initializer_range=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    Qwen3ForCausalLM(config).save_pretrained(directory)


@pytest.mark.parametrize(("rule", "max_shard_bytes"), [("mean", 1 << 40), ("outer", 100_000)])
def test_vllm_agrees_with_transformers(tmp_path: Path, rule: str, max_shard_bytes: int) -> None:
    for seed, name in enumerate(("student", "ann", "bob"), 1):
        write_model(tmp_path / name, seed)
    out = tmp_path / "out"
    out.mkdir()
    branches = [inspect(name, tmp_path / name) for name in ("ann", "bob")]
    settings = MergeSettings(max_shard_bytes=max_shard_bytes)
    merge_models(inspect("start", tmp_path / "student"), branches, [0.5, 0.5], rule, out, settings=settings)
    assert (len(list(out.glob("*.safetensors"))) > 1) == (max_shard_bytes < 1 << 40)
    model = load_model(str(out), None, "cpu")
    with torch.no_grad():
        log_probabilities = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    expected = [float(log_probabilities[place, token]) for place, token in enumerate(TOKENS[1:])]
    done = subprocess.run(
        [str(VLLM), "-c", SCRIPT, str(out), json.dumps(TOKENS)], capture_output=True, text=True, timeout=300,
        env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    assert line is not None, done.stderr[-3000:]
    assert json.loads(line.removeprefix("FOUND ")) == pytest.approx(expected, abs=TOLERANCE)
