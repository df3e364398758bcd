"""Muon: an optimizer with steps of equal size in all directions of a weight matrix."""

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
    """Orthogonalised momentum for matrices and convolutions; Adam for vectors.

    The step has the same size in all directions: W <- W - 0.2 lr sqrt(max(m, n)) U V', where U S V' is the
    Nesterov momentum of the m x n matrix W (arXiv:2502.16982, section 2, without weight decay). The root mean
    square of the step is 0.2 lr, like AdamW's with betas of 0.9 and 0.95; Adam's with a first beta of 0 is
    about lr. A convolution's kernel is flattened to a matrix of outputs by all other axes;
    `torch.optim.Muon` does not support convolutions. The step does not shrink with the gradient: let a
    schedule lower the learning rate.

    Args:
        params: a network's parameters, or parameter groups.
        lr: learning rate of matrices and vectors.
        momentum: Nesterov momentum of the matrices: 0 or more and less than 1.
        betas: Adam's betas, for the vectors.
        eps: Adam's epsilon, for the vectors.
        iterations: Newton-Schulz steps towards an orthogonal matrix.
        every: compute the direction of a matrix at every nth step and reuse it in between: the momentum
            hardly turns in one step, and Newton-Schulz takes most of the optimizer's time.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        iterations: int = 5,
        every: int = 1,
    ) -> None:
        for name, value in (("momentum", momentum), ("betas[0]", betas[0]), ("betas[1]", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"Muon: {name} {value} must be 0 or more and less than 1")
        for name, value, least in (
            ("lr", lr, 0.0),
            ("eps", eps, 0.0),
            ("iterations", iterations, 1),
            ("every", every, 1),
        ):
            if value < least:
                raise ValueError(f"Muon: {name} {value} must be {least} or more")
        settings = {"lr": lr, "momentum": momentum, "betas": tuple(betas)}
        super().__init__(params, {**settings, "eps": eps, "iterations": iterations, "every": every})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("every", 1)  # checkpoints from before this setting existed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    (self._muon if _is_matrix(p) else self._adam)(p, group)
        return loss

    def _muon(self, p: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        p.add_(self._direction(p, group), alpha=-0.2 * group["lr"] * max(_as_matrix(p).shape) ** 0.5)

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """U V' of the Nesterov momentum; between updates, the last one computed."""
        state, every = self.state[p], group["every"]
        age = state.get("age", 0) % every
        if every > 1:
            state["age"] = age + 1
        if age:
            return state["direction"]
        ahead = torch.lerp(p.grad, state["momentum"], group["momentum"])  # type: ignore[arg-type]
        direction = _as_parameter(orthogonal(_as_matrix(ahead), group["iterations"]), p)
        if every > 1:
            state["direction"] = direction
        return direction

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


def _is_matrix(p: Tensor) -> bool:
    """Whether Muon updates it; a bias with extra axes of size one counts as a vector."""
    return p.ndim >= 2 and min(p.flatten(1).shape) > 1


def _as_matrix(x: Tensor) -> Float[Tensor, "m n"]:
    """A kernel as a matrix of outputs by all other axes, in memory order, so that nothing is copied."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).flatten(1)
    return x.flatten(1)


def _as_parameter(matrix: Float[Tensor, "m n"], p: Tensor) -> Tensor:
    """The inverse of `_as_matrix`."""
    if p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last):
        o, i, h, w = p.shape
        return matrix.reshape(o, h, w, i).permute(0, 3, 1, 2)
    return matrix.reshape(p.shape)


def orthogonal(matrix: Float[Tensor, "m n"], iterations: int = 5) -> Float[Tensor, "m n"]:
    """Nearly U V' of a matrix U S V', by Newton-Schulz steps.

    Five steps bring every singular value of at least 1/500 of the matrix's norm to between 0.6 and 1.3;
    smaller ones become about 480 times larger. Under autocast the steps are computed in bfloat16.
    """
    device = matrix.device.type
    dtype = torch.bfloat16 if torch.is_autocast_enabled(device) else matrix.dtype
    tall = matrix.shape[0] > matrix.shape[1]
    with torch.autocast(device, enabled=False):
        x = (matrix.T if tall else matrix).to(dtype).contiguous()
        x = x / (x.norm() + 1e-7)
        # bfloat16 cannot represent squares of small singular values: there each step multiplies the matrix.
        if dtype != torch.bfloat16 and x.shape[1] >= 1.5 * x.shape[0]:
            x = _polynomial_of_gram(x @ x.T, iterations) @ x
        else:
            for _ in range(iterations):
                gram = x @ x.T
                x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
        return (x.T if tall else x).to(matrix.dtype)


def _polynomial_of_gram(gram: Float[Tensor, "m m"], iterations: int) -> Float[Tensor, "m m"]:
    """Q such that Q X is the result of the Newton-Schulz steps on X, from X X' alone.

    One step is P X with P = a I + b X X' + c (X X')^2, and the next step's X X' is P (X X') P. All of them
    are polynomials of the first X X', so the long side of X is needed only before and after.
    """
    product: Tensor | None = None
    for step in range(iterations):
        p = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        p.diagonal().add_(_A)
        product = p if product is None else p @ product
        if step < iterations - 1:
            gram = p @ gram @ p
    assert product is not None  # there is at least one step
    return product
