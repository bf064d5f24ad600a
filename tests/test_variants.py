"""Variants: several experiments in one document, each laid over what they share; and what is refused, with its remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mot_core.errors import SpecError
from mot_core.spec_files import load_spec, load_specs, preset_names
from tests.pico import pico_document

VARIANTS: dict[str, Any] = {
    "few": {"problems": {"num_problems": 8}, "training_seeds": [5, 6]},
    "other": {"problems": {"families": ["products"]}, "rounds": 3},
}


def written(tmp_path: Path, variants: Any = VARIANTS, **changes: Any) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**pico_document(tmp_path), "variants": variants, **changes}, sort_keys=False))
    return str(path)


def test_each_variant_is_laid_over_what_they_share(tmp_path: Path) -> None:
    few, other = load_specs(written(tmp_path))
    assert (few.name, other.name) == ("pico-few", "pico-other")
    assert (few.problems.families, few.problems.num_problems, few.problems.seed) == (("sums",), 8, 1)
    assert (other.problems.families, other.problems.num_problems, other.rounds) == (("products",), 12, 3)
    assert few.rounds == 2, "one variant changes nothing in another"
    assert few.training_seeds == (5, 6), "lists are replaced whole"
    assert few.teachers == other.teachers and few.identity != other.identity


def test_one_variant_by_name(tmp_path: Path) -> None:
    file = written(tmp_path)
    few, other = load_specs(file)
    assert load_spec(f"{file}:few") == few and load_specs(f"{file}:other") == [other]
    assert load_spec("paper-qwen3-14b:s1k").problems.hub == "simplescaling/s1K-1.1"


def test_overrides_apply_to_each_variant_after_it(tmp_path: Path) -> None:
    specs = load_specs(written(tmp_path), ["rounds=4", "problems.seed=9", "name=mine"])
    assert [spec.rounds for spec in specs] == [4, 4] and [spec.problems.seed for spec in specs] == [9, 9]
    assert [spec.name for spec in specs] == ["mine-few", "mine-other"]


def test_what_a_mapping_holds_further_down_is_merged_too(tmp_path: Path) -> None:
    changes = {
        "evaluation": {"path": {"k": 2}},
        "generation": {"sampling": {"temperature": 0.1}},
        "student": {"revision": None},
    }
    spec = load_spec(written(tmp_path, {"deep": changes}) + ":deep")
    assert (spec.evaluation.path.k, spec.evaluation.path.num_problems) == (2, 4)
    assert (spec.generation.sampling.temperature, spec.generation.sampling.max_completion_tokens) == (0.1, 64)
    assert len(spec.evaluation.benchmarks) == 2


def test_a_document_with_a_single_variant_needs_no_choice(tmp_path: Path) -> None:
    assert load_spec(written(tmp_path, {"only": {"rounds": 1}})).name == "pico-only"


def test_a_document_without_variants_is_as_before(tmp_path: Path) -> None:
    document = pico_document(tmp_path)
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(document))
    assert load_specs(str(path)) == [load_spec(str(path))] and load_spec(str(path)).name == "pico"
    assert load_specs("smoke", ["rounds=1"]) == [load_spec("smoke", ["rounds=1"])]
    assert not [name for name in preset_names() if ":" in name]


def test_a_colon_in_a_files_own_name(tmp_path: Path) -> None:
    path = tmp_path / "a:b.yaml"
    path.write_text(yaml.safe_dump(pico_document(tmp_path)))
    assert load_spec(str(path)).name == "pico"


@pytest.mark.parametrize(
    ("variants", "phrase"),
    [
        (None, r"spec\.yaml: variants: expected a mapping of name → fields, got None"),
        ({}, r"variants: expected a mapping of name → fields, got \{\}"),
        (["few"], r"variants: expected a mapping of name → fields, got \['few'\]"),
        ({"few": None}, r"variants\.few: expected a mapping of the fields that it changes, got None"),
        ({"few": {}}, r"variants\.few: expected a mapping of the fields that it changes, got \{\}"),
        ({"few": [1]}, r"variants\.few: expected a mapping of the fields that it changes, got \[1\]"),
        ({1: {"rounds": 1}}, r"variants\.1: expected a name of letters, digits, '\.', '_' and '-', got 1"),
        ({"a:b": {"rounds": 1}}, r"variants\.a:b: expected a name of letters"),
        ({"few": {"variants": {"x": {"rounds": 1}}}}, r"variants\.few: a variant has no variants of its own"),
        ({"few": {"name": "x"}}, r"variants\.few\.name: it follows from the document's name and 'few'; leave it out"),
        ({"few": {"roundz": 1}}, r"spec\.yaml, variant few: the spec is wrong in 1 place\(s\)\n  roundz: unknown field .*did you mean 'rounds'"),
        ({"few": {"problems": 3}}, r"spec\.yaml, variant few: .*\n  problems: "),
    ],
)  # fmt: skip
def test_bad_variants(tmp_path: Path, variants: Any, phrase: str) -> None:
    with pytest.raises(SpecError, match=phrase):
        load_specs(written(tmp_path, variants))


def test_bad_choices(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(SpecError, match=r"spec\.yaml has no variant 'fwe'; did you mean 'few'\? variants: few, other"):
        load_specs(f"{file}:fwe")
    with pytest.raises(SpecError, match=r"preset paper-qwen3-14b has no variant 'bobba'; did you mean 'boba'\?"):
        load_spec("paper-qwen3-14b:bobba")
    with pytest.raises(
        SpecError, match=r"spec\.yaml holds 2 experiments, and one is wanted here; name one of \S+:few, \S+:other"
    ):
        load_spec(file)
    with pytest.raises(SpecError, match=r"preset smoke has no variants, so 'smoke:x' names nothing; give 'smoke'"):
        load_spec("smoke:x")
    with pytest.raises(SpecError, match=r"'smok' is neither a preset nor a YAML file; .*did you mean 'smoke'"):
        load_spec("smok:x")
    with pytest.raises(SpecError, match=r"preset paper-qwen3-14b, variant s1k: the spec is wrong in 1 place"):
        load_spec("paper-qwen3-14b:s1k", ["rounds=0"])


def test_a_key_given_twice_in_a_variant(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: a\nvariants:\n  few: {rounds: 1, rounds: 2}\n")
    with pytest.raises(SpecError, match="the key 'rounds' is given twice"):
        load_specs(str(path))


def mot(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("command", ["tune", "preview"])
def test_commands_that_take_one_spec_name_the_variants(tmp_path: Path, command: str) -> None:
    done = mot(command, "single-gpu-24gb", "--store", str(tmp_path / "store"))
    assert done.returncode == 1 and not (tmp_path / "store").exists()
    assert "single-gpu-24gb:qwen3-1.7b-full, single-gpu-24gb:qwen3-4b-lora" in done.stderr


def test_what_a_later_variant_lacks_is_told_before_the_first_runs(tmp_path: Path) -> None:
    missing = {"student": {"model": str(tmp_path / "nowhere")}}
    document = {
        "variants": {"good": {"rounds": 1}, "bad": missing},
        "student": {"name": "student", "model": "lab:student-tiny"},
        "teachers": [{"name": "ann", "model": "lab:running-total"}],
    }
    done = mot("run", written(tmp_path, **document), "--store", str(tmp_path / "store"))
    assert done.returncode == 1 and "student: model" in done.stderr and "nowhere" in done.stderr
    assert not (tmp_path / "store").exists()
