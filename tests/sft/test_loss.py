"""The loss by hand; the chunked one against the whole one, in values, gradients and memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mot_core.errors import ModelError
from mot_core.sft.layout import IGNORED
from mot_core.sft.loss import chunked_loss, liger_loss, loss_kind, summed_loss

VOCABULARY, CONTEXT, HIDDEN, CHUNK = 151_936, 16_384, 16, 512


def test_the_loss_by_hand() -> None:
    # Two rows of three positions over two tokens; position i predicts label i + 1.
    logits = torch.zeros(2, 3, 2)
    logits[0, 1] = torch.tensor([0.0, math.log(3.0)])
    labels = torch.tensor([[IGNORED, IGNORED, 1], [IGNORED, 0, IGNORED]])
    assert float(summed_loss(logits, labels)) == pytest.approx(-math.log(0.75) - math.log(0.5))
    assert float(summed_loss(logits, torch.full((2, 3), IGNORED))) == 0.0


def test_the_chunked_loss_and_its_gradients_by_hand() -> None:
    # One token, two words, logits (0, log 3), target the second: loss -log 3/4, gradient of the logits (1/4, -1/4).
    hidden = torch.tensor([[math.log(3.0)]], requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], requires_grad=True)
    loss = chunked_loss(hidden, weight, None, torch.tensor([1]), 4)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-math.log(0.75))
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.tolist() == [[pytest.approx(-0.25)]]
    assert weight.grad.flatten().tolist() == pytest.approx([0.25 * math.log(3.0), -0.25 * math.log(3.0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_the_chunked_loss_is_the_whole_one(dtype: torch.dtype, with_bias: bool, chunk: int) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(13, 8), torch.randn(31, 8), torch.randn(31)]
    targets = torch.randint(31, (13,))

    def gradients(chunked: bool) -> list[torch.Tensor]:
        hidden, weight, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        used = bias if with_bias else None
        if chunked:
            loss = chunked_loss(hidden, weight, used, targets, chunk)
        else:
            logits = torch.nn.functional.linear(hidden, weight).float()
            logits = logits + bias.float() if with_bias else logits
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        (loss / 13).backward()
        found = [leaf.grad for leaf in (hidden, weight, *([bias] if with_bias else []))]
        return [loss.detach().float(), *(grad.float() for grad in found if grad is not None)]

    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, whole in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, whole, **close)


def test_the_chunked_loss_under_autocast_and_without_gradients() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    targets = torch.randint(31, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(hidden, weight, None, targets, 4)
        whole = torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=2e-3)
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    with torch.no_grad():
        assert not chunked_loss(hidden, weight, None, targets, 4).requires_grad
    frozen = chunked_loss(hidden, weight.detach(), None, targets, 4)
    assert frozen.requires_grad and float(frozen.detach()) == pytest.approx(
        float(summed_loss_of(hidden, weight, targets))
    )
    assert float(chunked_loss(hidden[:0], weight, None, targets[:0], 4).detach()) == 0.0


def summed_loss_of(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum").detach()


def test_which_loss_auto_is() -> None:
    config = SimpleNamespace(vocab_size=151_936)
    assert loss_kind("auto", config) == "chunked" and loss_kind("auto", SimpleNamespace(vocab_size=104)) == "full"
    capped = SimpleNamespace(vocab_size=256_000, final_logit_softcapping=30.0)
    assert loss_kind("auto", capped) == "full" and loss_kind("full", capped) == "full"
    with pytest.raises(ModelError, match="'chunked', but the student's config has final_logit_softcapping"):
        loss_kind("chunked", capped)
    assert loss_kind("auto", SimpleNamespace(vocab_size=256_000, logit_scale=1.0)) == "chunked"


def test_liger_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    with pytest.raises(ModelError, match="pip install liger-kernel, or use chunked"):
        liger_loss()


MEASURE = f"""
import resource, torch
from mot_core.sft.loss import chunked_loss
torch.set_num_threads(1)
torch.manual_seed(0)
hidden = torch.randn({CONTEXT}, {HIDDEN}, requires_grad=True)
weight = torch.randn({VOCABULARY}, {HIDDEN}, requires_grad=True)
targets = torch.randint({VOCABULARY}, ({CONTEXT},))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chunked_loss(hidden, weight, None, targets, {CHUNK}).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_a_large_vocabulary_at_a_long_context_stays_under_the_bound() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # The bound in mot_core/sft/loss.py, and a tenth for what the allocator rounds up. All logits in fp32 are 10 GB.
    bound = 4 * CHUNK * VOCABULARY + 4 * VOCABULARY * HIDDEN + 4 * CONTEXT * HIDDEN
    assert bound < 325e6 and 4 * CONTEXT * VOCABULARY > 9.9e9
    assert int(done.stdout) < 1.1 * bound
