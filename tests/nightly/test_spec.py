"""A nightly's spec: cells, their seeds, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mot_core.errors import SpecError
from mot_core.nightly.spec import canary_of, cells_of, load_nightly, yaml_text
from mot_core.spec_files import load_spec, preset_names
from tests.nightly.made_up import grid_of, nightly


@pytest.mark.parametrize("name", ["lab", "smoke"])
def test_what_ships_loads(name: str) -> None:
    assert name in preset_names("nightly")
    spec = load_nightly(name)
    assert spec.name == name and len(cells_of(spec)) == {"lab": 9, "smoke": 2}[name]
    assert canary_of(spec).name == "smoke-canary"


def test_cells_are_the_grids_combinations_and_then_the_list() -> None:
    spec = nightly(
        set=["generation.seed=7"], grid={"rounds": [1, 2], "merge.rule": ["mean", "ties"]},
        cells=[["training.learning_rate=1.0e-05", "rounds=3"]],
    )  # fmt: skip
    cells = cells_of(spec)
    assert [cell.name for cell in cells] == [
        "rounds=1, merge.rule=mean", "rounds=1, merge.rule=ties", "rounds=2, merge.rule=mean",
        "rounds=2, merge.rule=ties", "training.learning_rate=1.0e-05, rounds=3",
    ]  # fmt: skip
    assert [(cell.spec.rounds, cell.spec.merge.rule) for cell in cells[:3]] == [(1, "mean"), (1, "ties"), (2, "mean")]
    assert cells[4].spec.training.learning_rate == 1e-5 and {cell.spec.generation.seed for cell in cells} == {7}
    assert cells[4].values == (("training.learning_rate", "1.0e-05"), ("rounds", "3"))


def test_a_cell_is_the_run_that_a_person_would_start() -> None:
    (cell,) = grid_of(rounds=[3])
    assert cell.spec.identity == load_spec("smoke", ["rounds=3"]).identity
    assert [cell.name for cell in cells_of(nightly())] == ["smoke"]


def test_seeds_go_on_after_the_largest_and_leave_the_cell_the_same() -> None:
    (cell,) = cells_of(nightly(set=["training_seeds=[4, 2]"]))
    assert cell.with_seeds(2) is not None and cell.with_seeds(2).identity == cell.spec.identity
    assert cell.with_seeds(4).training_seeds == (4, 2, 5, 6)
    assert list(cell.seed_counts(4)) == [2, 3, 4] and list(cell.seed_counts(1)) == [2]
    (other,) = cells_of(nightly(set=["training_seeds=[9]"]))
    assert other.key == cell.key and other.spec.identity != cell.spec.identity


@pytest.mark.parametrize("value", [1e-05, 3, True, "mean", [1, 2], {"name": "mot", "learning_rate": 2e-4}, None])
def test_a_grids_value_is_what_the_override_says(value: object) -> None:
    text = yaml_text(value)
    assert yaml.safe_load(text) == value and "\n" not in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"grid": {"rounds": [2, 2]}}, "grid.rounds: expected values, each once"),
        ({"grid": {"rounds": []}}, "grid.rounds: expected values"),
        ({"grid": {"rounds": [1, 2]}, "cells": [["rounds=2"]]}, "'rounds=2' and 'rounds=2' are the same experiment"),
        ({"cells": [["training_seeds=[1]"], ["training_seeds=[2]"]]}, "the same experiment but for training seeds"),
        ({"grid": {"roundz": [1]}}, "roundz: unknown field"),
        ({"reference": {"method": "mto"}}, "reference names 'mto'; did you mean 'm"),
        ({"reference": {"against": ["opd"]}}, "reference names 'opd'"),
        ({"reference": {"against": ["mot"]}}, "against names 'mot', the method itself"),
        ({"reference": {"benchmarks": ["sum"]}}, "reference.benchmarks names 'sum'; did you mean 'sums'?"),
        ({"budget": {"minutes": 0}}, "budget.minutes"),
        ({"max_seedz": 2}, "max_seedz: unknown field"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(fields: dict[str, object], said: str, tmp_path: Path) -> None:
    file = tmp_path / "nightly.yaml"
    file.write_text(yaml.safe_dump({"name": "made-up", "base": "smoke", **fields}))
    with pytest.raises(SpecError) as refused:
        cells_of(load_nightly(str(file)))
    assert said in str(refused.value)


def test_a_misspelt_nightly_is_told_the_nearest_one() -> None:
    with pytest.raises(
        SpecError, match="'smok' is neither a nightly preset nor a YAML file; nightly presets: lab, smoke"
    ):
        load_nightly("smok")
    assert load_nightly("smoke", ["budget.minutes=5"]).budget.minutes == 5.0
