"""A killed branch goes on from its checkpoint and ends in the same bits, whatever its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mot_core.artifacts import Published, Store
from mot_core.files import sha256_of
from mot_core.runner import RunSettings
from mot_core.sft.checkpoints import Checkpoints
from mot_core.sft.optimizers import STATE_FILE
from mot_core.steps import Step
from tests.pico import write_pico_model
from tests.sft.branches import branch, branch_step_of, log_of

OFTEN = RunSettings(threads=1, checkpoint_seconds=0.0)
ADAPTERS = {"rank": 2, "alpha": 4.0, "dropout": 0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "packed, in passes, by the chunk": {"layout": "packed", "micro_batch_tokens": 90, "loss": "chunked", "loss_chunk_tokens": 9},
    "bf16, checkpointed": {"precision": "bfloat16", "gradient_checkpointing": True},
    "all in bf16": {"precision": "pure_bfloat16"},
    "adapters with dropout": {"lora": ADAPTERS},
    "adapters with dropout, bf16": {"lora": ADAPTERS, "precision": "bfloat16"},
    "averaged weights": {"ema_decay": 0.7},
    "early stop": {"early_stop": {"held_out_share": 0.3, "every_steps": 1, "patience": 1}, "learning_rate": 0.03},
    "carried moments": {"extra": {"keeps_optimizer": True, "optimizer_weights": [1.0]}},
    "8-bit moments": {"optimizer": "adamw8bit", "weight_decay": 0.1},
    "adapters on 4-bit weights": {"lora": {**ADAPTERS, "quantization": "nf4"}},
}  # fmt: skip
PARTS = {"8-bit moments": "bitsandbytes", "adapters on 4-bit weights": "bitsandbytes"}


class Killed(BaseException):
    pass


def die_after(limit: int, attempts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process of a branch die once its checkpoint after `limit` steps is written."""
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        attempts.append(step)
        if step == limit:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)


def hashes_of(made: Published) -> dict[str, str]:
    return {str(path.relative_to(made.path)): sha256_of(path) for path in sorted(made.path.rglob("*.safetensors"))}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:MatMul8bitLt", "ignore::FutureWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_training_is_bit_identical(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name in PARTS:
        pytest.importorskip(PARTS[name])
    student, wanted = pico_models / "student", {**SETTINGS[name], "snapshot_steps": (2,)}
    if name == "8-bit moments":  # which bitsandbytes keeps of tensors from 4,096 numbers on only
        student = write_pico_model(tmp_path / "wide", 1, hidden_size=128)

    def train(store: Store) -> Published:
        parents: tuple[tuple[str, Step], ...] = ()
        if name == "carried moments":
            made_before = {"num_steps": 2, "extra": {"keeps_optimizer": True}}
            branch(store, student, **made_before)
            parents = (("optimizer/0", branch_step_of(store, **made_before)),)
        return branch(store, student, settings=OFTEN, parents=parents, **wanted)

    whole = train(Store(tmp_path / "whole").open())
    store = Store(tmp_path / "broken").open()
    attempts: list[int] = []
    steps = whole.counts["num_steps"]
    first, second = (2, 3) if steps > 4 else (1, 2)
    for limit in (first, second):
        with monkeypatch.context() as patch:
            die_after(limit, attempts, patch)
            with pytest.raises(Killed):
                train(store)
    resumed = train(store)
    # The second attempt went on from the first one's checkpoint; earlier rounds' checkpoints are not counted.
    assert attempts[-second:] == list(range(1, second + 1))
    assert hashes_of(resumed) == hashes_of(whole) and log_of(resumed) == log_of(whole)
    assert (STATE_FILE in hashes_of(whole)) == (name == "carried moments")
    assert not list(resumed.path.rglob(".*")), "scratch is not published"


def test_a_checkpoint_of_another_layout_is_not_gone_on_from(
    pico_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, attempts = Store(tmp_path / "broken").open(), list[int]()
    with monkeypatch.context() as patch:
        die_after(3, attempts, patch)
        with pytest.raises(Killed):
            branch(store, pico_models / "student", settings=OFTEN, layout="packed")
    resumed = branch(store, pico_models / "student", settings=OFTEN)
    assert "the checkpoint after step 3 is of another layout: the branch starts over" in caplog.text
    whole = branch(Store(tmp_path / "whole").open(), pico_models / "student", settings=OFTEN)
    assert hashes_of(resumed) == hashes_of(whole) and resumed.identity == whole.identity
