"""Request noise: the right distribution, and no dependence on anything but the request."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2

from mot_core.completers.noise import RequestNoise, gumbel_noise, within_nucleus
from mot_core.spec import Sampling

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


def test_golden_noise() -> None:
    noise = gumbel_noise(torch.tensor([0, 1, 2**62 + 3]), 5, 4)
    assert noise.dtype == torch.float32 and noise.shape == (3, 4)
    expected = torch.tensor(
        [
            [-0.9392627477645874, -0.07837218046188354, -1.6092569828033447, 0.14330974221229553],
            [5.097519397735596, -0.6539083123207092, 1.8753855228424072, 0.4287659823894501],
            [0.8751373887062073, -0.48176613450050354, -0.004818684887140989, -0.13756883144378662],
        ]
    )
    torch.testing.assert_close(noise, expected, rtol=1e-6, atol=1e-6)


def test_noise_is_counted_not_drawn() -> None:
    whole = gumbel_noise(torch.tensor([7, 8, 9]), 3, 50)
    assert torch.equal(gumbel_noise(torch.tensor([9]), 3, 50)[0], whole[2])
    # A larger vocabulary only appends; another position or seed shares nothing.
    assert torch.equal(gumbel_noise(torch.tensor([8]), 3, 60)[0, :50], whole[1])
    assert not (gumbel_noise(torch.tensor([8]), 4, 50)[0] == whole[1]).any()
    assert not (gumbel_noise(torch.tensor([10]), 3, 50)[0] == whole[1]).any()


def test_gumbel_moments() -> None:
    noise = gumbel_noise(torch.arange(400), 0, 500).double()
    assert float(noise.mean()) == pytest.approx(0.5772156649, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_argmax_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    draws = 20_000
    noise = RequestNoise(list(range(draws)), 3, Sampling(temperature=temperature))
    scores = noise(torch.zeros(draws, 3, dtype=torch.int64), logits.expand(draws, -1))
    observed = torch.bincount(scores.argmax(-1), minlength=5).double()
    expected = (logits.double() / temperature).softmax(-1) * draws
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.999, df=4), (observed, expected)


def test_successive_positions_of_one_request_are_independent_draws() -> None:
    logits = torch.zeros(1, 4)
    noise = RequestNoise([123], 0, Sampling(temperature=1.0))
    drawn = [int(noise(torch.zeros(1, p, dtype=torch.int64), logits).argmax()) for p in range(4000)]
    pairs = torch.zeros(4, 4)
    for first, second in itertools.pairwise(drawn):
        pairs[first, second] += 1
    expected = len(drawn) / 16
    assert float(((pairs - expected) ** 2 / expected).sum()) < chi2.ppf(0.999, df=15)


def test_nucleus_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    # Sorted: 0.5, 0.25, 0.15, 0.1. Mass before each: 0, 0.5, 0.75, 0.9.
    for top_p, kept in ((0.4, [1]), (0.6, [1, 3]), (0.74, [1, 3]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        inside = within_nucleus(logits, top_p)
        assert torch.isfinite(inside[0]).nonzero().flatten().tolist() == kept, top_p
        assert torch.equal(inside[0, kept], logits[0, kept])


def test_the_most_likely_token_always_stays() -> None:
    assert int(within_nucleus(torch.tensor([[5.0, 0.0]]), 1e-6).argmax()) == 0


def test_temperature_zero_is_greedy() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.2]])
    noise = RequestNoise([1], 0, Sampling(temperature=0.0, top_p=0.5))
    assert torch.equal(noise(torch.zeros(1, 1, dtype=torch.int64), scores), scores)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 1}, {1}), ({"top_k": 2}, {1, 3}), ({"top_k": 9}, {0, 1, 2, 3}),
        ({"min_p": 0.6}, {1}), ({"min_p": 0.4}, {1, 3}), ({"min_p": 0.2}, {0, 1, 2, 3}),
        ({"min_p": 0.25, "top_k": 3, "top_p": 0.8}, {1, 3}),
    ],
)  # fmt: skip
def test_only_admitted_tokens_are_drawn(sampling: dict[str, float], kept: set[int]) -> None:
    # At temperature 1, so that the probabilities are these: 0.1, 0.5, 0.15, 0.25.
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    noise = RequestNoise(list(range(2000)), 0, Sampling(temperature=1.0, **sampling))
    drawn = noise(torch.zeros(2000, 1, dtype=torch.int64), logits.expand(2000, -1)).argmax(-1)
    assert set(drawn.tolist()) == kept
