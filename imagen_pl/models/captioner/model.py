"""A small captioner, from an image to its caption.

Axes: b batch, m positions of all maps of an image, t tokens, d width, c channels, r pixels.
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
    """A transformer decoder with cross-attention to an image's feature maps (as in arXiv:1502.03044).

    It works in two steps, so that one forward pass over the images serves several captions:
    `extract_features`, then `cross_entropy` or `caption`.

    Args:
        features: computes the image's feature maps; None takes EfficientNet-Lite0 at 64 px.
        tokenizer: a tokenizer's name on the Hugging Face hub, or its folder; None fits byte pairs to the
            captions of the data set at the start of the run, and saves them with the weights.
        vocab_size: largest number of tokens of the fitted byte pairs; a named tokenizer has its own.
        max_tokens: longer captions are truncated here.
        dim: d, its width.
        layers: of the transformer.
        heads: of its attention; they divide `dim`.
        dropout: share of activations set to zero in training; small data sets need some.
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
        self.kinds = nn.Parameter(torch.zeros(len(self.doors), dim))  # embedding of the map's number
        self.norm = nn.LayerNorm(dim)
        self.decoder = _decoder(self.tokens, max_tokens, dim, layers, heads, dropout)

    def prepare(self, captions: Callable[[], Iterable[str]]) -> None:
        """Fit the byte pairs, if it uses them; call it before the first batch.

        Args:
            captions: returns those of the training set; called only if they are needed.
        """
        if isinstance(self.tokens, BytePairs):
            self.tokens.fit(captions())

    def extract_features(
        self, images: Float[Tensor, "b _c h w"], discriminator_maps: Mapping[int, Tensor] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Vectors of all positions of the images' maps, for the decoder's cross-attention.

        Args:
            images: -1 to 1, of any size.
            discriminator_maps: the discriminator's feature maps of these images, by resolution; needed if
                `features.needs_discriminator`.
        """
        memory = []
        maps = self.features(images, discriminator_maps)
        for project, map_embedding, x in zip(self.doors, self.kinds, maps, strict=True):
            _, _, h, w = x.shape
            vectors = project(x.flatten(2).transpose(1, 2))
            memory.append(vectors + map_embedding + _positions(h, w, vectors.shape[2]).to(vectors))
        return self.norm(torch.cat(memory, dim=1))

    def cross_entropy(self, memory: Float[Tensor, "b m d"], captions: Sequence[str]) -> Float[Tensor, " b"]:
        """Mean over a caption's tokens of -log p(token | tokens before it, image), in nats.

        It is 0 for the empty caption, which does not describe an image.
        """
        surprise, counted = self._surprise(memory, captions)
        return surprise / counted.clamp(min=1)

    def log_likelihood(self, memory: Float[Tensor, "b m d"], captions: Sequence[str]) -> Float[Tensor, " b"]:
        """log p(caption | image) in nats, over all tokens and the caption's end; 0 for the empty caption."""
        return -self._surprise(memory, captions)[0]

    def _surprise(
        self, memory: Float[Tensor, "b m d"], captions: Sequence[str]
    ) -> tuple[Float[Tensor, " b"], Int64[Tensor, " b"]]:
        """The sum over a caption's tokens of -log p(token | tokens before it, image), and their number."""
        inputs, targets, counted = self._teacher_forcing(captions, memory.device)
        output = self.decoder(
            inputs,
            attention_mask=torch.ones_like(inputs),  # padding comes last, where causal attention ignores it
            encoder_hidden_states=memory.contiguous(),
            use_cache=False,
        )
        losses = F.cross_entropy(output.logits.float().transpose(1, 2), targets, reduction="none")
        return (losses * counted).sum(1), counted.sum(1)

    @torch.no_grad()
    def caption(
        self,
        memory: Float[Tensor, "b m d"],
        num_beams: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[str]:
        """A caption for each image, by greedy decoding, beam search or sampling.

        Args:
            memory: the result of `extract_features`.
            num_beams: beams of the search; 1 is greedy decoding.
            do_sample: sample each token, from torch's global generator.
            temperature: of sampling; less than 1 gives more typical captions.
            top_p: sample from the likeliest tokens that make up this probability, 0 to 1.
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

    def _teacher_forcing(
        self, captions: Sequence[str], device: torch.device
    ) -> tuple[Int64[Tensor, "b t"], Int64[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Input tokens, target tokens, and a mask that is False where the target is padding."""
        rows = [
            [self.tokens.start, *tokens, self.tokens.end][: self.max_tokens + 1]
            for tokens in self.tokens.encode(captions)
        ]
        longest = max(map(len, rows))
        framed = torch.tensor([row + [self.tokens.end] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) - 1 if len(row) > 2 else 0 for row in rows], device=device)
        counted = torch.arange(longest - 1, device=device) < lengths[:, None]
        return framed[:, :-1], framed[:, 1:], counted


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode for a while, and restores its mode afterwards."""
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def _decoder(
    tokens: CaptionTokens, max_tokens: int, dim: int, layers: int, heads: int, dropout: float
) -> nn.Module:
    """GPT-2 of that size with cross-attention, with random weights."""
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
    """Position embeddings: sines and cosines (arXiv:1706.03762, section 3.5), for rows and columns.

    Positions are fractions of the map's height and width, so that they match between maps of other sizes.
    """
    rates = torch.exp(torch.arange(dim // 4) * (-math.log(100.0) / max(dim // 4 - 1, 1))) * 2 * math.pi
    y, x = ((torch.arange(n) + 0.5) / n for n in (h, w))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    angles = grid[:, :, None] * rates * 4
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
