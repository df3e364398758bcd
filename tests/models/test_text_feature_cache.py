"""The cache of encoded captions: equal to the encoder, shared by processes, and safe on errors."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from imagen_pl.errors import UserError
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.models.text.feature_cache import TextCache
from imagen_pl.types import TextFeatures
from tests.helpers.fakes import TinyText
from tests.helpers.text_encoders import save_bert

CAPTIONS = ["a red heart", "cat", "", "🧁 noto", "two\nlines", "x" * 3000, "a  cat "]
FORK = multiprocessing.get_context("fork")


class Interrupted(TinyText):
    """Stops at the given caption."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        if self.at in captions:
            raise KeyboardInterrupt
        return super().encode(captions, device)


class Lookups(Dataset[torch.Tensor]):
    """What a data set does in a worker: look a caption up."""

    def __init__(self, cache: TextCache, captions: list[str]) -> None:
        self.cache, self.captions = cache, captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.cache([self.captions[i]]).pooled[0]


def many(count: int) -> list[str]:
    return [f"number {i}" for i in range(count)]


def same(a: TextFeatures, b: TextFeatures) -> None:
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.pooled, b.pooled)


# ------------------------------------------------------------------ values


def test_cached_features_equal_the_encoder_s(tmp_path: Path) -> None:
    encoder = TinyText()
    same(TextCache.build(encoder, CAPTIONS, folder=tmp_path)(CAPTIONS), encoder.encode(CAPTIONS))


def test_cached_features_of_a_real_encoder_are_equal_to_half_precision(tmp_path: Path) -> None:
    encoder = FrozenTextEncoder(str(save_bert(tmp_path / "bert")))
    captions = [*CAPTIONS, "\ud83d half a pair of surrogates"]
    kept = TextCache.build(encoder, captions, folder=tmp_path)(captions)
    fresh = encoder.encode(captions)
    assert kept.tokens.dtype == kept.pooled.dtype == torch.float32
    assert torch.equal(kept.mask, fresh.mask)
    torch.testing.assert_close(kept.tokens, fresh.tokens, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(kept.pooled, fresh.pooled, atol=1e-3, rtol=1e-3)


def test_rows_are_in_the_requested_order_and_padded_to_the_longest(tmp_path: Path) -> None:
    encoder = TinyText()
    cache = TextCache.build(encoder, ["abc", "a", "ab"], folder=tmp_path)
    same(cache(["ab", "a", "ab"]), encoder.encode(["ab", "a", "ab"]))
    assert cache(["a"]).tokens.shape == (1, 1, 16)


def test_unknown_caption_is_a_key_error(tmp_path: Path) -> None:
    cache = TextCache.build(TinyText(), ["cat"], folder=tmp_path)
    with pytest.raises(KeyError, match="'dog' is not in"):
        cache(["cat", "dog"])


def test_cache_file_is_in_the_package_s_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEN_PL_CACHE", str(tmp_path))
    assert TextCache.build(TinyText(), ["cat"]).path == tmp_path / "text" / "tiny-16-8.sqlite"


# ------------------------------------------------------------------ nothing is encoded twice


def test_nothing_is_encoded_twice(tmp_path: Path) -> None:
    encoder = TinyText()
    TextCache.build(encoder, ["b", "a", "b", "a"], folder=tmp_path)
    assert sorted(encoder.encoded) == ["a", "b"]
    TextCache.build(encoder, iter(["a", "b", "c"]), folder=tmp_path)
    assert sorted(encoder.encoded) == ["a", "b", "c"]


def test_encoders_do_not_share_features(tmp_path: Path) -> None:
    TextCache.build(TinyText(16), ["a"], folder=tmp_path)
    narrow = TinyText(8)
    assert TextCache.build(narrow, ["a"], folder=tmp_path)(["a"]).dim == 8
    assert narrow.encoded == ["a"]


def test_interrupted_build_keeps_the_features_encoded_so_far(tmp_path: Path) -> None:
    captions, interrupted = many(300), Interrupted(at="number 290")
    with pytest.raises(KeyboardInterrupt):
        TextCache.build(interrupted, captions, folder=tmp_path)
    assert len(interrupted.encoded) >= 100
    encoder = TinyText()
    cache = TextCache.build(encoder, captions, folder=tmp_path)
    assert sorted(encoder.encoded + interrupted.encoded) == sorted(captions)
    same(cache(captions), TinyText().encode(captions))


# ------------------------------------------------------------------ batches


class Batches(TinyText):
    """Keeps the number of captions of each batch, and the tokens of its longest and shortest."""

    def __init__(self) -> None:
        super().__init__(max_tokens=64)
        self.sizes: list[tuple[int, int, int]] = []

    def encode(self, captions: Sequence[str], device: torch.device | str = "cpu") -> TextFeatures:
        features = super().encode(captions, device)
        tokens = features.mask.sum(1)
        self.sizes.append((len(captions), int(tokens.max()), int(tokens.min())))
        return features


def test_batches_have_captions_of_one_length_and_about_as_many_tokens(tmp_path: Path) -> None:
    captions = [f"{i:0{length}}" for i in range(200) for length in (10, 20, 60)]
    encoder = Batches()
    TextCache.build(encoder, captions, folder=tmp_path)
    assert all(longest == shortest for _, longest, shortest in encoder.sizes)
    assert [size for size, longest, _ in encoder.sizes if longest == 10] == [102, 98]
    assert [size for size, longest, _ in encoder.sizes if longest == 60] == [17] * 11 + [13]


def test_captions_of_rare_lengths_share_a_batch(tmp_path: Path) -> None:
    encoder = Batches()
    TextCache.build(encoder, ["x" * length for length in range(1, 20)], folder=tmp_path)
    assert encoder.sizes == [(16, 16, 1), (3, 19, 17)]


def test_a_caption_longer_than_a_batch_is_encoded_alone(tmp_path: Path) -> None:
    encoder = TinyText()
    TextCache.build(encoder, ["x" * 3000, "y" * 3000], folder=tmp_path)
    assert sorted(encoder.encoded) == ["x" * 3000, "y" * 3000]


def test_features_do_not_depend_on_the_other_captions_of_the_batch(tmp_path: Path) -> None:
    """Beyond rounding: 1e-3 in half precision for numbers with a mean square of one."""
    encoder = FrozenTextEncoder(str(save_bert(tmp_path / "bert")))
    captions = [f"red {'heart ' * (i % 5)}cat {i}" for i in range(64)]
    together = TextCache.build(encoder, captions, folder=tmp_path / "together")
    for caption in captions[:8]:
        alone = TextCache.build(encoder, [caption], folder=tmp_path / "alone")
        for mine, other in zip(
            (alone([caption]).tokens, alone([caption]).pooled),
            (together([caption]).tokens, together([caption]).pooled),
            strict=True,
        ):
            torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)


# ------------------------------------------------------------------ many processes


def _build(folder: Path, captions: list[str]) -> None:
    TextCache.build(TinyText(), captions, folder=folder)


def test_two_processes_can_build_the_cache_at_once(tmp_path: Path) -> None:
    captions = many(600)
    parts = (captions, captions[::-1])
    processes = [FORK.Process(target=_build, args=(tmp_path, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    encoder = TinyText()
    cache = TextCache.build(encoder, captions, folder=tmp_path)
    assert encoder.encoded == []
    same(cache(captions), TinyText().encode(captions))


def test_cache_can_be_read_before_and_after_a_fork(tmp_path: Path) -> None:
    captions = many(8)
    cache = TextCache.build(TinyText(), captions, folder=tmp_path)
    first = cache(captions)  # opened before the fork
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(cache(captions).pooled, first.pooled) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    same(cache(captions), first)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_cache_can_be_read_in_data_loader_workers(tmp_path: Path, start: str) -> None:
    captions = many(8)
    cache = TextCache.build(TinyText(), captions, folder=tmp_path)
    expected = cache(captions).pooled  # opened here too
    loader = DataLoader(Lookups(cache, captions), batch_size=2, num_workers=1, multiprocessing_context=start)
    assert torch.equal(torch.cat(list(loader)), expected)


# ------------------------------------------------------------------ errors


def test_unwritable_folder_gives_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written .* IMAGEN_PL_CACHE") as output:
        TextCache.build(TinyText(), ["cat"], folder=tmp_path / "file" / "text")
    assert "\n" not in str(output.value)


def test_damaged_file_gives_one_line_error(tmp_path: Path) -> None:
    encoder = TinyText()
    path = TextCache.build(encoder, ["cat"], folder=tmp_path).path
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(UserError, match=r"tiny-16-8\.sqlite is damaged .*: delete it") as output:
        TextCache.build(encoder, ["cat"], folder=tmp_path)
    assert "\n" not in str(output.value)


def test_file_damaged_after_the_build_gives_one_line_error(tmp_path: Path) -> None:
    cache = TextCache.build(TinyText(), ["cat"], folder=tmp_path)
    cache.path.write_bytes(b"not a database " * 1000)
    with pytest.raises(UserError, match=r"cannot be read any more .*: delete it") as output:
        cache(["cat"])
    assert "\n" not in str(output.value)


def _build_on_a_full_disk(folder: Path, output: multiprocessing.SimpleQueue[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))  # no file may grow beyond 32 kB
    try:
        TextCache.build(TinyText(), many(1000), folder=folder)
    except UserError as error:
        output.put(str(error))
    else:
        output.put("nothing went wrong")


def test_full_disk_gives_one_line_error_and_keeps_earlier_features(tmp_path: Path) -> None:
    kept = many(20)
    TextCache.build(TinyText(), kept, folder=tmp_path)
    output = FORK.SimpleQueue()
    process = FORK.Process(target=_build_on_a_full_disk, args=(tmp_path, output))
    process.start()
    process.join(120)
    message = output.get()
    assert "cannot be written" in message
    assert "free some space" in message
    assert "\n" not in message
    encoder = TinyText()
    same(TextCache.build(encoder, kept, folder=tmp_path)(kept), TinyText().encode(kept))
    assert encoder.encoded == []


def test_the_file_is_plain_sqlite(tmp_path: Path) -> None:
    """For inspection by hand: one row a caption."""
    cache = TextCache.build(TinyText(), ["cat", "dog"], folder=tmp_path)
    with sqlite3.connect(cache.path) as connection:
        assert connection.execute("SELECT count(*) FROM features").fetchone() == (2,)
