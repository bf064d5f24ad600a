"""`mot merge` by itself: recipes, mergekit's YAML, what is carried over, what is warned about, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mot_core.errors import MergeError, SpecError
from mot_core.merging.alone import Merged, merge
from mot_core.merging.recipe import load_recipe
from tests.merging.models import load_all, write

LAYERS = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, value in (("base", 0.0), ("ann", 1.0), ("bob", 3.0)):
        tensors = {key: torch.full((2, 2), value) for key in LAYERS}
        write(tmp_path / name, {**tensors, "model.norm.weight": torch.full((2,), value)}, num_hidden_layers=3)
        (tmp_path / name / "generation_config.json").write_text('{"temperature": 0.5}')
    return tmp_path


def run(models: Path, text: str | dict[str, Any], out: str = "out") -> Merged:
    path = models / "recipe.yaml"
    path.write_text((text if isinstance(text, str) else yaml.safe_dump(text)).replace("@", f"{models}/"))
    return merge(*_ordered(path, models / out))


def _ordered(path: Path, out: Path) -> tuple[Any, ...]:
    recipe, by_tensor = load_recipe(path)
    return recipe, out, by_tensor


def values(out: Path) -> list[float]:
    """Of the layers in order, then of the norm."""
    found = load_all(out)
    return [float(found[key].reshape(-1)[0]) for key in [*LAYERS, "model.norm.weight"]]


def test_a_bare_list_of_models_is_their_mean(models: Path) -> None:
    done = run(models, 'branches: ["@ann", "@bob"]')
    assert values(models / "out") == [2.0] * 4
    assert sorted(path.name for path in (models / "out").iterdir()) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "merge.json", "model.safetensors",
        "tokenizer.json",
    ]  # fmt: skip
    assert done.num_tensors == 4 and done.directory == models / "out"
    assert done.num_bytes == (models / "out" / "model.safetensors").stat().st_size
    assert list(models.glob(".out*")) == []


def test_weights_parameters_and_base(models: Path) -> None:
    recipe = {
        "rule": "task_arithmetic", "base": "@base", "parameters": {"scale": 0.5}, "dtype": "bfloat16",
        "branches": [{"name": "a", "model": "@ann", "weight": 2.0}, {"name": "b", "model": "@bob", "weight": 1.0}],
    }  # fmt: skip
    done = run(models, recipe)
    assert values(models / "out") == [2.5] * 4
    assert load_file(models / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert json.loads((models / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    # Updates 1 and 3 everywhere: one direction.
    assert done.diagnostics["agreement"]["mean_cosine"] == pytest.approx(1.0)
    record = json.loads((models / "out" / "merge.json").read_text())
    assert record["recipe"]["branches"][0] == {"name": "a", "model": f"{models}/ann", "revision": None, "weight": 2.0}
    assert record["diagnostics"]["agreement"] == done.diagnostics["agreement"]


def test_the_card_says_where_it_came_from(models: Path) -> None:
    run(models, {"rule": "ties", "base": "@base", "branches": ["@ann", "@bob"], "parameters": {"density": 0.5}})
    card = (models / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "tags": ["merge", "mot"]}
    assert "Rule `ties`: trim, elect sign, disjoint mean of the updates (TIES, arXiv 2306.01708)." in card
    assert "density = 0.5" in card and "| ann | `ann` | 0.5 |" in card and str(models) not in card


def test_the_card_lists_hub_ids_for_the_hub() -> None:
    from mot_core.merging.card import Lineage, card_text

    branches = [Lineage("x", "owner/x", 0.5), Lineage("y", "owner/y", 0.5)]
    card = card_text("mean", "Σ", {}, Lineage("base", "owner/base"), branches, {"mean_cosine": 0.5})
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["owner/base", "owner/x", "owner/y"] and front["base_model_relation"] == "merge"
    assert "| mean_cosine | 0.5000 |" in card


def test_a_missing_template_and_a_small_tokenizer_are_warnings(models: Path) -> None:
    for name in ("ann", "bob"):
        (models / name / "chat_template.jinja").unlink()
        write_embedding(models / name, 40)
    done = run(models, 'branches: ["@ann", "@bob"]')
    assert len(done.warnings) == 2
    assert "its tokenizer has only 2 tokens for 40 rows of the embedding" in done.warnings[0]
    assert "has no chat template" in done.warnings[1]
    assert json.loads((models / "out" / "merge.json").read_text())["warnings"] == done.warnings


def write_embedding(directory: Path, rows: int) -> None:
    from safetensors.torch import save_file

    path = directory / "model.safetensors"
    save_file({**load_file(path), "model.embed_tokens.weight": torch.zeros(rows, 2)}, path)


def test_a_model_without_a_tokenizer_is_merged_with_a_warning(models: Path) -> None:
    for name in ("ann", "bob"):
        (models / name / "tokenizer.json").unlink()
    assert (
        "has no tokenizer.json: the merge is written without one"
        in run(models, 'branches: ["@ann", "@bob"]').warnings[0]
    )


def test_templates_may_differ_and_vocabularies_may_not(models: Path) -> None:
    (models / "bob" / "chat_template.jinja").write_text("another")
    done = run(models, 'branches: ["@ann", "@bob"]')
    assert done.warnings == [
        "branch 'bob': chat_template.jinja differs from branch 'ann''s; branch 'ann''s is not replaced by it"
    ]
    (models / "bob" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0, "a": 1}}}))
    with pytest.raises(MergeError, match=r"branch 'bob': tokenizer\.json differs .*: token ids do not mean the same"):
        run(models, 'branches: ["@ann", "@bob"]', "2")
    run(models, 'branches: ["@ann", "@bob"]\ntokenizer: bob', "3")
    assert (models / "3" / "chat_template.jinja").read_text() == "another"
    assert json.loads((models / "3" / "tokenizer.json").read_text())["model"]["vocab"] == {"b": 0, "a": 1}


def test_configs_of_two_versions_are_one(models: Path) -> None:
    def rewrite(name: str, **changes: Any) -> None:
        path = models / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    rewrite("ann", rope_theta=10000, rope_scaling=None, torch_dtype="float32")
    rewrite("bob", rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, dtype="float32", eos_token_id=1)
    assert run(models, 'branches: ["@ann", "@bob"]').warnings == [
        "branch 'bob': config.eos_token_id is 1, branch 'ann' has None; the first one's is kept"
    ]
    rewrite("bob", rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    with pytest.raises(MergeError, match=r"branch 'bob': config\.rope is .*20000\.0.*, branch 'ann' has .*10000\.0"):
        run(models, 'branches: ["@ann", "@bob"]', "2")


def test_a_failure_leaves_nothing(models: Path) -> None:
    (models / "bob" / "model.safetensors").write_bytes((models / "bob" / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(MergeError, match="cut short"):
        run(models, 'branches: ["@ann", "@bob"]')
    assert not (models / "out").exists() and list(models.glob(".out*")) == []


def test_a_directory_that_holds_something_is_not_overwritten(models: Path) -> None:
    (models / "out").mkdir()
    (models / "out" / "mine.txt").write_text("x")
    with pytest.raises(MergeError, match=r"out exists and is not empty; expected a new or an empty directory"):
        run(models, 'branches: ["@ann", "@bob"]')
    assert (models / "out" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("branches: []", r"branches: \[\] is not allowed: Tuple should have at least 1 item"),
        ("rule: mean", "branches: required, but absent"),
        ("branches: [a]\nspeed: fast", r"speed: unknown field \(value 'fast'\); .*allowed: rule, branches, base, "),
        ("branches: [{model: a, weight: 1}, b]", "give every branch a weight, or none"),
        ("branches: [a, b]\ntokenizer: c", r"tokenizer is 'c', expected 'base' or one of \['a', 'b'\]"),
        ("- a", "expected a mapping of spec fields, got list"),
        ("branches: [", "not valid YAML: while parsing"),
        ("branches: [a]\nrule: mean\nrule: ties", "the key 'rule' is given twice"),
        ("merge_method: linear\nmodels: [{model: a, model: b}]", "the key 'model' is given twice"),
        ("branches: [{model: a, weight: .inf}]", r"branches\.0\.weight: inf is not allowed: .*finite"),
    ],
)
def test_wrong_recipes_are_refused(models: Path, text: str, phrase: str) -> None:
    with pytest.raises(SpecError, match=phrase):
        run(models, text)


def test_an_unknown_model_is_refused(models: Path) -> None:
    with pytest.raises(MergeError, match=r"model '\./absent' is no directory here, and no hub id"):
        run(models, "branches: [./absent, ./absent2]")


def test_state_is_carried_by_previous(models: Path) -> None:
    recipe = {"rule": "ema", "parameters": {"decay": 0.5}, "branches": ["@ann"]}
    run(models, recipe, "1")
    run(models, {**recipe, "branches": ["@bob"], "previous": "@1"}, "2")
    assert values(models / "2") == pytest.approx([(0.5 * 1 + 3) / 1.5] * 4)


WEIGHTED = """
base: "@start"
rule: weighted_mean
lora: concatenate
branches: [{{model: "@ann", weight: {}}}, {{model: "@bob", weight: {}}}]
"""


def test_adapters_into_one_adapter(tmp_path: Path) -> None:
    from tests.merging.test_lora import adapter, start_model, update

    start_model(tmp_path)
    adapter(tmp_path / "ann", 2, 3), adapter(tmp_path / "bob", 3, 5)
    done = run(tmp_path, 'base: "@start"\nlora: concatenate\nbranches: ["@ann", "@bob"]')
    assert done.diagnostics == {"rank": 8} and done.num_tensors == 4
    q = "model.layers.0.self_attn.q_proj"
    both = 0.5 * update(tmp_path / "ann", q, 2.0) + 0.5 * update(tmp_path / "bob", q, 2.0)
    torch.testing.assert_close(update(tmp_path / "out", q, 1.0), both, rtol=1e-5, atol=1e-5)
    with pytest.raises(MergeError, match=r"2 branches with weights \[5\.0, -3\.0\]: .* summing to 1, none negative"):
        run(tmp_path, WEIGHTED.format(5.0, -3.0), "2")
    with pytest.raises(MergeError, match=r"weights \[5\.0, 3\.0\]: expected one each, summing to 1"):
        run(tmp_path, WEIGHTED.format(5.0, 3.0), "2")
    assert not (tmp_path / "2").exists()
    with pytest.raises(MergeError, match="joins adapters by a weighted sum; got rule 'ties'"):
        run(tmp_path, 'base: "@start"\nrule: ties\nlora: concatenate\nbranches: ["@ann", "@bob"]', "2")


def test_warnings_and_the_tokenizer_asked_for_hold_for_adapters_too(tmp_path: Path) -> None:
    from tests.merging.test_lora import adapter, start_model

    start_model(tmp_path)
    for seed, name in enumerate(("ann", "bob")):
        adapter(tmp_path / name, seed, 2)
        (tmp_path / name / "config.json").write_bytes((tmp_path / "start" / "config.json").read_bytes())
        (tmp_path / name / "tokenizer.json").write_bytes((tmp_path / "start" / "tokenizer.json").read_bytes())
        (tmp_path / name / "chat_template.jinja").write_text("T")
    (tmp_path / "bob" / "chat_template.jinja").write_text("another")
    text = 'base: "@start"\nlora: concatenate\nbranches: ["@ann", "@bob"]'
    done = run(tmp_path, text)
    assert done.warnings == [
        "branch 'bob': chat_template.jinja differs from branch 'base''s; branch 'base''s is not replaced by it"
    ]
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["warnings"] == done.warnings
    (tmp_path / "bob" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0, "a": 1}}}))
    with pytest.raises(MergeError, match=r"branch 'bob': tokenizer\.json differs .*: token ids do not mean the same"):
        run(tmp_path, text, "2")
    assert len(run(tmp_path, f"{text}\ntokenizer: base", "3").warnings) == 2


# -- mergekit's YAML -----------------------------------------------------------------------------------


def test_linear_normalizes(models: Path) -> None:
    text = """
    merge_method: linear
    models:
      - {model: "@ann", parameters: {weight: 1}}
      - {model: "@bob", parameters: {weight: 3}}
    dtype: float32
    """
    run(models, text)
    assert values(models / "out") == [2.5] * 4
    run(models, text.replace("dtype:", "parameters: {normalize: false}\n    dtype:"), "2")
    assert values(models / "2") == [10.0] * 4


def test_the_base_among_the_models_has_no_update(models: Path) -> None:
    text = """
    merge_method: ties
    base_model: "@base"
    models:
      - model: "@base"
      - {model: "@ann", parameters: {density: 1.0, weight: 0.5}}
      - {model: "@bob", parameters: {density: 1.0, weight: 0.5}}
    parameters: {normalize: false, int8_mask: true, lambda: 2.0}
    """
    run(models, text)
    assert values(models / "out") == [4.0] * 4


def test_values_by_layer_and_filter(models: Path) -> None:
    text = """
    merge_method: task_arithmetic
    base_model: "@base"
    models:
      - {model: "@ann", parameters: {weight: [0.0, 1.0]}}
      - model: "@bob"
        parameters:
          weight:
            - {filter: norm, value: 2.0}
            - {value: 0.0}
    """
    run(models, text)
    # Ann's weight is 0, ½, 1 over the layers, and 0 outside them; bob's is 2 for the norm alone.
    assert values(models / "out") == [0.0, 0.5, 1.0, 6.0]


def test_slerp_in_slices(models: Path) -> None:
    for name, other in (("ann", [[2.0, 0.0], [0.0, 0.0]]), ("bob", [[0.0, 2.0], [0.0, 0.0]])):
        from safetensors.torch import save_file

        path = models / name / "model.safetensors"
        save_file({**load_file(path), **{key: torch.tensor(other) for key in LAYERS}}, path)
    text = """
    merge_method: slerp
    base_model: "@ann"
    slices:
      - sources:
          - {model: "@ann", layer_range: [0, 3]}
          - {model: "@bob", layer_range: [0, 3]}
    parameters: {t: [0, 1]}
    """
    run(models, text)
    found = load_all(models / "out")
    assert [found[key][0].tolist() for key in LAYERS] == [
        [2.0, 0.0], pytest.approx([2**0.5] * 2), [0.0, 2.0]
    ]  # fmt: skip
    run(models, text.replace('base_model: "@ann"', 'base_model: "@bob"').replace("[0, 1]", "1.0"), "2")
    assert load_all(models / "2")[LAYERS[0]][0].tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"merge_method": "passthrough"}, "merge_method 'passthrough' is not read; read are linear, task_arithmetic"),
        ({"modules": {}}, "'modules' is not read"),
        ({"parameters": {"gamma": 0.1}}, "parameter 'gamma' is not read for 'ties'"),
        ({"base_model": None}, "merge_method 'ties' needs base_model"),
        ({"tokenizer_source": "union"}, "tokenizer_source 'union' is not read; expected base or one of the models"),
        ({"parameters": {"rescale": True, "weight": 1}}, "rescale is not read for ties"),
        ({"parameters": {}}, r"parameters\.weight is required by merge_method 'ties'"),
    ],
)
def test_what_would_give_another_model_is_refused(models: Path, change: dict[str, Any], phrase: str) -> None:
    document = {
        "merge_method": "ties", "base_model": "@base", "models": [{"model": "@ann"}, {"model": "@bob"}],
        "parameters": {"weight": 1.0},
    }  # fmt: skip
    with pytest.raises(SpecError, match=phrase):
        run(models, {**document, **change})


def test_stacked_layers_are_refused(models: Path) -> None:
    sources = [{"model": "@ann", "layer_range": [0, 2]}, {"model": "@bob", "layer_range": [0, 2]}]
    document = {
        "merge_method": "slerp",
        "base_model": "@ann",
        "slices": [{"sources": sources}],
        "parameters": {"t": 0.5},
    }
    with pytest.raises(SpecError, match=r"layer_range \[0, 2\] of .*ann is not all of its layers"):
        run(models, document)
    with pytest.raises(SpecError, match="2 slices stack layers"):
        run(models, {**document, "slices": [{"sources": sources}] * 2})


def test_reading_recipes_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, mot_core.merging.recipe, mot_core.merging.mergekit; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
