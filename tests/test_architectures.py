"""Known models: totals as published, siblings, and where a config.json is looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mot_core.architectures import Architecture, architecture_of, known_architecture
from mot_core.errors import ModelError
from mot_core.sft.memory import Sizes
from tests.pico_hub import write_pico_of

# Billions of parameters as the models' cards give them, or as the hub counts their safetensors: (all, active).
PUBLISHED = {
    "Qwen/Qwen3-0.6B": (0.596, 0.596), "Qwen/Qwen3-1.7B": (1.72, 1.72), "Qwen/Qwen3-4B": (4.02, 4.02),
    "Qwen/Qwen3-8B": (8.19, 8.19), "Qwen/Qwen3-14B": (14.77, 14.77), "Qwen/Qwen3-32B": (32.76, 32.76),
    "Qwen/Qwen3-30B-A3B": (30.5, 3.34), "Qwen/Qwen3-235B-A22B": (235.1, 22.2), "deepseek-ai/DeepSeek-R1": (671.0, 37.5),
    "Qwen/QwQ-32B": (32.76, 32.76), "Qwen/Qwen2.5-0.5B": (0.494, 0.494), "Qwen/Qwen2.5-1.5B-Instruct": (1.54, 1.54),
    "Qwen/Qwen2.5-3B": (3.09, 3.09), "Qwen/Qwen2.5-7B-Instruct": (7.62, 7.62), "Qwen/Qwen2.5-14B": (14.77, 14.77),
    "Qwen/Qwen2.5-32B": (32.76, 32.76), "Qwen/Qwen2.5-72B": (72.71, 72.71), "meta-llama/Llama-3.2-1B": (1.236, 1.236),
    "meta-llama/Llama-3.2-3B-Instruct": (3.213, 3.213), "meta-llama/Llama-3.1-8B": (8.03, 8.03),
    "meta-llama/Meta-Llama-3-8B-Instruct": (8.03, 8.03), "meta-llama/Llama-3.3-70B-Instruct": (70.55, 70.55),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.1345, 0.1345), "HuggingFaceTB/SmolLM2-360M": (0.3618, 0.3618),
    "HuggingFaceTB/SmolLM2-1.7B": (1.711, 1.711),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_as_published(model: str) -> None:
    found = known_architecture(model)
    assert found is not None
    total, active = (1e9 * billions for billions in PUBLISHED[model])
    assert found.parameters == pytest.approx(total, rel=0.01)
    assert found.active == pytest.approx(active, rel=0.01)
    if found.is_dense:
        assert found.parameters == found.active == Sizes.of(found.config).total
        assert found.outside == Sizes.of(found.config).outside


def test_the_cache_and_the_bytes_by_hand() -> None:
    small, large, r1 = map(known_architecture, ("Qwen/Qwen3-14B", "Qwen/Qwen3-14B-FP8", "deepseek-ai/DeepSeek-R1"))
    assert small is not None and large is not None and r1 is not None
    assert small.cache_values == 2 * 40 * 8 * 128
    assert r1.cache_values == 61 * (512 + 64), "latent attention keeps 576 numbers a layer"
    assert small.weight_bytes() == 2 * small.parameters
    assert small.weight_bytes(4.0) == 4 * small.parameters
    assert large.parameters == small.parameters
    assert large.weight_bytes() == small.weight_bytes(quantization="fp8") == small.parameters + small.outside
    assert r1.stored_bytes == 1.0


def test_siblings_share_the_shape_and_say_what_differs() -> None:
    def context(model: str) -> int | None:
        found = known_architecture(model)
        return found.context if found is not None else None

    assert context("Qwen/Qwen3-4B") == 40_960
    assert context("Qwen/Qwen3-4B-Base") == 32_768
    assert context("Qwen/Qwen3-4B-Instruct-2507-FP8") == 262_144
    assert context("models/smollm2-135m-instruct") == 8192, "a directory that is not here, called like a known model"
    assert context("Qwen/Qwen3-4B-Embedding") is None
    awq = known_architecture("Qwen/Qwen2.5-7B-Instruct-AWQ")
    assert awq is not None and awq.stored_bytes == pytest.approx(0.5156, abs=1e-3)


def test_where_a_config_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "model_type": "llama", "vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16,
        "num_attention_heads": 2, "torch_dtype": "float16",
    }  # fmt: skip
    (tmp_path / "mine").mkdir()
    with pytest.raises(ModelError, match="student: .*mine has no config.json"):
        architecture_of(str(tmp_path / "mine"), None, "student", ask_hub=False)
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    found = architecture_of(str(tmp_path / "mine"), None, "student", ask_hub=False)
    assert found.parameters == 2 * 100 * 8 + 8 + 2 * (4 * 64 + 3 * 128 + 16) and found.stored_bytes == 2.0
    # The hub's local cache goes before the table.
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen3-4B" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    refs = tmp_path / "hub" / "models--Qwen--Qwen3-4B" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = architecture_of("Qwen/Qwen3-4B", None, "student", ask_hub=False)
    assert cached.source == "hub cache (Qwen/Qwen3-4B)" and cached.parameters == found.parameters
    with pytest.raises(ModelError, match=r"teachers.ann: nothing is known of model 'own/er': .* give a directory"):
        architecture_of("own/er", None, "teachers.ann", ask_hub=True)  # tests are offline: the hub does not answer
    with pytest.raises(ModelError, match="student: .*running-totl"):
        architecture_of("lab:running-totl", None, "student", ask_hub=False)


def test_a_config_that_is_no_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="has no 'num_hidden_layers'; expected a decoder"):
        Architecture.of_config({"model_type": "t5", "hidden_size": 8}, "here")


def test_what_a_token_passes_through(tmp_path: Path) -> None:
    from mot_core.models import active_parameters, load_model

    for hub_id, unused in (("Qwen/Qwen3-235B-A22B-FP8", 2 * (4 - 2) * 3 * 32 * 16), ("Qwen/Qwen3-4B", 0)):
        model = load_model(str(write_pico_of(tmp_path / hub_id, hub_id)), None, "cpu")
        assert active_parameters(model) == sum(parameter.numel() for parameter in model.parameters()) - unused
