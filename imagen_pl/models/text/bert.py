"""BERT's encoder (arXiv:1810.04805) without `transformers`, whose modeling code takes seconds to import.

Features are equal to those of `transformers.BertModel` to the bit; a test compares them. It reads what the
default encoder needs: a local folder with config.json, tokenizer.json and float32 model.safetensors. For
everything else `FrozenTextEncoder` uses `transformers`.

Axes: b batch, t tokens, c channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_FILES = ("config.json", "tokenizer.json", "model.safetensors")
# What this code implements; another value means that `transformers` is used.
_FIXED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT, by the names in its config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int
    model_type: str = "bert"


@dataclass(frozen=True)
class Encoded:
    """last_hidden_state: one vector a token, before any scaling."""

    last_hidden_state: Float[Tensor, "b t c"]


def read_config(folder: Path) -> BertConfig | None:
    """The configuration of a BERT that this file can read; None means: use `transformers`."""
    if not all((folder / name).is_file() for name in _FILES):
        return None
    try:
        stored = json.loads((folder / "config.json").read_text())
        sizes = {name: stored[name] for name in BertConfig.__dataclass_fields__}
        fixed = {name: stored.get(name, value) for name, value in _FIXED.items()}
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            has_names = {"embeddings.word_embeddings.weight"} <= set(weights.keys())
            types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    except (ValueError, KeyError, TypeError, SafetensorError):  # `transformers` says what is wrong
        return None
    readable = fixed == _FIXED and has_names and types <= {"F32", "I64"}
    return (
        BertConfig(**sizes) if readable and sizes["hidden_size"] % sizes["num_attention_heads"] == 0 else None
    )


class Bert(nn.Module):
    """The encoder, its parameters named as in `transformers`; without dropout and without the pooler.

    Args:
        config: its sizes.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Stack(config)

    def forward(self, input_ids: Int64[Tensor, "b t"], attention_mask: Int64[Tensor, "b t"]) -> Encoded:
        """Vectors of tokens.

        Args:
            input_ids: the tokens' numbers.
            attention_mask: 1 where a token is real, 0 where it is padding.
        """
        mask = None
        # Without padding no mask is passed, as in `transformers`: attention then takes another kernel. An
        # exported graph always has a mask, so that it runs with and without padding.
        if torch.compiler.is_exporting() or not bool(attention_mask.all()):
            b, t = input_ids.shape
            mask = attention_mask.bool()[:, None, None, :].expand(b, 1, t, t)
        x = self.embeddings(input_ids)
        for layer in self.encoder.layer:
            x = layer(x, mask)
        return Encoded(x)

    @classmethod
    def from_folder(cls, config: BertConfig, folder: Path) -> Bert | None:
        """The frozen encoder with its weights; None where some are missing."""
        # Not on the meta device, whose first use imports sympy and more, for two seconds. Weights are
        # initialised at random and then replaced; the caller's random state is not changed.
        with torch.random.fork_rng(devices=[]):
            network = cls(config)
        names = network.state_dict().keys()
        with safe_open(folder / "model.safetensors", framework="pt") as stored:
            if not names <= set(stored.keys()):
                return None
            weights = {name: stored.get_tensor(name) for name in names}
        network.load_state_dict(weights, assign=True)
        return network.eval().requires_grad_(False)


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, ids: Int64[Tensor, "b t"]) -> Float[Tensor, "b t c"]:
        positions = torch.arange(ids.shape[1], device=ids.device)
        # In this order, for the same rounding as in `transformers`.
        x = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        normalised: Tensor = self.LayerNorm(x + self.position_embeddings(positions)[None])
        return normalised


class _Heads(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Float[Tensor, "b t c"], mask: Tensor | None) -> Float[Tensor, "b t c"]:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = _Heads(config)
        self.output = _AddAndNorm(config.hidden_size, config)

    def forward(self, x: Float[Tensor, "b t c"], mask: Tensor | None) -> Float[Tensor, "b t c"]:
        out: Tensor = self.output(self.self(x, mask), x)
        return out


class _AddAndNorm(nn.Module):
    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Float[Tensor, "b t k"], before: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        out: Tensor = self.LayerNorm(self.dense(x) + before)
        return out


class _Intermediate(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _AddAndNorm(config.intermediate_size, config)

    def forward(self, x: Float[Tensor, "b t c"], mask: Tensor | None) -> Float[Tensor, "b t c"]:
        x = self.attention(x, mask)
        out: Tensor = self.output(F.gelu(self.intermediate.dense(x)), x)
        return out


class _Stack(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
