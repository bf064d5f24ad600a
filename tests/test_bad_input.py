"""Bad input: refused before any compute, with what, where, expected, got and remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.run import RunOptions, run
from mot_core.errors import ModelError, MotError, ProblemError, SpecError
from mot_core.spec import Experiment
from mot_core.spec_files import load_spec, load_specs, preset_names, spec_from_document, spec_to_yaml
from mot_core.world import resolve
from tests.pico import pico_document

Change = Callable[[dict[str, Any]], Any]


def put(*keys: Any, value: Any) -> Change:
    """Set a value deep inside a document."""

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


CASES: dict[str, tuple[Change, type[MotError], str]] = {
    "unknown field": (
        put("rounts", value=3), SpecError, r"spec\.yaml: the spec is wrong in 1 place\(s\)\n  rounts: unknown field \(value 3\); "
        r"did you mean 'rounds'\? allowed: name, ",
    ),
    "unknown nested field": (
        put("evaluation", "benchmarks", 0, "samples", value=3), SpecError,
        r"evaluation\.benchmarks\.0\.samples: unknown field \(value 3\); did you mean 'num_samples'\?",
    ),
    "duplicate teacher": (
        put("teachers", 1, "name", value="ann"), SpecError, r"teachers: duplicate 'ann'; each name must be given once",
    ),
    "duplicate method": (put("methods", 1, "name", value="base"), SpecError, r"methods: duplicate 'base'"),
    "duplicate seed": (put("training_seeds", value=[1, 1]), SpecError, r"training_seeds: duplicate '1'"),
    "weights that do not sum": (
        put("merge", value={"rule": "weighted_mean", "weights": {"ann": 0.5, "bob": 0.6}}), SpecError,
        r"merge: weights must sum to 1, got 1\.1 from \{'ann': 0\.5, 'bob': 0\.6\}",
    ),
    "negative weight": (
        put("merge", value={"rule": "weighted_mean", "weights": {"ann": 1.5, "bob": -0.5}}), SpecError,
        r"merge: weights must not be negative",
    ),
    "weights without their rule": (
        put("merge", value={"weights": {"ann": 0.5, "bob": 0.5}}), SpecError, r"weights belong to the rule weighted_mean",
    ),
    "weights of others": (
        put("merge", value={"rule": "weighted_mean", "weights": {"ann": 0.5, "eve": 0.5}}), SpecError,
        r"merge\.weights names \['ann', 'eve'\], expected every teacher: \['ann', 'bob'\]",
    ),
    "k above the samples": (
        put("evaluation", "benchmarks", 0, "num_samples", value=1), SpecError,
        r"evaluation\.benchmarks\.0: k is 2 but only 1 samples are drawn; lower k or raise num_samples",
    ),
    "wrong type": (put("rounds", value="many"), SpecError, r"rounds: 'many' is not allowed: .*valid integer"),
    "zero rounds": (put("rounds", value=0), SpecError, r"rounds: 0 is not allowed: .*greater than or equal to 1"),
    "not finite": (put("training", "learning_rate", value=float("nan")), SpecError, r"training\.learning_rate: nan is not allowed"),
    "misspelt choice": (
        put("training", "schedule", value="cosin"), SpecError,
        r"training\.schedule: 'cosin' is not allowed: .*'constant', 'linear' or 'cosine'.*did you mean 'cosine'\?",
    ),
    "required field": (lambda document: document.pop("student"), SpecError, r"student: required, but absent"),
    "unknown method": (
        put("methods", 0, "name", value="mott"), SpecError,
        r"method 'mott' is not known; known: base, std, .*did you mean 'mot'\? or give variant_of",
    ),
    "ensemble alone": (put("methods", value=[{"name": "ensemble"}]), SpecError, r"'ensemble' votes over the STD students of all teachers: add 'std'"),
    "no teachers": (put("teachers", value=[]), SpecError, r"teachers: \[\] is not allowed: .*at least 1 item"),
    "two sources": (
        put("problems", "file", value="x.jsonl"), SpecError,
        r"problems: give exactly one of families, gym, file, hub, import_path; got \['families', 'file'\]",
    ),
    "round outside": (
        put("evaluation", "path", "rounds", value=[1, 9]), SpecError, r"evaluation\.path\.rounds names \[9\], outside 1…2",
    ),
    "stopping outside": (put("stopping_rule", value=9), SpecError, r"stopping_rule is round 9, outside 1…2"),
    "no home benchmark": (
        lambda document: document["evaluation"]["benchmarks"].pop(0), SpecError, r"evaluation\.benchmarks has none of role 'home'",
    ),
    "no dev split to choose on": (
        put("evaluation", "benchmarks", 0, "splits", value={"test": "test"}), SpecError,
        r"evaluation\.benchmarks has none of role 'home' with a dev split: the best teacher is chosen on home, dev",
    ),
    "files of no repository": (
        put("problems", "data_files", value="x.jsonl"), SpecError,
        r"problems: data_files names files of a hub repository: give hub with it, and no config",
    ),
    "a name with a slash": (put("name", value="../x"), SpecError, r"name: '\.\./x' is not allowed: .*pattern"),
    "unknown family": (
        put("problems", "families", value=["summs"]), SpecError, r"problems\.families: 'summs' is not known; did you mean 'sums'\? known: sums, ",
    ),
    "missing model": (
        put("student", "model", value="/no/such/model"), ModelError,
        r"student: model '/no/such/model' is no directory here, and no hub id \(owner/name\); give an existing directory",
    ),
    "unknown laboratory model": (
        put("teachers", 0, "model", value="lab:running-totals"), ModelError,
        r"teachers\.ann: unknown laboratory model 'running-totals': .*did you mean 'running-total'\?",
    ),
    "missing problems file": (
        put("problems", value={"file": "/no/such.jsonl", "num_problems": 3}), ProblemError,
        r"problems\.file: '/no/such\.jsonl' does not exist; expected JSONL, CSV or parquet",
    ),
    "unknown grader": (
        put("corpus", "grader", value="famly"), SpecError, r"corpus\.grader: 'famly' is not known; did you mean 'family'\? known: ",
    ),
    "unknown completer": (
        put("teachers", 0, "completer", value="transformer"), SpecError,
        r"teachers\.ann\.completer: 'transformer' is not known; did you mean 'transformers'\?",
    ),
    "unknown rule": (put("merge", "rule", value="meen"), SpecError, r"merge\.rule: 'meen' is not known; did you mean 'mean'\?"),
    "method that cannot be imported": (
        put("methods", 0, value={"name": "mine", "import_path": "no.such:thing"}), SpecError,
        r"methods\.mine\.import_path: cannot import 'no\.such:thing'",
    ),
    "built-in method overridden": (
        put("methods", 0, value={"name": "base", "import_path": "tests.pico:Scripted"}), SpecError,
        r"methods: 'base' is a built-in method; give your own another name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused_before_any_compute(case: str, pico_models: Path, tmp_path: Path) -> None:
    change, kind, phrase = CASES[case]
    document = pico_document(pico_models)
    document.setdefault("merge", {})
    change(document)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(kind, match=phrase):
        run(load_spec(str(path)), RunOptions(tmp_path / "store", workers=1))
    assert not (tmp_path / "store" / "objects").exists(), "nothing may be written for a spec that is refused"


def test_every_mistake_is_told_at_once(pico_models: Path) -> None:
    document = {**pico_document(pico_models), "rounds": 0, "name": "a b", "typo": 1}
    with pytest.raises(SpecError, match=r"wrong in 3 place\(s\)") as caught:
        spec_from_document(document, "here", Experiment)
    assert len(str(caught.value).splitlines()) == 4


def model_copy(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "student", tmp_path / "copy"))


def refused_model(models: Path, directory: Path, phrase: str) -> None:
    spec = Experiment.model_validate({**pico_document(models), "student": {"name": "s", "model": str(directory)}})
    with pytest.raises(ModelError, match=phrase):
        resolve(spec)


def test_a_tokenizer_without_a_template_is_refused(pico_models: Path, tmp_path: Path) -> None:
    directory = model_copy(pico_models, tmp_path)
    (directory / "chat_template.jinja").unlink()
    refused_model(
        pico_models, directory, r"student: the tokenizer in .* has no chat template; expected chat_template\.jinja"
    )
    # A template inside tokenizer_config.json serves as well.
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    resolve(
        Experiment.model_validate({**pico_document(pico_models), "student": {"name": "s", "model": str(directory)}})
    )


def test_pickles_are_never_loaded(pico_models: Path, tmp_path: Path) -> None:
    directory = model_copy(pico_models, tmp_path)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused_model(
        pico_models,
        directory,
        r"student: .* holds pytorch_model\.bin: a pickle runs code when it is loaded, .* is refused",
    )


def test_a_directory_without_a_config_is_refused(pico_models: Path, tmp_path: Path) -> None:
    directory = model_copy(pico_models, tmp_path)
    (directory / "config.json").unlink()
    refused_model(pico_models, directory, r"student: .* has no config\.json; expected a model directory")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("- a\n- b\n", r"spec\.yaml: expected a mapping of spec fields, got list"),
        ("just words", r"expected a mapping of spec fields, got str"),
        ("", r"expected a mapping of spec fields, got NoneType"),
        ("name: a\nname: b\n", r"spec\.yaml: not valid YAML: the key 'name' is given twice"),
        ("training: {batch_size: 1, batch_size: 2}", r"the key 'batch_size' is given twice"),
        ("a: [1, 2", r"spec\.yaml: not valid YAML"),
        ("a: !!python/object:os.system x", r"spec\.yaml: not valid YAML: could not determine a constructor"),
        ("? [a, b]\n: 1\n", r"spec\.yaml: "),
        ("a: &x [*x]\nb: 1", r"spec\.yaml: "),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, phrase: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=phrase):
        load_spec(str(path))


def test_a_source_that_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"'smok' is neither a preset nor a YAML file; presets: .*did you mean 'smoke'\?"
    ):
        load_spec("smok")
    with pytest.raises(SpecError, match=r"gone\.yaml: cannot be read as a spec"):
        load_spec(str(tmp_path / "gone.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"binary\.yaml: cannot be read as a spec"):
        load_spec(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("rounds", r"--set 'rounds': expected dotted\.key=value"),
        ("=3", r"--set '=3': expected dotted\.key=value"),
        ("rounds=[1", r"--set 'rounds=\[1': the value is not valid YAML"),
        ("rounds.x=1", r"--set 'rounds\.x=1': rounds is 2, which has no field 'x'"),
        (
            "teachers.carl.name=x",
            r"--set 'teachers\.carl\.name=x': no element 'carl'; expected a name among \['running-total', 'tens-and-ones'\]",
        ),
        ("roundz=3", r"roundz: unknown field \(value 3\); did you mean 'rounds'\?"),
        ("training.lr=3", r"training\.lr: unknown field"),
        ("rounds=-1", r"rounds: -1 is not allowed"),
    ],
)
def test_bad_overrides(override: str, phrase: str) -> None:
    with pytest.raises(SpecError, match=phrase):
        load_spec("smoke", [override])


def test_good_overrides() -> None:
    spec = load_spec("smoke", [
        "rounds=3", "training.learning_rate=1e-3", "teachers.running-total.num_samples=4", "teachers.1.num_samples=5",
        "evaluation.benchmarks.sums.k=1", "training_seeds=[1, 2]",
    ])  # fmt: skip
    assert (spec.rounds, spec.training.learning_rate, spec.training_seeds) == (3, 1e-3, (1, 2))
    assert [teacher.num_samples for teacher in spec.teachers] == [4, 5] and spec.evaluation.benchmarks[0].k == 1


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_survives_its_own_yaml(preset: str, tmp_path: Path) -> None:
    for spec in load_specs(preset):
        (tmp_path / "again.yaml").write_text(spec_to_yaml(spec))
        assert load_spec(str(tmp_path / "again.yaml")) == spec
        assert load_spec(str(tmp_path / "again.yaml")).identity == spec.identity
