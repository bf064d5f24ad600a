"""The exponential moving average of the weights along a branch: by hand, and in what is refused (its resume: test_resume)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mot_core.artifacts import Published, Store
from mot_core.spec import Training
from tests.sft.branches import branch


def weights(made: Published, place: str = "") -> dict[str, torch.Tensor]:
    return load_file(made.path / place / "model.safetensors")


def test_the_average_is_that_of_the_weights_along_the_way(pico_models: Path, tmp_path: Path) -> None:
    steps = (1, 2, 3)
    plain = branch(Store(tmp_path / "plain").open(), pico_models / "student", num_steps=4, snapshot_steps=steps)
    averaged = branch(
        Store(tmp_path / "averaged").open(), pico_models / "student", num_steps=4, snapshot_steps=(2,), ema_decay=0.7
    )
    expected = {name: value.float() for name, value in load_file(pico_models / "student/model.safetensors").items()}
    for place in (*(f"snapshots/step-{step}" for step in steps), ""):
        for name, value in weights(plain, place).items():
            expected[name] = 0.7 * expected[name] + 0.3 * value.float()
        if place == "snapshots/step-2":
            for name, value in weights(averaged, place).items():
                torch.testing.assert_close(value.float(), expected[name], rtol=1e-5, atol=1e-7)
    for name, value in weights(averaged).items():
        torch.testing.assert_close(value.float(), expected[name], rtol=1e-5, atol=1e-7)
    assert [entry.counts["last_loss"] for entry in (plain, averaged)] == [plain.counts["last_loss"]] * 2, (
        "the path itself is the same"
    )


@pytest.mark.parametrize("beside", [{"early_stop": {}}, {"optimizer_between_rounds": "carry"}])
def test_what_has_no_average_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ema_decay needs every step of a branch"):
        Training.model_validate({"ema_decay": 0.9, **beside})


def test_an_average_in_bfloat16_is_refused() -> None:
    with pytest.raises(ValueError, match="ema_decay needs weights in float32"):
        Training.model_validate({"ema_decay": 0.9, "precision": "pure_bfloat16"})


def test_identity_keeps_no_trace_of_an_average_that_is_not_kept() -> None:
    assert "ema_decay" not in Training().record()
    assert Training(ema_decay=0.9).record()["ema_decay"] == 0.9
