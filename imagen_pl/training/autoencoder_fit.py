"""Trains a small autoencoder on images, a step at a time.

Axes: b batch, r pixels, c channels of a latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from imagen_pl.losses.reconstruction import perceptual
from imagen_pl.metrics.fidelity import psnr, ssim
from imagen_pl.models.autoencoders.convolutional import AutoencoderNetwork
from imagen_pl.models.pretrained.backbones import Backbone

_WARMUP = 100  # steps
# Share of a batch whose perceptual distance is computed: of all of it, it takes 60% of the step on a CPU.
_PERCEPTUAL_SHARE = 0.25

Images = UInt8[Tensor, "b 3 r r"]


class AutoencoderFit:
    """The training of an autoencoder, as in latent diffusion (arXiv:2112.10752, section 3.1).

        L = |x - D(z)| + perceptual_weight * d(x, D(z)) + kl_weight * KL(q(z|x) || N(0, I)),  z ~ q(z|x)

    with means over pixels and over the entries of z; d is computed for a quarter of each batch. The paper's
    adversarial term is left out.

    Args:
        network: the autoencoder.
        backbone: network of the perceptual distance d; None leaves it out.
        learning_rate: of Adam; it rises over the first 100 steps, and falls to zero over the training. Muon
            was unstable here: after six minutes the PSNR was 26 dB, and 30 dB with Adam.
        perceptual_weight: factor of the perceptual distance.
        kl_weight: factor of the KL divergence, a mean over the entries of the latents.
        half: compute in bfloat16.
    """

    def __init__(
        self,
        network: AutoencoderNetwork,
        backbone: Backbone | None,
        learning_rate: float = 1e-3,
        perceptual_weight: float = 0.1,
        kl_weight: float = 1e-4,
        half: bool = False,
    ) -> None:
        self.network = network.train().to(memory_format=torch.channels_last)
        self.backbone, self.learning_rate, self.half = backbone, learning_rate, half
        self.perceptual_weight, self.kl_weight = perceptual_weight, kl_weight
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        self.steps = 0

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def step(self, images: Images, share: float) -> dict[str, float]:
        """One step of the optimizer. Returns the parts of the loss, unweighted.

        Args:
            images: of any size that is a multiple of the autoencoder's downsampling.
            share: of the training that is done, 0 to 1.
        """
        real = scaled(images.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            mean, log_variance = (x.float() for x in self.network.posterior(real))
            latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            drawn = self.network.decode(latents).float()
        parts = {
            "pixels": (drawn - real).abs().mean(),
            "kl": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(),
        }
        loss = parts["pixels"] + self.kl_weight * parts["kl"]
        if self.backbone is not None:
            rows = slice(math.ceil(_PERCEPTUAL_SHARE * len(real)))  # a batch's order is random
            parts["perceptual"] = perceptual(self.backbone, drawn[rows], real[rows]).mean()
            loss = loss + self.perceptual_weight * parts["perceptual"]
        self.steps += 1
        for group in self.optimizer.param_groups:
            decay = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
            group["lr"] = self.learning_rate * min(1.0, self.steps / _WARMUP) * decay
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return {name: float(part.detach()) for name, part in parts.items()}

    @torch.no_grad()
    def measure_latents(self, batches: Iterable[Images]) -> None:
        """Measure mean and standard deviation of each channel of the latents, and keep them in the network.

        Args:
            batches: training images.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for images in batches:
            mean = self.network.posterior(scaled(images.to(self.device)))[0].double().cpu()
            count += mean[:, 0].numel()
            total = total + mean.sum((0, 2, 3))
            squares = squares + mean.square().sum((0, 2, 3))
        average = total / count
        spread = (squares / count - average.square()).clamp_min(1e-12).sqrt()
        self.network.mean.copy_(average[:, None, None])
        self.network.std.copy_(spread[:, None, None])

    @torch.no_grad()
    def reconstruct(self, images: Images) -> Images:
        """What decoding makes of encoded images, as a file stores them."""
        drawn = self.network.decode(self.network.posterior(scaled(images.to(self.device)))[0])
        return ((drawn.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)

    def scores(self, batches: Iterable[Images]) -> dict[str, float]:
        """Mean PSNR (dB) and SSIM of reconstructed images, and their number.

        Args:
            batches: held-out images.
        """
        found: list[Float[Tensor, "2 b"]] = []
        for images in batches:
            drawn, true = self.reconstruct(images).double(), images.double()
            found.append(torch.stack([psnr(drawn, true), ssim(drawn, true)]))
        if not found:
            return {}
        both = torch.cat(found, 1)
        return {"psnr": float(both[0].mean()), "ssim": float(both[1].mean()), "images": both.shape[1]}


def scaled(images: Images) -> Float[Tensor, "b 3 r r"]:
    """Images, -1 to 1."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
