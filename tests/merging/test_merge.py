"""Merging: means by hand, order that does not matter, refusals with key and shapes, diagnostics by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mot_core.artifacts import Store
from mot_core.errors import MergeError, SpecError
from mot_core.files import sha256_of
from mot_core.merging.diagnostics import MergeDiagnostics, place_of, sums_of
from mot_core.merging.plan import inspect
from mot_core.merging.stage import merge_models
from mot_core.steps import Step
from tests.contexts import publish, run
from tests.pico import write_pico_model

EMBED, NORM = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"


def write_model(directory: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """A directory that looks like a model to the merge: two tensors, a config, a tokenizer, a template."""
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "pico", "hidden_size": 2, **config}))
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (directory / "chat_template.jinja").write_text("T")
    (directory / "manifest.json").write_text("{}")
    return directory


def tensors(embed: list[list[float]], norm: list[float], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {EMBED: torch.tensor(embed, dtype=dtype), NORM: torch.tensor(norm, dtype=dtype)}


START = tensors([[0.0, 0.0], [1.0, 1.0]], [1.0, 1.0])
ANN = tensors([[3.0, 0.0], [1.0, 1.0]], [1.0, 2.0])
BOB = tensors([[1.0, 2.0], [1.0, 5.0]], [1.0, 0.0])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, values in (("start", START), ("ann", ANN), ("bob", BOB)):
        write_model(tmp_path / name, values)
    (tmp_path / "out").mkdir()
    return tmp_path


def merge(models: Path, names: list[str], weights: list[float], rule: str = "mean", out: str = "out") -> dict[str, Any]:
    branches = [inspect(name, models / name) for name in names]
    (models / out).mkdir(exist_ok=True)
    return merge_models(inspect("start", models / "start"), branches, weights, rule, models / out)


def test_the_mean_by_hand(models: Path) -> None:
    merge(models, ["ann", "bob"], [0.5, 0.5])
    merged = load_file(models / "out" / "model.safetensors")
    assert merged[EMBED].tolist() == [[2.0, 1.0], [1.0, 3.0]] and merged[NORM].tolist() == [1.0, 1.0]
    assert merged[EMBED].dtype == torch.float32
    assert sorted(path.name for path in (models / "out").iterdir()) == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_the_weighted_mean_by_hand(models: Path) -> None:
    merge(models, ["ann", "bob"], [0.25, 0.75], "weighted_mean")
    merged = load_file(models / "out" / "model.safetensors")
    assert merged[EMBED].tolist() == [[1.5, 1.5], [1.0, 4.0]] and merged[NORM].tolist() == [1.0, 0.5]


def test_sums_are_exact_where_float32_would_round(models: Path) -> None:
    big, tiny = 2.0**24, 1.0
    for name, value in (("a", big), ("b", tiny), ("c", -big), ("d", 0.0)):
        write_model(models / name, tensors([[value, 0.0], [0.0, 0.0]], [1.0, 1.0]))
    merge(models, ["a", "b", "c", "d"], [0.25] * 4)
    assert load_file(models / "out" / "model.safetensors")[EMBED][0, 0] == 0.25


def test_bfloat16_branches_are_rounded_once(models: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.0078125), ("c", 1.0078125)):
        write_model(models / name, tensors([[value, 0.0], [0.0, 0.0]], [1.0, 1.0], torch.bfloat16))
    merge(models, ["a", "b", "c"], [1 / 3] * 3)
    merged = load_file(models / "out" / "model.safetensors")[EMBED]
    assert merged.dtype == torch.bfloat16 and float(merged[0, 0]) == 1.0078125


def test_one_branch_comes_back_bit_for_bit(models: Path) -> None:
    merge(models, ["ann"], [1.0])
    merged = load_file(models / "out" / "model.safetensors")
    assert all(torch.equal(merged[key], ANN[key]) for key in ANN)


def test_a_rule_of_ones_own(models: Path) -> None:
    merge(models, ["ann", "bob"], [0.5, 0.5], "tests.merging.test_merge:largest")
    assert load_file(models / "out" / "model.safetensors")[EMBED].tolist() == [[3.0, 2.0], [1.0, 5.0]]
    with pytest.raises(SpecError, match="merge rule 'median': 'median' is not known here and no import path"):
        merge(models, ["ann", "bob"], [0.5, 0.5], "median")


def largest(start: torch.Tensor, branches: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    return torch.stack(list(branches)).amax(0)


def merged_step(store: Store, models: Path, names: list[str]) -> str:
    """The SHA-256 of a merge step whose branches are listed in some order."""
    from mot_core.dag import StudentAt, merge_step
    from mot_core.spec import Merge
    from mot_core.steps import ModelRef
    from tests.pico import pico_experiment

    spec = pico_experiment(models, merge=Merge(rule="weighted_mean", weights={"ann": 0.7, "bob": 0.3}).model_dump())
    branches = {
        name: publish(store, Step("branch", {"of": name}), lambda to, name=name: shutil.copytree(models / name, to, dirs_exist_ok=True))
        for name in names
    }  # fmt: skip
    step = merge_step(spec, StudentAt(ModelRef("start", str(models / "student"))), branches, label="m", facts={})
    made = run(store, step.kind, step.spec, step.parents, step.locators)
    return sha256_of(made.path / "model.safetensors")


def test_permuting_branches_with_their_weights_gives_identical_bytes(pico_models: Path, tmp_path: Path) -> None:
    one = merged_step(Store(tmp_path / "1").open(), pico_models, ["ann", "bob"])
    other = merged_step(Store(tmp_path / "2").open(), pico_models, ["bob", "ann"])
    assert one == other
    ann, bob = (load_file(pico_models / name / "model.safetensors") for name in ("ann", "bob"))
    merged = load_file(next((tmp_path / "1" / "objects").glob("*/diagnostics.json")).parent / "model.safetensors")
    for key in merged:
        by_hand = (0.7 * ann[key].double() + 0.3 * bob[key].double()).float()
        # One unit in the last place: where a sum falls between two float32, a fused multiply-add decides.
        torch.testing.assert_close(merged[key], by_hand, rtol=2**-23, atol=0)


def refused(models: Path, phrase: str, names: list[str] | None = None, weights: list[float] | None = None) -> None:
    with pytest.raises(MergeError, match=phrase):
        merge(models, names or ["ann", "bob"], weights or [0.5, 0.5])
    assert list((models / "out").iterdir()) == []


def replace(models: Path, name: str, values: dict[str, torch.Tensor], **config: Any) -> None:
    shutil.rmtree(models / name)
    write_model(models / name, values, **config)


def test_another_shape_is_refused_with_both(models: Path) -> None:
    replace(models, "bob", {**BOB, EMBED: torch.zeros(3, 2)})
    refused(
        models,
        r"branch 'bob': model\.embed_tokens\.weight is \(3, 2\), its start has \(2, 2\); was the tokenizer resized\?",
    )


def test_missing_and_extra_keys_are_refused_by_name(models: Path) -> None:
    replace(models, "bob", {EMBED: BOB[EMBED], "lm_head.weight": torch.zeros(1)})
    refused(models, rf"branch 'bob': .*missing \['{NORM}'\], extra \['lm_head\.weight'\] \(1 and 1 in all\)")


def test_another_config_is_refused_by_field(models: Path) -> None:
    replace(models, "bob", BOB, rope_theta=10_000, transformers_version="9")
    refused(models, r"branch 'bob': config\.rope_theta is 10000, branch 'ann' has None")


def test_config_noise_is_no_difference(models: Path) -> None:
    replace(models, "bob", BOB, transformers_version="9", dtype="float32", use_cache=True)
    merge(models, ["ann", "bob"], [0.5, 0.5])


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_another_tokenizer_or_template_is_refused(models: Path, file: str) -> None:
    (models / "bob" / file).write_text('{"model": {"vocab": {"b": 0}}}')
    refused(models, rf"branch 'bob': {file} differs from branch 'ann''s; token ids would not mean the same")


def test_a_tokenizer_file_may_be_laid_out_otherwise(models: Path) -> None:
    (models / "bob" / "tokenizer.json").write_text('{\n "padding": {"x": 1}, "model":\n{"vocab": {"a": 0}}}')
    merge(models, ["ann", "bob"], [0.5, 0.5])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_key(models: Path, bad: float) -> None:
    replace(models, "bob", {**BOB, NORM: torch.tensor([1.0, bad])})
    refused(models, rf"branch 'bob': {NORM} holds NaN or infinity; expected finite weights; nothing was merged")


def test_no_weights_file_is_refused(models: Path) -> None:
    (models / "bob" / "model.safetensors").unlink()
    with pytest.raises(MergeError, match=r"branch 'bob': no model\.safetensors or model\.safetensors\.index\.json in"):
        inspect("bob", models / "bob")


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.0], [0.5, 0.25, 0.25]])
def test_weights_must_be_one_each_and_sum_to_one(models: Path, weights: list[float]) -> None:
    refused(models, r"2 branches with weights .*: expected one each, summing to 1", weights=weights)


def test_a_sharded_model_merges_as_a_whole_one(models: Path) -> None:
    shard = models / "bob"
    (shard / "model.safetensors").unlink()
    save_file({EMBED: BOB[EMBED]}, shard / "model-00001-of-00002.safetensors")
    save_file({NORM: BOB[NORM]}, shard / "model-00002-of-00002.safetensors")
    weight_map = {EMBED: "model-00001-of-00002.safetensors", NORM: "model-00002-of-00002.safetensors"}
    (shard / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    merge(models, ["bob", "ann"], [0.5, 0.5])
    assert load_file(models / "out" / "model.safetensors")[EMBED].tolist() == [[2.0, 1.0], [1.0, 3.0]]
    assert not (models / "out" / "model.safetensors.index.json").exists()


def test_diagnostics_by_hand(models: Path) -> None:
    found = merge(models, ["ann", "bob"], [0.5, 0.5])
    # Updates: ann (3, 0, 0, 0 | 0, 1), bob (1, 2, 0, 4 | 0, -1), merged (2, 1, 0, 2 | 0, 0).
    cosine = (3.0 - 1.0) / (10.0 * 22.0) ** 0.5
    assert found["pairwise_cosine"] == [{"a": "ann", "b": "bob", "cosine": pytest.approx(cosine)}]
    assert found["agreement"] == {
        "mean_cosine": pytest.approx(cosine), "min_cosine": pytest.approx(cosine),
        # Of the four coordinates that any branch moved, both moved one in the same direction.
        "sign_agreement": 1 / 4, "energy_kept": pytest.approx(9.0 / 16.0),
    }  # fmt: skip
    drift = {(row["branch"], row["layer"], row["kind"]): row for row in found["drift"]}
    assert drift["bob", "outside layers", "embedding"]["drift"] == pytest.approx(21.0**0.5)
    assert drift["bob", "outside layers", "embedding"]["relative_drift"] == pytest.approx((21.0 / 2.0) ** 0.5)
    assert drift["ann", "layer 0", "norm"]["drift"] == 1.0
    assert drift["merged", "layer 0", "norm"]["drift"] == 0.0


def test_branches_that_did_not_move_have_neutral_diagnostics() -> None:
    diagnostics = MergeDiagnostics(["a", "b"])
    zero = torch.zeros(2, dtype=torch.float64)
    diagnostics.take("x", sums_of(zero, torch.stack([zero, zero])))
    assert diagnostics.summary()["agreement"] == {
        "mean_cosine": 0.0, "min_cosine": 0.0, "sign_agreement": 1.0, "energy_kept": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("model.layers.12.self_attn.q_proj.weight", ("layer 12", "attention")),
        ("model.layers.0.mlp.up_proj.weight", ("layer 0", "mlp")),
        ("model.norm.weight", ("outside layers", "norm")),
        ("lm_head.weight", ("outside layers", "head")),
        ("model.embed_tokens.weight", ("outside layers", "embedding")),
    ],
)
def test_places(key: str, place: tuple[str, str]) -> None:
    assert place_of(key) == place


def test_a_merged_student_loads(pico_models: Path, tmp_path: Path) -> None:
    from mot_core.models import load_model, load_tokenizer

    branches = [inspect(name, pico_models / name) for name in ("ann", "bob")]
    merge_models(inspect("start", pico_models / "student"), branches, [0.5, 0.5], "mean", tmp_path)
    model = load_model(str(tmp_path), None, "cpu")
    assert load_tokenizer(str(tmp_path)).chat_template
    ann, bob = (load_file(pico_models / name / "model.safetensors") for name in ("ann", "bob"))
    torch.testing.assert_close(model.state_dict()[EMBED], (ann[EMBED] + bob[EMBED]) / 2, rtol=1e-6, atol=1e-8)


def test_models_of_two_sizes_do_not_merge(pico_models: Path, tmp_path: Path) -> None:
    wide = write_pico_model(tmp_path / "wide", 9, hidden_size=48)
    with pytest.raises(MergeError, match=r"branch 'wide': .* is \(.*48.*\), its start has \(.*32.*\)"):
        merge_models(inspect("start", pico_models / "student"), [inspect("wide", wide)], [1.0], "mean", tmp_path)
