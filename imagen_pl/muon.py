"""Muon: an optimizer that moves all directions of a matrix alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Coefficients of the odd polynomial x -> a x + b x^3 + c x^5 that brings singular values to about one in five
# steps, from https://kellerjordan.github.io/posts/muon.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weights of two axes and more; Adam for the others.

    A gradient's large singular values are of what all captions share; what tells one from its like has small
    ones. Muon takes a step of one size in all of them: W <- W - 0.2 lr sqrt(max(m, n)) U V', where U S V' is
    the momentum of the m x n matrix W (arXiv:2502.16982, section 2). Its root mean square is then 0.2 lr, much as
    Adam's, whose learning rate it can take. A convolution is a matrix of its outputs by all else, which
    `torch.optim.Muon` does not take.

    Args:
        params: of a network, or groups of them.
        lr: learning rate, of both kinds.
        momentum: of the matrices, 0 to 1, after Nesterov.
        betas: of Adam, for biases and the like.
        eps: of Adam.
        iterations: Newton-Schulz steps towards an orthogonal matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        iterations: int = 5,
    ) -> None:
        for name, value in (("momentum", momentum), ("betas[0]", betas[0]), ("betas[1]", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"Muon: {name} {value} must be 0 or more and less than 1")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "iterations": iterations,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    (self._adam if p.ndim < 2 else self._muon)(p, group)
        return loss

    def _muon(self, p: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        ahead = torch.lerp(p.grad, state["momentum"], momentum).flatten(1)  # type: ignore[arg-type]
        update = orthogonal(ahead, group["iterations"]).reshape(p.shape)
        p.add_(update, alpha=-0.2 * group["lr"] * max(ahead.shape) ** 0.5)

    def _adam(self, p: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        step = float(state["step"])
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2)  # type: ignore[union-attr]
        size = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        p.addcdiv_(state["exp_avg"], size, value=-group["lr"] / (1 - beta1**step))


def orthogonal(matrix: Float[Tensor, "m n"], iterations: int = 5) -> Float[Tensor, "m n"]:
    """Nearly U V' of a matrix U S V', by Newton-Schulz steps in bfloat16: singular values of 0.7 to 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16().contiguous()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if tall else x).to(matrix.dtype)
