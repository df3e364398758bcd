"""Captions as numbers, and back: by byte pairs learnt from the data set itself, or by any known tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int32
from torch import Tensor, nn

from imagen_pl.errors import UserError


class CaptionTokens(nn.Module, ABC):
    """Turns captions into numbers. A caption's own are framed by `start` and `end`.

    Attributes, set by the subclass:
        size: how many numbers there are, those that are never used among them.
        start, end: before the first word, and after the last.
    """

    size: int
    start: int
    end: int

    def learn(self, captions: Iterable[str]) -> None:
        """See how captions are worded; one that knows its tokens has nothing to learn."""

    @abstractmethod
    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Numbers of each caption, without `start` and `end`."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The words again; `start`, `end` and what is no token are passed over."""


class BytePairs(CaptionTokens):
    """The pairs that come most often grow together, from single bytes on (arXiv:1508.07909).

    Any text can be written and read back to the letter. All that is learnt is the list of pairs, in a buffer
    of fixed size: it goes with the weights into every checkpoint, and reading it runs no code.

    Args:
        size: largest number of tokens.
    """

    end, start = 0, 1  # 0 ends, so that padding with 0 reads as an end
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
        self._made: Any = None
        self.register_load_state_dict_post_hook(_forget)

    def learn(self, captions: Iterable[str]) -> None:
        from tokenizers import trainers

        learner, letters = _tokenizer({}, []), _letters()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size - self._bytes,
            min_frequency=2,
            initial_alphabet=letters,
            show_progress=False,
        )
        # Sorted: what comes equally often must not depend on the order.
        learner.train_from_iterator(sorted({_clean(caption) for caption in captions}), trainer)
        vocabulary = self._alphabet()
        pairs: list[tuple[int, int]] = []
        for a, b in _pairs_of(learner)[: len(self.merges)]:
            pairs.append((vocabulary[a], vocabulary[b]))
            vocabulary.setdefault(a + b, len(vocabulary) + self._bytes)
        self.merges.fill_(-1)
        if pairs:
            self.merges[: len(pairs)] = torch.tensor(pairs, dtype=torch.int32)
        self._made = None

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
        """The tokenizer of the pairs as they are now, and how many tokens it knows."""
        if self._made is None:
            vocabulary, merges = self._alphabet(), []
            spelt = {number: word for word, number in vocabulary.items()}
            for a, b in self.merges.tolist():
                if a < 0:
                    break
                merges.append((spelt[a], spelt[b]))
                number = vocabulary.setdefault(spelt[a] + spelt[b], len(vocabulary) + self._bytes)
                spelt[number] = spelt[a] + spelt[b]
            self._made = (_tokenizer(vocabulary, merges), len(vocabulary))
        made: tuple[Any, int] = self._made
        return made


class KnownTokens(CaptionTokens):
    """Any tokenizer that `transformers` opens; its vocabulary is not kept with the weights, only its name.

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


def _forget(tokens: nn.Module, _: Any) -> None:
    """Weights were loaded, and other pairs with them."""
    assert isinstance(tokens, BytePairs)
    tokens._made = None


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Byte pairs as `tokenizers` works with them; a space belongs to the word after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    return made


def _letters() -> list[str]:
    """A letter for each of the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _pairs_of(tokenizer: Any) -> list[tuple[str, str]]:
    """What grew together, first things first."""
    import json

    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]


def _clean(caption: str) -> str:
    """Half a pair of surrogates, as JSON files may hold, is no text."""
    return caption.encode(errors="replace").decode()
