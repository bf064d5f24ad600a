"""The loss around students: ends and centres by plain torch, norms by hand, sharpness of a bowl, through a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mot_core.artifacts import Published, Store
from mot_core.dag import StudentAt
from mot_core.errors import MergeError, SpecError
from mot_core.files import read_jsonl
from mot_core.identity import derive_seed
from mot_core.merging.barrier import Losses
from mot_core.merging.plan import BranchFiles, inspect
from mot_core.merging.tensors import MappedFiles
from mot_core.models import load_model, load_tokenizer
from mot_core.probes.directions import RandomWeights, gram_matrix, place_on_plane, random_direction, weight_norms
from mot_core.probes.landscape import Surface, evenly, num_losses, sharpness_rows
from mot_core.probes.nodes import Line, Plane, RandomDirection, Sharpness, landscape_step
from mot_core.probes.rows import landscape_rows
from mot_core.sft.tokens import tokenize
from mot_core.steps import RUNNERS, ModelRef, Step
from mot_core.workers.slots import devices_needed
from tests.contexts import publish, run
from tests.pico import example_row, write_pico_model
from tests.probes.test_confidence import QUESTIONS, corpora_in

Row = dict[str, Any]


def outside(models: Path, name: str) -> StudentAt:
    return StudentAt(ModelRef(name, str(models / name)))


def trained(store: Store, models: Path, name: str, subdirectory: str | None = None) -> StudentAt:
    """A student that a step has made."""
    made = publish(
        store,
        Step("branch", {"of": name}),
        lambda to: shutil.copytree(models / name, to / (subdirectory or "."), dirs_exist_ok=True),
    )
    return StudentAt(made, subdirectory)


def step_of(models: Path, corpora: Step, student: StudentAt | None = None, **given: Any) -> Step:
    asked: dict[str, Any] = {
        "directions": {"ann": outside(models, "ann"), "noise": RandomDirection(seed=3)},
        "lines": [Line(direction="ann", low=-0.5, high=1.5, num_points=5)],
        "num_examples": 2, "name": "start", "label": "landscape", "facts": {}, **given,
    }  # fmt: skip
    return landscape_step(student or outside(models, "student"), corpora, ["ann", "bob"], **asked)


def compute(store: Store, step: Step, **more: Any) -> Published:
    return run(store, step.kind, step.spec, step.parents, step.locators, **more)


def of(rows: list[Row], measure: str, **where: Any) -> list[Row]:
    return [row for row in rows if row["measure"] == measure and where.items() <= row.items()]


def plain_loss(model: Any, models: Path) -> float:
    """The mean loss of both corpora's completions, a rationale at a time, in plain torch."""
    tokenizer, total, count = load_tokenizer(str(models / "student")), 0.0, 0
    for name, style in (("ann", "running-total"), ("bob", "tens-and-ones")):
        for question in QUESTIONS:
            example = tokenize(tokenizer, example_row(question, name, style))
            with torch.no_grad():
                log_probs = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
            for at in range(example.prompt_length, len(example.input_ids)):
                total -= float(log_probs[at - 1, example.input_ids[at]])
                count += 1
    return total / count


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def test_lines_and_planes_meet_the_students(store: Store, pico_models: Path) -> None:
    events: list[Row] = []
    step = step_of(
        pico_models, corpora_in(store), trained(store, pico_models, "student"), num_examples=9,
        directions={
            "ann": trained(store, pico_models, "ann", "snapshots/step-2"), "noise": RandomDirection(seed=3),
            "bob": outside(pico_models, "bob"),
        },
        lines=[Line(direction="bob", low=-0.5, high=1.5, num_points=5), Line(direction="noise", low=-0.2, high=0.2, num_points=3)],
        planes=[
            Plane(x="ann", y="bob", x_range=(0, 1), y_range=(0, 1), num_points=3),
            Plane(x="noise", y="bob", x_range=(-0.2, 0.2), y_range=(0, 1), num_points=3),
        ],
    )  # fmt: skip
    made = compute(store, step, events=events)
    rows = landscape_rows(made.path, step)
    own = {name: load_model(str(pico_models / name), None, "cpu") for name in ("student", "ann", "bob")}
    loss = {name: plain_loss(model, pico_models) for name, model in own.items()}
    (centre,) = of(rows, "centre")
    assert centre["loss"] == pytest.approx(loss["student"], rel=1e-6) and made.counts["loss"] == centre["loss"]
    assert centre["student"] == "start" and centre["num_examples"] == 8
    (at_start,), (at_bob,) = of(rows, "line", direction="bob", x=0.0), of(rows, "line", direction="bob", x=1.0)
    assert at_start["loss"] == centre["loss"] and at_bob["loss"] == pytest.approx(loss["bob"], rel=1e-6)
    (at_noise,) = of(rows, "line", direction="noise", x=0.0)
    assert at_noise["loss"] == centre["loss"]
    for plane, x, y, name in (
        (0, 0.0, 0.0, "student"),
        (0, 1.0, 0.0, "ann"),
        (0, 0.0, 1.0, "bob"),
        (1, 0.0, 1.0, "bob"),
    ):
        (point,) = of(rows, "plane", plane=plane, x=x, y=y)
        assert point["loss"] == pytest.approx(loss[name], rel=1e-6)
    # The middle of the plane is (θ_ann + θ_bob) / 2, since the centre's share is 0 there.
    with torch.no_grad():
        for ours, theirs in zip(own["ann"].parameters(), own["bob"].parameters(), strict=True):
            ours.copy_((ours + theirs) / 2)
    (middle,) = of(rows, "plane", plane=0, x=0.5, y=0.5)
    assert middle["loss"] == pytest.approx(plain_loss(own["ann"], pico_models), rel=1e-6)
    # Each place once: the second line shares 1 with the first; the first plane shares 3, the second 5 with what was before.
    ticks = [event for event in events if event["event"] == "progress"]
    assert len(ticks) == ticks[-1]["done"] == ticks[-1]["total"] == num_losses(step.spec) == 5 + 2 + 6 + 4


def test_marks_say_where_students_lie(store: Store, pico_models: Path) -> None:
    mean = write_pico_model(store.root / "mean", 1)
    ann, bob = (load_file(pico_models / name / "model.safetensors") for name in ("ann", "bob"))
    save_file({key: (ann[key] + bob[key]) / 2 for key in ann}, mean / "model.safetensors", metadata={"format": "pt"})
    directions = {
        "ann": outside(pico_models, "ann"), "bob": outside(pico_models, "bob"), "merged": outside(store.root, "mean"),
        "noise": RandomDirection(),
    }  # fmt: skip
    step = step_of(
        pico_models, corpora_in(store), directions=directions, lines=[], planes=[Plane(x="ann", y="bob", num_points=2)]
    )
    rows = landscape_rows(compute(store, step).path, step)
    places = {row["direction"]: (row["x"], row["y"], row["off_plane"]) for row in of(rows, "mark")}
    assert places["ann"] == pytest.approx((1, 0, 0), abs=1e-6) and places["bob"] == pytest.approx((0, 1, 0), abs=1e-6)
    assert places["merged"] == pytest.approx((0.5, 0.5, 0), abs=1e-3) and set(places) == {"ann", "bob", "merged"}
    start = load_file(pico_models / "student" / "model.safetensors")
    length = sum(float((ann[key] - start[key]).double().square().sum()) for key in ann) ** 0.5
    norm = sum(float(start[key].double().square().sum()) for key in start) ** 0.5
    (row,), (centre,) = of(rows, "direction", direction="ann"), of(rows, "centre")
    assert row["length"] == pytest.approx(length, rel=1e-6) and centre["weight_norm"] == pytest.approx(norm, rel=1e-6)
    assert row["relative_length"] == pytest.approx(length / norm, rel=1e-6)
    (noise,) = of(rows, "direction", direction="noise")
    assert noise["length"] == pytest.approx(centre["filter_norm"], rel=1e-6)


def test_places_on_an_oblique_plane_by_hand() -> None:
    # Directions (1, 0, 0), (1, 1, 0) and (3, 2, 1): the last is 1 × the first + 2 × the second, and 1 off the plane.
    moves = torch.tensor([[1.0, 0, 0], [1, 1, 0], [3, 2, 1], [2, 0, 0]], dtype=torch.float64)
    gram = moves @ moves.T
    assert place_on_plane(gram, 0, 1, 2) == pytest.approx((1.0, 2.0, (1 / 14) ** 0.5))
    assert place_on_plane(gram, 0, 3, 2) is None, "parallel directions span no plane"


class Bowl(Losses):
    """½ Σ h θ² over the weights in place of a model's loss."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], curvature: float) -> None:
        self.parameters = {key: torch.empty(shape) for key, shape in shapes.items()}
        self.curvature, self.batches, self.num_targets, self.files = curvature, [object()], 1, MappedFiles()
        self.summed: Any = lambda batch: sum(
            0.5 * self.curvature * float(values.double().square().sum()) for values in self.parameters.values()
        )


@pytest.fixture
def bowl(tmp_path: Path) -> tuple[Bowl, BranchFiles]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(5, 3, generator=generator) * 2,
        "b": torch.randn(4, 2, 3, generator=generator),
        "norm": torch.ones(6),
    }
    weights["a"][1] = 0.0
    save_file(weights, tmp_path / "model.safetensors")
    return Bowl({key: tuple(value.shape) for key, value in weights.items()}, 3.0), inspect("centre", tmp_path)


def test_filters_of_a_random_direction_have_the_weights_norms(bowl: tuple[Bowl, BranchFiles]) -> None:
    losses, centre = bowl
    weights = load_file(centre.directory / "model.safetensors")
    by_filter, by_layer = (random_direction(losses, centre, 7, how).values for how in ("filter", "layer"))
    assert set(by_filter) == set(by_layer) == {"a", "b"}, "norms and biases stay"
    for key, drawn in by_filter.items():
        assert drawn.shape == weights[key].shape
        torch.testing.assert_close(drawn.flatten(1).norm(dim=1), weights[key].flatten(1).norm(dim=1))
        torch.testing.assert_close(by_layer[key].norm(), weights[key].norm())
    assert by_filter["a"][1].tolist() == [0.0] * 3 and by_layer["a"][1].norm() > 0
    # Before scaling, the draw belongs to seed and key: the filters of both point the same way.
    cosine = torch.nn.functional.cosine_similarity(by_filter["b"].flatten(1), by_layer["b"].flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4))
    assert not torch.equal(by_filter["b"], random_direction(losses, centre, 8, "filter").values["b"])
    norm, filter_norm = weight_norms(losses, centre)
    assert filter_norm**2 == pytest.approx(float(sum(weights[key].square().sum() for key in ("a", "b"))))
    assert norm**2 == pytest.approx(filter_norm**2 + 6)


def test_sharpness_of_a_bowl_is_the_closed_form(bowl: tuple[Bowl, BranchFiles]) -> None:
    losses, centre = bowl
    surface = Surface(losses, centre, [])
    asked = {"distances": [0.1, 0.2], "num_directions": 4, "seed": 1, "normalize": "filter"}
    rows = sharpness_rows(asked, surface)
    _, filter_norm = weight_norms(losses, centre)
    # ½ h ‖ρ d‖² with ‖d‖ = ‖θ‖ over the filters; the slope cancels between both ways.
    for row in of(rows, "sharpness"):
        assert row["mean_rise"] == pytest.approx(0.5 * 3.0 * (row["distance"] * filter_norm) ** 2, rel=1e-4)
        assert row["standard_error"] < 1e-4 * row["mean_rise"] and row["num_directions"] == 4
    assert len(of(rows, "rise")) == 8


def test_the_standard_error_is_over_draws(bowl: tuple[Bowl, BranchFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    losses, centre = bowl
    surface = Surface(losses, centre, [])
    values = iter([1.0, 2.0, 6.0])
    monkeypatch.setattr(surface, "at", lambda point: 0.5)
    monkeypatch.setattr(surface, "both_ways", lambda direction, distance: next(values) + 0.5)
    (row,) = of(
        sharpness_rows({"distances": [0.1], "num_directions": 3, "seed": 1, "normalize": "layer"}, surface), "sharpness"
    )
    assert (row["mean_rise"], row["standard_error"]) == pytest.approx((3.0, (7 / 3) ** 0.5))


def test_inner_products_are_of_moves(bowl: tuple[Bowl, BranchFiles], tmp_path: Path) -> None:
    losses, centre = bowl
    weights = load_file(centre.directory / "model.safetensors")
    (tmp_path / "other").mkdir()
    save_file({**weights, "norm": weights["norm"] + 2}, tmp_path / "other" / "model.safetensors")
    random = RandomWeights({"a": torch.ones(5, 3)})
    gram = gram_matrix(losses, centre, [inspect("other", tmp_path / "other"), random])
    assert gram.tolist() == [[24.0, 0.0], [0.0, 15.0]]


def test_sharpness_through_a_store_and_what_the_manifest_says(store: Store, pico_models: Path) -> None:
    asked = Sharpness(distances=(0.02, 0.05), num_directions=2)
    step = step_of(pico_models, corpora_in(store), directions={}, lines=[], sharpness=asked)
    made = compute(store, step)
    rows = landscape_rows(made.path, step)
    assert [row["distance"] for row in made.counts["sharpness"]] == [0.02, 0.05]
    assert [row["mean_rise"] for row in of(rows, "sharpness")] == [row["mean_rise"] for row in made.counts["sharpness"]]
    # By hand: the first direction of the first distance, both ways.
    centre = inspect("centre", pico_models / "student")
    model = load_model(str(pico_models / "student"), None, "cpu")
    examples = [
        tokenize(load_tokenizer(str(pico_models / "student")), example_row(question, name, style))
        for name, style in (("ann", "running-total"), ("bob", "tens-and-ones"))
        for question in QUESTIONS
    ]
    wide = step_of(pico_models, corpora_in(store), directions={}, lines=[], sharpness=asked, num_examples=9)
    losses = Losses(model, examples)
    direction = random_direction(losses, centre, derive_seed("sharpness", 0, 0), "filter")
    at = [losses.at((1.0, centre), (share, direction)) for share in (0.0, 0.02, -0.02)]
    (first,) = of(landscape_rows(compute(store, wide).path, wide), "rise", distance=0.02, draw=0)
    assert first["rise"] == pytest.approx((at[1] + at[2]) / 2 - at[0], abs=2e-6)


def test_results_are_what_they_were(store: Store, pico_models: Path) -> None:
    """Pinned: if a value changes, raise the kind's version in `mot_core.identity`."""
    step = step_of(
        pico_models, corpora_in(store), num_examples=9, sharpness=Sharpness(distances=(0.1,), num_directions=2)
    )
    made = compute(store, step)
    rows = read_jsonl(made.path / "landscape.jsonl")
    assert [row["loss"] for row in of(rows, "line")] == pytest.approx(PINNED_LINE, rel=1e-5)
    assert [row["rise"] for row in of(rows, "rise")] == pytest.approx(PINNED_RISES, abs=2e-5)
    # Of a corpora step whose identity is fixed, so that of the spec and the version are all that can change it.
    assert step.identity == "c4fa22eeeeca528c53daff2da34c88fa"


PINNED_LINE = [4.726096, 4.608891, 4.660762, 4.787741, 4.857108]
PINNED_RISES = [-0.0011788, 0.0016751]


def test_what_enters_identity(store: Store, pico_models: Path) -> None:
    corpora = corpora_in(store)
    full = {
        "lines": [Line(direction="ann")], "planes": [Plane(x="ann", y="noise")], "sharpness": Sharpness(),
        "directions": {"ann": outside(pico_models, "ann"), "noise": RandomDirection(seed=3)},
    }  # fmt: skip
    own = step_of(pico_models, corpora, **full)
    renamed = step_of(
        pico_models, corpora, name="x", label="y", facts={"z": 1}, sharpness=Sharpness(), lines=[Line(direction="a")],
        planes=[Plane(x="a", y="n")], directions={"a": outside(pico_models, "ann"), "n": RandomDirection(seed=3)},
    )  # fmt: skip
    assert renamed.identity == own.identity
    assert "sharpness" not in step_of(pico_models, corpora).spec
    changes: list[dict[str, Any]] = [
        {"lines": [Line(direction="ann", num_points=12)]}, {"lines": [Line(direction="noise")]},
        {"planes": [Plane(x="ann", y="noise", num_points=3)]}, {"planes": [Plane(x="noise", y="ann")]},
        {"sharpness": Sharpness(num_directions=9)}, {"sharpness": Sharpness(seed=1)}, {"num_examples": 3}, {"seed": 1},
        {"directions": {"ann": outside(pico_models, "bob"), "noise": RandomDirection(seed=3)}},
        {"directions": {"ann": outside(pico_models, "ann"), "noise": RandomDirection(seed=4)}},
        {"directions": {"ann": outside(pico_models, "ann"), "noise": RandomDirection(seed=3, normalize="layer")}},
    ]  # fmt: skip
    identities = {step_of(pico_models, corpora, **{**full, **change}).identity for change in changes}
    assert len({own.identity, *identities}) == len(changes) + 1


def test_bad_requests_are_refused(store: Store, pico_models: Path) -> None:
    corpora = corpora_in(store)
    for given, message in (
        ({"lines": []}, "no lines, planes or sharpness"),
        ({"lines": [Line(direction="anne")]}, "no direction 'anne'; did you mean 'ann'"),
        ({"directions": {"ann": outside(pico_models, "student")}}, "leads from the student to itself"),
    ):
        with pytest.raises(SpecError, match=message):
            step_of(pico_models, corpora, **given)
    for make, message in (
        (lambda: Line(direction="a", low=0, high=0), "span nothing"),
        (lambda: Plane(x="a", y="a"), "two directions"),
        (lambda: Plane(x="a", y="b", x_range=(0.5, 1)), "must hold the centre"),
        (lambda: Sharpness(distances=(0.1, 0.1)), "each once"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    wide = write_pico_model(store.root / "wide", 1, hidden_size=48)
    step = step_of(pico_models, corpora, directions={"ann": StudentAt(ModelRef("w", str(wide)))})
    with pytest.raises(MergeError, match=r"branch '0': .* is \(.*48.*\), its start has"):
        compute(store, step)


def test_every_kind_has_a_task_and_a_place_in_the_queue(store: Store, pico_models: Path) -> None:
    from tasks.invocation import PRIORITY
    from tasks.stages import TASKS

    assert set(RUNNERS) == set(TASKS) == set(PRIORITY)
    assert devices_needed(step_of(pico_models, corpora_in(store))) == 1


def test_points_meet_zero_and_one() -> None:
    assert evenly(-0.2, 1.2, 15)[2] == 0.0 and evenly(-0.2, 1.2, 15)[12] == 1.0
    assert json.dumps(evenly(-0.5, 1.5, 5)) == "[-0.5, 0.0, 0.5, 1.0, 1.5]"
