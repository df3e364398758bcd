"""Tokenizers of captions: byte pairs fitted to the data set, or any tokenizer of `transformers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int32
from torch import Tensor, nn

from imagen_pl.errors import UserError


class CaptionTokens(nn.Module, ABC):
    """Turns captions into token numbers.

    Attributes, set by the subclass:
        size: size of the vocabulary, unused numbers included.
        start, end: the tokens before the first word and after the last.
    """

    size: int
    start: int
    end: int

    def fit(self, captions: Iterable[str]) -> None:
        """Fit the vocabulary to captions; does nothing if the vocabulary is fixed."""

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Numbers of each caption, without `start` and `end`."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; `start`, `end` and numbers without a token are skipped."""


class BytePairs(CaptionTokens):
    """Byte-pair encoding, which merges the most frequent pairs of tokens, from bytes up (arXiv:1508.07909).

    Any text can be encoded and decoded without loss. The list of merged pairs is a buffer of fixed size: it
    is saved with the weights in every checkpoint, and loading it runs no code.

    Args:
        size: largest number of tokens.
    """

    end, start = 0, 1  # 0 is the end, so padding with 0 ends a caption
    merges: Int32[Tensor, "n 2"]

    def __init__(self, size: int = 4096) -> None:
        super().__init__()
        self._bytes = 2  # number of the first byte
        if size < self._bytes + 256:
            raise UserError(
                f"captioner.vocab_size {size} must be {self._bytes + 256} or more: each byte is one"
            )
        self.size = size
        self.register_buffer("merges", torch.full((size - 256 - self._bytes, 2), -1, dtype=torch.int32))
        self._cached_tokenizer: Any = None
        self.register_load_state_dict_post_hook(_drop_cached_tokenizer)

    def fit(self, captions: Iterable[str]) -> None:
        from tokenizers import trainers

        fitted, letters = _tokenizer({}, []), _letters()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size - self._bytes,
            min_frequency=2,
            initial_alphabet=letters,
            show_progress=False,
        )
        # Sorted: ties between equally frequent pairs must not depend on the order of the captions.
        fitted.train_from_iterator(sorted({_clean(caption) for caption in captions}), trainer)
        vocabulary = self._alphabet()
        pairs: list[tuple[int, int]] = []
        for a, b in _pairs_of(fitted)[: len(self.merges)]:
            pairs.append((vocabulary[a], vocabulary[b]))
            vocabulary.setdefault(a + b, len(vocabulary) + self._bytes)
        self.merges.fill_(-1)
        if pairs:
            self.merges[: len(pairs)] = torch.tensor(pairs, dtype=torch.int32)
        self._cached_tokenizer = None

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        tokenizer, _ = self._tokenizer()
        found = tokenizer.encode_batch([_clean(caption) for caption in captions], add_special_tokens=False)
        return [one.ids for one in found]

    def decode(self, tokens: Sequence[int]) -> str:
        tokenizer, known = self._tokenizer()
        words: str = tokenizer.decode([t for t in tokens if self._bytes <= t < self._bytes + known])
        return words.removeprefix(" ")

    def _alphabet(self) -> dict[str, int]:
        return {letter: self._bytes + i for i, letter in enumerate(_letters())}

    def _tokenizer(self) -> tuple[Any, int]:
        """The tokenizer of the current pairs, and the number of its tokens."""
        if self._cached_tokenizer is None:
            vocabulary, merges = self._alphabet(), []
            spelt = {number: word for word, number in vocabulary.items()}
            for a, b in self.merges.tolist():
                if a < 0:
                    break
                merges.append((spelt[a], spelt[b]))
                number = vocabulary.setdefault(spelt[a] + spelt[b], len(vocabulary) + self._bytes)
                spelt[number] = spelt[a] + spelt[b]
            self._cached_tokenizer = (_tokenizer(vocabulary, merges), len(vocabulary))
        made: tuple[Any, int] = self._cached_tokenizer
        return made


class KnownTokens(CaptionTokens):
    """Any tokenizer of `transformers`; not its vocabulary but only its name is saved with the weights.

    Args:
        name: a name on the Hugging Face hub, or a folder.
    """

    def __init__(self, name: str) -> None:
        from imagen_pl.storage.hub import from_pretrained

        super().__init__()
        self._tokenizer = from_pretrained("AutoTokenizer", name, what="tokenizer")
        tokenizer = self._tokenizer
        ends = (tokenizer.eos_token_id, tokenizer.sep_token_id)
        starts = (tokenizer.bos_token_id, tokenizer.cls_token_id)
        self.end = next((number for number in ends if number is not None), -1)
        self.start = next((number for number in starts if number is not None), self.end)
        if self.end < 0:
            raise UserError(f"tokenizer {name} has no token that ends a text: name another one")
        self.size = len(tokenizer)

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        words = [_clean(caption) for caption in captions]
        found: list[list[int]] = self._tokenizer(words, add_special_tokens=False).input_ids
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        words: str = self._tokenizer.decode(
            [t for t in tokens if t < self.size], skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        return words.strip()


def _drop_cached_tokenizer(tokens: nn.Module, _: Any) -> None:
    """Drop the tokenizer made from the old pairs, after weights were loaded."""
    assert isinstance(tokens, BytePairs)
    tokens._cached_tokenizer = None


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Byte pairs as a tokenizer of `tokenizers`; a space belongs to the word after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    return made


def _letters() -> list[str]:
    """The printable characters that stand for the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _pairs_of(tokenizer: Any) -> list[tuple[str, str]]:
    """The merged pairs, in the order of merging."""
    import json

    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]


def _clean(caption: str) -> str:
    """Replace lone surrogates, which JSON files may contain, by question marks."""
    return caption.encode(errors="replace").decode()
