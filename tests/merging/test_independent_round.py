"""The independent check of a whole round: TRL and mergekit alone, from the corpora of our store, make our student.

`tests/independent_round.py` runs in an environment that has no mot (`make mergekit`). It renders, masks, trains and merges
by itself; from us it gets the student, the published corpora, the settings and the order of the rows.

Tolerance: ‖ours − theirs‖ is at most 1e-4 of ‖ours − start‖, and no weight is off by more than 1e-5.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mot_core.artifacts import Store
from mot_core.corpus.tables import read_corpus
from mot_core.models import load_tokenizer
from mot_core.sft.tokens import batch_schedule, tokenize
from tests.pico import pico_document
from tests.processes import ROOT, write_spec

MERGEKIT = os.environ.get("MOT_MERGEKIT_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MERGEKIT, reason="needs MOT_MERGEKIT_PYTHON, of an environment made by make mergekit"),
]
SCRIPT = ROOT / "tests" / "independent_round.py"
NUM_STEPS = 6
OF_UPDATE, OF_A_WEIGHT = 1e-4, 1e-5
TRAINING = {
    "learning_rate": 1e-3, "batch_size": 2, "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0, "beta1": 0.9,
    "beta2": 0.95, "max_grad_norm": 1.0,
}  # fmt: skip


class Round:
    """One round of ours through the flow, in a store; and what the script needs to make it again."""

    def __init__(self, models: Path, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.start = folder, models / "student"
        document = pico_document(models)
        document |= {"methods": [{"name": "mot"}], "rounds": 1, "steps_per_round": NUM_STEPS, "training": TRAINING}
        document["evaluation"]["benchmarks"] = document["evaluation"]["benchmarks"][:1]
        spec, store = write_spec(folder / "spec.yaml", document), Store(folder / "store")
        command = [sys.executable, "-W", "ignore", "-m", "tests.drive", str(spec), str(store.root)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        steps = {manifest.identity: manifest for manifest in store.manifests()}
        (merged,) = (step for step in steps.values() if step.kind == "merge")
        self.student = store.object_dir(merged.identity)
        tokenizer = load_tokenizer(str(self.start))
        self.corpora: dict[str, dict[str, Any]] = {}
        for role, identity in merged.parents:
            name, branch = role.removeprefix("branch/"), steps[identity]
            file = store.object_dir(dict(branch.parents)["corpora"]) / f"{name}.parquet"
            lengths = [len(tokenize(tokenizer, row).input_ids) for row in read_corpus(file)]
            batches = batch_schedule(lengths, TRAINING["batch_size"], NUM_STEPS, branch.spec["order_seed"])
            rows = [index for batch in batches for index in batch]
            self.corpora[name] = {"file": str(file), "rows": rows, "weight": 0.5}

    def again(self, label: str, **changes: Any) -> Path:
        """The student of the script, with settings changed."""
        out = self.folder / label
        out.mkdir()
        settings = {**TRAINING, "student": str(self.start), "num_steps": NUM_STEPS, "corpora": self.corpora, **changes}
        (out / "settings.json").write_text(json.dumps(settings))
        # Elsewhere and without PYTHONPATH, so that nothing of ours can be imported.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hub")}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(MERGEKIT), str(SCRIPT), str(out / "settings.json"), str(out)], capture_output=True, text=True,
            cwd=out, env=environment, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return out / "student"

    def differences(self, other: Path) -> tuple[float, float]:
        """`(‖ours − other‖ / ‖ours − start‖, the largest difference of a weight)`, in float64."""
        ours, theirs, start = (weights(place) for place in (self.student, other, self.start))
        assert ours.keys() == theirs.keys() == start.keys()
        apart = torch.cat([(ours[key] - theirs[key]).flatten() for key in ours])
        moved = torch.cat([(ours[key] - start[key]).flatten() for key in ours])
        of_update, of_a_weight = float(apart.norm() / moved.norm()), float(apart.abs().max())
        print(f"{other.parent.name}: apart by {of_update:.1e} of the update, a weight by at most {of_a_weight:.1e}")
        return of_update, of_a_weight


def weights(directory: Path) -> dict[str, torch.Tensor]:
    (file,) = directory.glob("*.safetensors")
    return {key: value.double() for key, value in load_file(file).items() if key != "lm_head.weight"}


@pytest.fixture(scope="module")
def ours(pico_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Round:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return Round(pico_models, tmp_path_factory.mktemp("round"), environment)


def test_the_script_is_short_and_knows_nothing_of_us(tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 60
    assert not [
        name for name in ("mot_core", "flows", "tasks", "tests") if f"import {name}" in text or f"from {name}" in text
    ]
    found = subprocess.run([str(MERGEKIT), "-c", "import mot_core"], capture_output=True, text=True, cwd=tmp_path)
    assert "No module named 'mot_core'" in found.stderr


def test_trl_and_mergekit_alone_make_our_student(ours: Round) -> None:
    of_update, of_a_weight = ours.differences(ours.again("same"))
    assert of_update <= OF_UPDATE
    assert of_a_weight <= OF_A_WEIGHT


def test_a_learning_rate_one_percent_off_is_seen(ours: Round) -> None:
    of_update, of_a_weight = ours.differences(ours.again("rate", learning_rate=1.01 * TRAINING["learning_rate"]))
    assert of_update > 10 * OF_UPDATE
    assert of_a_weight > OF_A_WEIGHT


def test_a_teacher_left_out_is_seen(ours: Round) -> None:
    of_update, _ = ours.differences(ours.again("alone", corpora={"ann": {**ours.corpora["ann"], "weight": 1.0}}))
    assert of_update > 1000 * OF_UPDATE
