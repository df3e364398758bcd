"""A small captioner: an image in, its caption out.

Axes: b batch, m places of an image's maps, t tokens, d width, v tokens known, c channels, r pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.captioner.image_features import BackboneFeatures, CaptionFeatures
from imagen_pl.models.captioner.tokenizers import BytePairs, CaptionTokens, KnownTokens


class Captioner(nn.Module):
    """A transformer that writes a caption while it looks at an image's maps (as in arXiv:1502.03044).

    It works in two steps, so that one look at the images serves several captions: `look`, then
    `cross_entropy` or `caption`.

    Args:
        features: what it sees of an image; None takes EfficientNet-Lite0 at 64 px.
        tokenizer: a tokenizer's name on the Hugging Face hub, or its folder; None learns byte pairs from the
            captions of the data set at the start of the run, and keeps them with the weights.
        vocab_size: largest number of tokens that are learnt; a named tokenizer has its own.
        max_tokens: longer captions are cut off here.
        dim: d, its width.
        layers: of the transformer.
        heads: of its attention; they divide `dim`.
        dropout: share of its activations that are left out while it learns; small data sets want some.
    """

    def __init__(
        self,
        features: CaptionFeatures | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 4096,
        max_tokens: int = 32,
        dim: int = 192,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim % heads or dim % 4:
            raise UserError(f"captioner.dim {dim} must be divisible by its {heads} heads, and by 4")
        if max_tokens < 2:
            raise UserError(f"captioner.max_tokens {max_tokens} must be 2 or more")
        self.features = features if features is not None else BackboneFeatures()
        self.tokens: CaptionTokens = BytePairs(vocab_size) if tokenizer is None else KnownTokens(tokenizer)
        self.max_tokens = max_tokens
        self.doors = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim))
            for channels in self.features.channels
        )
        self.kinds = nn.Parameter(torch.zeros(len(self.doors), dim))  # which map a place belongs to
        self.norm = nn.LayerNorm(dim)
        self.decoder = _decoder(self.tokens, max_tokens, dim, layers, heads, dropout)

    def prepare(self, captions: Callable[[], Iterable[str]]) -> None:
        """Learn its tokens, before the first batch, if they are to be learnt.

        Args:
            captions: gives those of the training set.
        """
        if isinstance(self.tokens, BytePairs):
            self.tokens.learn(captions())

    def extract_features(
        self, images: Float[Tensor, "b 3 r r"], seen: Mapping[int, Tensor] | None = None
    ) -> Float[Tensor, "b m d"]:
        """What it remembers of images, -1 to 1, of any size.

        Args:
            seen: the discriminator's maps of them, by resolution, where its features are those.
        """
        memory = []
        for door, kind, found in zip(self.doors, self.kinds, self.features(images, seen), strict=True):
            _, _, h, w = found.shape
            places = door(found.flatten(2).transpose(1, 2))
            memory.append(places + kind + _positions(h, w, places.shape[2]).to(places))
        return self.norm(torch.cat(memory, dim=1))

    def cross_entropy(self, memory: Float[Tensor, "b m d"], captions: Sequence[str]) -> Float[Tensor, " b"]:
        """Mean over a caption's tokens of -log p(token | those before it, image), in nats.

        It is 0 for the empty caption, which says nothing of an image.
        """
        given, wanted, counts = self._teach(captions, memory.device)
        seen = self.decoder(
            given,
            attention_mask=torch.ones_like(given),  # padding comes last, where nobody looks at it
            encoder_hidden_states=memory.contiguous(),
            use_cache=False,
        )
        losses = F.cross_entropy(seen.logits.float().transpose(1, 2), wanted, reduction="none")
        return (losses * counts).sum(1) / counts.sum(1).clamp(min=1)

    @torch.no_grad()
    def caption(
        self,
        memory: Float[Tensor, "b m d"],
        num_beams: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[str]:
        """A caption for each image, by the likeliest token, the likeliest of several beams, or a draw.

        Args:
            memory: what `look` gave.
            num_beams: beginnings to keep; 1 takes the likeliest token each time.
            do_sample: draw each token, by torch's own random numbers.
            temperature: of a draw; less than 1 is more typical.
            top_p: draw from the likeliest tokens that make up this share, 0 to 1.
        """
        start = torch.full((len(memory), 1), self.tokens.start, device=memory.device)
        draws = {"temperature": temperature, "top_p": top_p, "top_k": 0} if do_sample else {}
        with evaluating(self):
            found = self.decoder.generate(  # type: ignore[operator]
                start,
                attention_mask=torch.ones_like(start),
                encoder_hidden_states=memory,
                max_new_tokens=self.max_tokens,
                pad_token_id=self.tokens.end,
                num_beams=num_beams,
                do_sample=do_sample,
                **draws,
            )
        return [self.tokens.decode(_until(row, self.tokens.end)) for row in found[:, 1:].tolist()]

    def _teach(
        self, captions: Sequence[str], device: torch.device
    ) -> tuple[Int64[Tensor, "b t"], Int64[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """What it is given at each place, what it is to say there, and where that counts."""
        rows = [
            [self.tokens.start, *tokens, self.tokens.end][: self.max_tokens + 1]
            for tokens in self.tokens.encode(captions)
        ]
        longest = max(map(len, rows))
        framed = torch.tensor([row + [self.tokens.end] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) - 1 if len(row) > 2 else 0 for row in rows], device=device)
        counts = torch.arange(longest - 1, device=device) < lengths[:, None]
        return framed[:, :-1], framed[:, 1:], counts


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout, as for a while in training."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def _decoder(
    tokens: CaptionTokens, max_tokens: int, dim: int, layers: int, heads: int, dropout: float
) -> nn.Module:
    """GPT-2 of that size with cross-attention, from random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=tokens.size,
        n_positions=max_tokens + 1,
        n_embd=dim,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        add_cross_attention=True,
        bos_token_id=tokens.start,
        eos_token_id=tokens.end,
    )
    decoder: nn.Module = GPT2LMHeadModel(config)
    return decoder


def _positions(h: int, w: int, dim: int) -> Float[Tensor, "m d"]:
    """Sines and cosines of where a place stands in its map (arXiv:1706.03762, section 3.5, both ways).

    By its share of the map's height and width, so that maps of different sizes speak of the same places.
    """
    rates = torch.exp(torch.arange(dim // 4) * (-math.log(100.0) / max(dim // 4 - 1, 1))) * 2 * math.pi
    y, x = ((torch.arange(n) + 0.5) / n for n in (h, w))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    angles = grid[:, :, None] * rates * 4
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
