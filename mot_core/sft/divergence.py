"""How far a student's distributions are from its teachers', token by token: the loss of on-policy distillation.

Generalised Jensen–Shannon divergence (Agarwal et al., arXiv 2306.13649, equation 1) of teacher P and student Q, with
M = β P + (1 − β) Q:

    D_β = β KL(P ‖ M) + (1 − β) KL(Q ‖ M),      D_0 = KL(P ‖ Q) (forward),      D_1 = KL(Q ‖ P) (reverse)

The ends are the limits of D_β / (β (1 − β)), as in TRL's trainer, which is the oracle (tests/sft/test_on_policy.py).
Invariant: where student and teacher have the same logits, loss and gradient are zero to the last bit. Autograd's would
be rounding noise, which AdamW scales up to whole steps; so gradients are written out here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch


def summed_divergence(logits_NV: torch.Tensor, targets: Sequence[torch.Tensor], beta: float) -> torch.Tensor:
    """Σ over N tokens of the mean over targets of D_β, in nats. A target is a teacher's log-probabilities, (N, V) in
    fp32; gradients reach the student's logits only."""
    apply: Any = _Divergence.apply
    return cast(torch.Tensor, apply(logits_NV, list(targets), beta))


class LogMean:
    """The log-probabilities of an equal-weight mixture, summed up one teacher after another in one (N, V) tensor."""

    def __init__(self) -> None:
        self.total_NV: torch.Tensor | None = None
        self.count = 0

    def add(self, log_NV: torch.Tensor) -> None:
        self.total_NV = log_NV if self.total_NV is None else torch.logaddexp(self.total_NV, log_NV)
        self.count += 1

    def result(self) -> torch.Tensor:
        assert self.total_NV is not None, "a mixture of no teachers"
        return self.total_NV - math.log(self.count) if self.count > 1 else self.total_NV


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets: list[torch.Tensor], beta: float) -> torch.Tensor:
        student_NV = logits_NV.detach().float().log_softmax(-1)
        total = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
        grad_NV = torch.zeros_like(student_NV)
        for target_NV in targets:
            value, grad = _one_target(student_NV, target_NV, beta)
            total += value / len(targets)
            grad_NV.add_(grad, alpha=1.0 / len(targets))
        # Held here and not by save_for_backward: it is used once.
        ctx.grad_NV, ctx.dtype = grad_NV, logits_NV.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        grad_NV, ctx.grad_NV = ctx.grad_NV, None
        return grad_NV.mul_(outputs[0]).to(ctx.dtype), None, None


def _one_target(student_NV: torch.Tensor, target_NV: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`(summed divergence, its gradient by the student's logits)` from log-probabilities.

    ∂D_β/∂Q = (1 − β)(log Q − log M) up to a constant, and log Q − log P at β = 1; through the softmax a gradient a by
    Q becomes Q (a − Σ Q a). At β = 0 it is Q − P.
    """
    student_probability_NV = student_NV.exp()
    if beta == 0.0:
        target_probability_NV = target_NV.exp()
        value = (target_probability_NV * (target_NV - student_NV)).sum()
        return value, student_probability_NV - target_probability_NV
    if beta == 1.0:
        by_probability_NV = student_NV - target_NV
        terms_NV = student_probability_NV * by_probability_NV
        return terms_NV.sum(), terms_NV.sub_(student_probability_NV * terms_NV.sum(-1, keepdim=True))
    to_mixture_NV = _to_mixture(student_NV, target_NV, beta)
    terms_NV = (1.0 - beta) * student_probability_NV * to_mixture_NV
    of_target = (target_NV.exp() * (target_NV - student_NV + to_mixture_NV)).sum()
    value = beta * of_target + terms_NV.sum()
    return value, terms_NV.sub_(student_probability_NV * terms_NV.sum(-1, keepdim=True))


def _to_mixture(student_NV: torch.Tensor, target_NV: torch.Tensor, beta: float) -> torch.Tensor:
    """log Q − log M, from log P − log Q: zero where they agree, and finite however far they are apart."""
    apart_NV = target_NV - student_NV
    likelier_NV = apart_NV.clamp(min=0.0)
    from_target_NV = likelier_NV + torch.log1p((1.0 - beta) * torch.expm1(-likelier_NV))
    from_student_NV = torch.log1p(beta * torch.expm1(apart_NV.clamp(max=0.0)))
    return -torch.where(apart_NV > 0.0, from_target_NV, from_student_NV)
