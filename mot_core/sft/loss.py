"""The completion's loss: summed cross-entropy in nats over labelled tokens, and how many logits exist at once.

Memory of `chunked`, in bytes, for N labelled tokens, hidden size H, vocabulary V and chunks of C tokens, where b is 4
in fp32 and 2 in bf16:  4 C V + b C V [bf16 only] + 4 V H [head trained] + b N H.  It does not grow with N × V.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import torch
from torch.nn import functional

from mot_core.errors import ModelError
from mot_core.sft.layout import IGNORED, MicroBatch
from mot_core.sft.places import CHUNKED_FROM_VOCABULARY

# Configuration fields of models that change their logits after the head, which the fused losses would leave out.
_CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def summed_loss(logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """From all logits at once. Position i predicts label i + 1."""
    return functional.cross_entropy(
        logits_BLV[:, :-1].reshape(-1, logits_BLV.shape[-1]).float(), labels_BL[:, 1:].reshape(-1),
        ignore_index=IGNORED, reduction="sum",
    )  # fmt: skip


def chunked_loss(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor, chunk: int
) -> torch.Tensor:
    """The same from the head's inputs and weights, `chunk` tokens at a time; gradients are made in the same sweep."""
    apply: Any = _ChunkedLoss.apply
    return cast(torch.Tensor, apply(hidden_NH, weight_VH, bias_V, targets_N, chunk, torch.is_grad_enabled()))


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor,
        chunk: int, with_gradients: bool,
    ) -> torch.Tensor:  # fmt: skip
        trained = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden_NH.device.type, enabled=False):
            compute = torch.bfloat16 if _in_bfloat16(hidden_NH, weight_VH) else weight_VH.dtype
            weight = weight_VH.to(compute)
            grad_hidden = torch.empty_like(hidden_NH) if trained[0] else None
            grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if trained[1] else None
            grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and trained[2] else None
            total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
            for start in range(0, len(hidden_NH), chunk):
                hidden = hidden_NH[start : start + chunk].to(compute)
                grad_logits, loss = _one_chunk(hidden, weight, bias_V, targets_N[start : start + chunk], any(trained))
                total += loss
                if grad_hidden is not None:
                    grad_hidden[start : start + chunk] = grad_logits.to(compute) @ weight
                if grad_weight is not None:
                    _add_product(grad_weight, grad_logits, hidden)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                del grad_logits  # or it would live beside the next chunk's
        # Held here and not by save_for_backward, whose reference would make autograd copy the head's gradient.
        ctx.grads = [grad_hidden, grad_weight, grad_bias]
        ctx.dtypes = (hidden_NH.dtype, weight_VH.dtype, bias_V.dtype if bias_V is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        grads, ctx.grads = ctx.grads, None
        scaled = [
            grads.pop(0).mul_(outputs[0]).to(dtype) if grads[0] is not None else grads.pop(0) for dtype in ctx.dtypes
        ]
        return (*scaled, None, None, None)


def _in_bfloat16(hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> bool:
    device = hidden_NH.device.type
    under_autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return under_autocast or weight_VH.dtype == torch.bfloat16


def _one_chunk(
    hidden_CH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, targets_C: torch.Tensor,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """`(gradient of the logits in fp32, summed loss)`; one tensor of C × V in fp32 serves for both."""
    logits_CV = (hidden_CH @ weight_VH.T).float()
    if bias_V is not None:
        logits_CV += bias_V.float()
    logits_CV -= logits_CV.amax(1, keepdim=True)
    picked_C1 = logits_CV.gather(1, targets_C[:, None])
    sums_C1 = logits_CV.exp_().sum(1, keepdim=True)
    loss = (sums_C1.log() - picked_C1).sum()
    if with_gradient:
        logits_CV /= sums_C1
        logits_CV.scatter_add_(1, targets_C[:, None], torch.full_like(sums_C1, -1.0))
    return logits_CV, loss


def _add_product(grad_VH: torch.Tensor, grad_logits_CV: torch.Tensor, hidden_CH: torch.Tensor) -> None:
    if hidden_CH.dtype == torch.float32:
        grad_VH.addmm_(grad_logits_CV.T, hidden_CH)
    else:
        grad_VH += grad_logits_CV.to(hidden_CH.dtype).T @ hidden_CH


def loss_kind(asked: str, config: Any) -> str:
    """The loss that `auto` stands for with a model's configuration.

    Raises:
        ModelError: a fused loss for a model that changes its logits after the head.
    """
    changed = [name for name in _CHANGED_LOGITS if getattr(config, name, None) not in (None, 1.0, 1)]
    if asked == "auto":
        return "chunked" if config.vocab_size >= CHUNKED_FROM_VOCABULARY and not changed else "full"
    if changed and asked != "full":
        raise ModelError(
            f"training.loss is {asked!r}, but the student's config has {changed[0]}: its logits are not the head's alone; use full"
        )
    return asked


def liger_loss() -> Any:
    """Liger's fused loss, summed: `(weight, hidden, targets, bias) -> loss`.

    Raises:
        ModelError: it is not installed.
    """
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        raise ModelError(f"training.loss is 'liger', but {error}; pip install liger-kernel, or use chunked") from error
    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")


class CompletionLoss(torch.nn.Module):
    """A causal language model whose forward pass ends in the summed loss, so that sharded head weights are whole there."""

    def __init__(self, model: Any, loss: str, chunk_tokens: int, *, offload: bool = False) -> None:
        super().__init__()
        self.model = model
        self.loss = loss_kind(loss, model.config)
        self.chunk_tokens = chunk_tokens
        self.offload = offload
        self.liger = liger_loss() if self.loss == "liger" else None

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        if batch.mask_BL is not None:
            inputs: dict[str, Any] = {"attention_mask": batch.mask_BL}
        else:
            inputs = {"position_ids": batch.positions_BL, **_where_examples_begin(batch)}
        # Around the layers only: what the loss keeps is small where it is chunked, and the head's gradient is not.
        kept = kept_on_the_host(self.model) if self.offload and torch.is_grad_enabled() else contextlib.nullcontext()
        if self.loss == "full":
            with kept:
                logits_BLV = self.model(input_ids=batch.ids_BL, use_cache=False, **inputs).logits
            return summed_loss(logits_BLV, batch.labels_BL)
        with kept:
            hidden_BLH = self.model.get_decoder()(input_ids=batch.ids_BL, use_cache=False, **inputs).last_hidden_state
        targets_BL = batch.labels_BL[:, 1:]
        labelled = targets_BL != IGNORED
        head = self.model.get_output_embeddings()
        hidden_NH, targets_N = hidden_BLH[:, :-1][labelled], targets_BL[labelled]
        if self.liger is not None:
            return cast(torch.Tensor, self.liger(head.weight, hidden_NH, targets_N, head.bias))
        return chunked_loss(hidden_NH, head.weight, head.bias, targets_N, self.chunk_tokens)


def _where_examples_begin(batch: MicroBatch) -> dict[str, Any]:
    """The packed row's examples, as our attention and as flash attention ask for them."""
    ends = torch.tensor(batch.segments, device=batch.ids_BL.device).cumsum(0).to(torch.int32)
    starts = torch.cat([ends.new_zeros(1), ends])
    longest = max(batch.segments)
    return {
        "segments": batch.segments, "cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest,
        "max_length_k": longest,
    }  # fmt: skip


def kept_on_the_host(model: torch.nn.Module) -> Any:
    """A context in which what the backward pass needs goes to the host's memory, to come back when it is asked for.
    Weights stay: they are on the device anyway, or sharding gathers them again."""
    weights = {
        parameter.untyped_storage().data_ptr()
        for parameter in model.parameters()
        if type(parameter) is torch.nn.Parameter
    }

    def pack(tensor: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
        gathered = isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)
        if gathered or tensor.untyped_storage().data_ptr() in weights:
            return tensor.device, tensor
        return tensor.device, tensor.to("cpu")

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[1].to(kept[0]))
