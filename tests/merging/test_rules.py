"""Each rule by hand, or against another implementation; then what all rules keep to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mot_core.errors import MergeError, SpecError
from mot_core.merging import RULES, apply
from mot_core.merging.apply import drawn
from mot_core.merging.rules import rule_named
from mot_core.merging.rules.base import Block
from mot_core.merging.rules.slerp import spherical_coefficients
from mot_core.merging.rules.ties import elected
from tests.merging.models import KEY, merged, vector

START, ANN, BOB = vector(1, 1, 1, 1), vector(2, 1, -3, 1.5), vector(1, 3, 3, 0.5)
# Updates: ann (1, 0, -4, 0.5), bob (0, 2, 2, -0.5).
MODELS = {"start": START, "ann": ANN, "bob": BOB}
HALVES = [0.5, 0.5]


def by(root: Path, rule: str, weights: list[float] | None = None, **parameters: Any) -> list[float]:
    found, _ = merged(root, MODELS, rule, weights or HALVES, parameters=parameters)
    return found[KEY][0].tolist()


def test_mean(tmp_path: Path) -> None:
    assert by(tmp_path, "mean") == [1.5, 2.0, 0.0, 1.0]


def test_task_arithmetic_with_free_weights(tmp_path: Path) -> None:
    # 1 + 0.5 (2 Δann − 1 Δbob)
    assert by(tmp_path, "task_arithmetic", [2.0, -1.0], scale=0.5) == [2.0, 0.0, -4.0, 1.75]


def test_ties(tmp_path: Path) -> None:
    # Half of four values: ann keeps 1 and −4, bob 2 and 2. Sums (1, 2, −2, 0): the third coordinate elects minus.
    assert by(tmp_path, "ties", density=0.5) == [2.0, 3.0, -3.0, 1.0]


def test_ties_weighs_the_election_and_the_mean(tmp_path: Path) -> None:
    # All kept; 0.2 × −4 + 0.8 × 2 > 0: plus wins, and bob alone agrees. Last: 0.2 × 0.5 − 0.8 × 0.5 < 0, bob again.
    assert by(tmp_path, "ties", [0.2, 0.8], density=1.0) == [2.0, 3.0, 3.0, 0.5]


def test_ties_without_normalisation_sums_what_agrees(tmp_path: Path) -> None:
    assert by(tmp_path, "ties", density=0.5, normalize=False, scale=2.0) == [2.0, 3.0, -3.0, 1.0]


def test_an_exact_draw_of_signs_moves_nothing() -> None:
    updates = torch.tensor([[1.0, 2.0], [-1.0, 2.0]], dtype=torch.float64)
    assert elected(updates, HALVES, normalize=True).tolist() == [0.0, 2.0]


def test_slerp_of_perpendicular_updates(tmp_path: Path) -> None:
    models = {"start": vector(1, 1), "ann": vector(2, 1), "bob": vector(1, 2)}
    found, _ = merged(tmp_path, models, "slerp", HALVES)
    # sin(π/4) / sin(π/2) each: the middle of the arc, not of the chord.
    assert found[KEY][0].tolist() == pytest.approx([1 + math.sqrt(0.5)] * 2)


def test_slerp_at_a_third_of_the_way() -> None:
    angle = 0.6
    gram = [[4.0, 2.0 * math.cos(angle)], [2.0 * math.cos(angle), 1.0]]
    expected = [math.sin(2 / 3 * angle) / math.sin(angle), math.sin(1 / 3 * angle) / math.sin(angle)]
    assert spherical_coefficients(gram, [2 / 3, 1 / 3]) == pytest.approx(expected, rel=1e-12)


def test_slerp_of_weights_needs_no_start(tmp_path: Path) -> None:
    models = {"ann": vector(2, 0), "bob": vector(0, 2)}
    found, _ = merged(tmp_path, models, "slerp", HALVES, start=None, parameters={"of": "weights"})
    assert found[KEY][0].tolist() == pytest.approx([math.sqrt(2)] * 2)


def test_the_spherical_mean_of_three() -> None:
    identity = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    assert spherical_coefficients(identity, [1 / 3] * 3) == pytest.approx([3**-0.5] * 3, rel=1e-12)
    # On one great circle the mean angle is the weighted mean of the angles.
    angles, weights = [0.0, 0.3, 0.9], [0.2, 0.5, 0.3]
    gram = [[math.cos(a - b) for b in angles] for a in angles]
    found = spherical_coefficients(gram, weights)
    point = np.array([sum(c * f(a) for c, a in zip(found, angles, strict=True)) for f in (math.cos, math.sin)])
    middle = sum(w * a for w, a in zip(weights, angles, strict=True))
    assert point == pytest.approx([math.cos(middle), math.sin(middle)], abs=1e-7)


@pytest.mark.parametrize(
    "gram", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]], ids=["same", "opposed", "zero"]
)  # fmt: skip
def test_where_no_arc_is_defined_weights_are_used(gram: list[list[float]]) -> None:
    assert spherical_coefficients(gram, [0.25, 0.75]) == [0.25, 0.75]


def test_interpolation_toward_the_start(tmp_path: Path) -> None:
    assert by(tmp_path, "interpolate", rate=0.5) == [1.25, 1.5, 0.5, 1.0]


def test_warp_interpolates_the_spherical_mean(tmp_path: Path) -> None:
    models = {"start": vector(1, 1), "ann": vector(2, 1), "bob": vector(1, 2)}
    found, _ = merged(tmp_path, models, "interpolate", HALVES, parameters={"rate": 0.5, "of": "slerp"})
    assert found[KEY][0].tolist() == pytest.approx([1 + 0.5 * math.sqrt(0.5)] * 2)


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_outer_optimizer_is_torchs_sgd(tmp_path: Path, nesterov: bool) -> None:
    parameter = torch.nn.Parameter(START.double())
    oracle = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=nesterov)
    models, previous = dict(MODELS), None
    for round_index in range(3):
        root = tmp_path / str(round_index)
        parameter.grad = -(0.5 * (ANN - models["start"]) + 0.5 * (BOB - models["start"])).double()
        oracle.step()
        found, _ = merged(root, models, "outer", HALVES, parameters={"nesterov": nesterov}, previous=previous)
        torch.testing.assert_close(found[KEY], parameter.detach().float(), rtol=1e-6, atol=1e-6)
        models, previous = {**MODELS, "start": found[KEY]}, root / "out"


def test_outer_with_rate_one_and_no_momentum_is_the_mean(tmp_path: Path) -> None:
    assert by(tmp_path, "outer", learning_rate=1.0, momentum=0.0) == [1.5, 2.0, 0.0, 1.0]


def test_the_moving_average_by_hand(tmp_path: Path) -> None:
    previous, found = None, []
    for round_index, level in enumerate((4.0, 8.0, 16.0)):
        root = tmp_path / str(round_index)
        models = {"start": vector(0), "ann": vector(level - 1), "bob": vector(level + 1)}
        values, _ = merged(root, models, "ema", HALVES, parameters={"decay": 0.5}, previous=previous)
        found.append(float(values[KEY]))
        previous = root / "out"
    # Σ ½^(t−s) level_s / Σ ½^(t−s): 4; (2 + 8) / 1.5; (1 + 4 + 16) / 1.75.
    assert found == pytest.approx([4.0, 10 / 1.5, 12.0], rel=1e-6)


def test_the_state_of_another_rule_is_refused(tmp_path: Path) -> None:
    merged(tmp_path / "1", MODELS, "ema", HALVES)
    with pytest.raises(MergeError, match=r"carries the state of rule 'ema' for 1 tensors; expected 'outer' and the 1"):
        merged(tmp_path / "2", MODELS, "outer", HALVES, previous=tmp_path / "1" / "out")


def test_dare_drops_and_rescales(tmp_path: Path) -> None:
    size = 400_000
    models = {"start": torch.zeros(1, size), "ann": torch.ones(1, size), "bob": 3 * torch.ones(1, size)}
    found, _ = merged(tmp_path, models, "dare", HALVES, parameters={"density": 0.25}, seed=7)
    values, counts = found[KEY].unique(return_counts=True)
    # Half of 1/0.25 and half of 3/0.25, each kept by itself with probability ¼.
    assert values.tolist() == [0.0, 2.0, 6.0, 8.0]
    assert (counts / size).tolist() == pytest.approx([9 / 16, 3 / 16, 3 / 16, 1 / 16], abs=0.003)
    assert float(found[KEY].mean()) == pytest.approx(2.0, abs=0.02)


def test_dare_without_rescaling_and_with_all_kept(tmp_path: Path) -> None:
    assert by(tmp_path, "dare", density=1.0) == [1.5, 2.0, 0.0, 1.0]
    found, _ = merged(tmp_path, {**MODELS}, "dare", HALVES, out="2", parameters={"density": 0.5, "rescale": False})
    assert set((found[KEY] - START)[0].tolist()) <= {0.0, 0.5, 1.0, -1.0, -2.0, 0.25, -0.25}


def test_dare_ties_elects_among_what_is_left(tmp_path: Path) -> None:
    size = 100_000
    models = {"start": torch.zeros(1, size), "ann": torch.ones(1, size), "bob": -3 * torch.ones(1, size)}
    found, _ = merged(tmp_path, models, "dare_ties", HALVES, parameters={"density": 0.5})
    # Both kept: minus wins, bob's own value, −6. One kept: 2 or −6. None: 0.
    values, counts = found[KEY].unique(return_counts=True)
    assert values.tolist() == [-6.0, 0.0, 2.0]
    assert (counts / size).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


def test_draws_are_pinned_and_start_anywhere() -> None:
    # SplitMix64's published first output for seed 0, low half first. A change gives random merges other results.
    for place, half in enumerate((0x7B1DCDAF, 0xE220A839)):
        below, above = (bool(drawn(0, 0, 2, (half + more) / 2**32)[place]) for more in (0, 1))
        assert not below and above
    whole = drawn(5, 0, 1000, 0.3)
    assert torch.equal(whole[500:], drawn(5, 500, 500, 0.3))
    assert float(drawn(9, 0, 1_000_000, 0.3).double().mean()) == pytest.approx(0.3, abs=0.002)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["normal", "ties", "mostly zero", "striped"])
def test_the_trimming_threshold_is_exact(
    tmp_path: Path, density: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mot_core.merging.rules.ties import Ties

    monkeypatch.setattr(Ties, "sample_size", 4096)
    generator = torch.Generator().manual_seed(3)
    update = torch.randn(600, 700, generator=generator)
    if kind == "ties":
        update = (update * 2).round()
    if kind == "mostly zero":
        update[torch.rand(600, 700, generator=generator) < 0.8] = 0.0
    if kind == "striped":  # a sample at the wrong stride would see one column only
        update[:, ::7] *= 100.0
    found, _ = merged(
        tmp_path, {"start": torch.zeros(600, 700), "ann": update}, "ties", [1.0], parameters={"density": density}
    )
    kept = int(density * update.numel())
    threshold = float(np.sort(update.abs().numpy().ravel())[-kept])
    assert torch.equal(found[KEY], torch.where(update.abs() >= threshold, update, 0.0))


def scaled(
    start: torch.Tensor, branches: list[torch.Tensor], weights: list[float], factor: float = 1.0
) -> torch.Tensor:
    return start + factor * sum(w * (branch - start) for w, branch in zip(weights, branches, strict=True))


def test_a_rule_of_ones_own_gets_parameters_and_whole_tensors(tmp_path: Path) -> None:
    rule = "tests.merging.test_rules:scaled"
    assert by(tmp_path, rule, factor=2.0) == [2.0, 3.0, -1.0, 1.0]


def flattened(start: torch.Tensor, branches: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    return start.reshape(-1)


def test_a_rule_of_ones_own_must_keep_the_shape(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"test_rules:flattened': .* came back as \(4,\), expected \(1, 4\)"):
        by(tmp_path, "tests.merging.test_rules:flattened")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "parameters", "phrase"),
    [
        ("ties", {"density": 0.0}, "'ties': density: Input should be greater than 0"),
        (
            "ties",
            {"densty": 0.5},
            "'ties': densty: Extra inputs are not permitted; .* parameters: density, scale, norm",
        ),
        ("interpolate", {}, "'interpolate': rate: Field required"),
        ("mean", {"density": 0.5}, "'mean': density: Extra inputs are not permitted; .* parameters: none"),
    ],
)
def test_wrong_parameters_are_refused(rule: str, parameters: dict[str, Any], phrase: str) -> None:
    with pytest.raises(SpecError, match=phrase):
        rule_named(rule, parameters)


def test_rules_over_updates_need_a_start(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="merge rule 'ties' works on updates; expected the start"):
        merged(tmp_path, {"ann": ANN, "bob": BOB}, "ties", HALVES, start=None)


PARAMETERS: dict[str, dict[str, Any]] = {"interpolate": {"rate": 0.6}, "ties": {"density": 0.3}}
ALL = sorted(RULES)


def random_models(
    dtype: torch.dtype, size: int = 300_001, count: int = 3, spread: float = 0.1
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    start = torch.randn(1, size, generator=generator)
    names = ("ann", "bob", "eve")[:count]
    models = {name: (start + spread * torch.randn(1, size, generator=generator)).to(dtype) for name in names}
    return {"start": start.to(dtype), **models}


def oracle(rule_name: str, models: dict[str, torch.Tensor], weights: list[float]) -> torch.Tensor:
    """The rule on whole tensors in float64, without streaming; draws apart, it is the rule's formula."""
    rule = rule_named(rule_name, PARAMETERS.get(rule_name))
    start = models["start"][0].double()
    branches = torch.stack([tensor[0].double() for name, tensor in models.items() if name != "start"])
    updates = branches - start

    def kept(branch: int, density: float) -> torch.Tensor:
        from mot_core.identity import derive_seed

        return drawn(derive_seed("merge", 0, KEY, branch), 0, len(start), density)

    survey = None
    if rule_name == "ties":
        wanted = max(1, int(0.3 * len(start)))
        survey = [float(update.abs().sort(descending=True).values[wanted - 1]) for update in updates]
    if rule_name == "slerp":
        survey = spherical_coefficients((updates @ updates.T).tolist(), weights)
    block = Block(KEY, (len(start),), start, branches, updates, weights, (), survey, kept=kept)
    return rule.merge(block)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rule", ALL)
def test_results_are_float64_rounded_once(tmp_path: Path, rule: str, dtype: torch.dtype) -> None:
    models, weights = random_models(dtype), [0.2, 0.3, 0.5]
    found, _ = merged(tmp_path, models, rule, weights, parameters=PARAMETERS.get(rule, {}))
    expected = oracle(rule, models, weights).to(dtype)
    got = found[KEY][0]
    bits = torch.int16 if dtype != torch.float32 else torch.int32
    apart = (got.view(bits).int() - expected.view(bits).int()).abs()
    assert int(apart.max()) <= 1 and int((apart > 0).sum()) <= len(got) // 100_000


@pytest.mark.parametrize("rule", ALL)
def test_permuting_branches_with_their_weights_changes_no_bit(tmp_path: Path, rule: str) -> None:
    models = random_models(torch.bfloat16, 5_000)
    kept = {"parameters": PARAMETERS.get(rule, {})}
    one, first = merged(tmp_path, models, rule, [0.2, 0.3, 0.5], out="1", **kept)
    turned = {name: models[name] for name in ("eve", "start", "ann", "bob")}
    two, second = merged(tmp_path, turned, rule, [0.5, 0.2, 0.3], out="2", **kept)
    assert torch.equal(one[KEY], two[KEY]) and first == second


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", sorted(set(ALL) - {"dare", "dare_ties", "interpolate", "outer"}))
def test_one_branch_returns_itself(tmp_path: Path, rule: str, dtype: torch.dtype) -> None:
    models = random_models(dtype, 5_000, count=1)
    models["ann"][0, 0] = -0.0
    parameters = {"density": 1.0} if rule == "ties" else {}
    found, diagnostics = merged(tmp_path, models, rule, [1.0], parameters=parameters)
    assert torch.equal(found[KEY], models["ann"])
    assert diagnostics["agreement"]["energy_kept"] == pytest.approx(1.0)


@pytest.mark.parametrize("rule", ALL)
def test_threads_and_shards_change_no_bit(tmp_path: Path, rule: str) -> None:
    models = random_models(torch.bfloat16, 700_000)
    kept = {"parameters": PARAMETERS.get(rule, {}), "seed": 3}
    one, first = merged(tmp_path, models, rule, [0.2, 0.3, 0.5], out="1", threads=1, **kept)
    two, second = merged(tmp_path, models, rule, [0.2, 0.3, 0.5], out="2", threads=3, max_shard_bytes=1, **kept)
    assert torch.equal(one[KEY], two[KEY]) and first == second


@pytest.mark.parametrize("rule", ["dare", "dare_ties"])
def test_a_seed_is_a_draw(tmp_path: Path, rule: str) -> None:
    models = random_models(torch.float32, 2_000)
    draws = [merged(tmp_path, models, rule, [0.2, 0.3, 0.5], out=str(n), seed=n // 2)[0][KEY] for n in range(4)]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[2], draws[3]) and not torch.equal(draws[0], draws[2])


def test_blocks_are_even_for_draws() -> None:
    assert apply.BLOCK % 2 == 0


def test_sampled_diagnostics_are_near_those_of_all_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mot_core.merging import diagnostics

    models = random_models(torch.float32, 1_000_001)
    _, sampled = merged(tmp_path, models, "mean", [0.2, 0.3, 0.5], out="1")
    monkeypatch.setattr(diagnostics, "ALL_VALUES", 1 << 30)
    _, whole = merged(tmp_path, models, "mean", [0.2, 0.3, 0.5], out="2")
    for name, value in whole["agreement"].items():
        assert sampled["agreement"][name] == pytest.approx(value, abs=0.02) and sampled["agreement"][name] != value
    for one, other in zip(sampled["drift"], whole["drift"], strict=True):
        assert one["drift"] == pytest.approx(other["drift"], rel=0.02)
    _, exact = merged(tmp_path, models, "task_arithmetic", [0.2, 0.3, 0.5], out="3")
    assert [row["drift"] for row in exact["drift"]] == pytest.approx([row["drift"] for row in whole["drift"]], rel=1e-9)
