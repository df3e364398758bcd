"""The BERT that is read without `transformers` equals the one of `transformers`, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from imagen_pl.models.text import encoder as text_encoder
from imagen_pl.models.text.bert import read_config
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.types import TextFeatures

CAPTIONS = ["", "a cupcake, fluent style", "café 中文 ÀÉ \x00 tab\t", "x " * 200, "half a pair \ud800"]


@pytest.fixture
def by_transformers(monkeypatch: pytest.MonkeyPatch) -> FrozenTextEncoder:
    monkeypatch.setattr(text_encoder, "read_config", lambda _: None)
    return FrozenTextEncoder()


def same(a: TextFeatures, b: TextFeatures) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask) and torch.equal(a.pooled, b.pooled)


def test_features_are_equal_to_the_bit(by_transformers: FrozenTextEncoder) -> None:
    ours = FrozenTextEncoder.__new__(FrozenTextEncoder)
    ours.__dict__.update(by_transformers.__dict__)
    ours._bert_config = ours._config = read_config(Path(ours._path))
    assert ours._bert_config is not None

    for captions in (CAPTIONS, ["a red heart"], ["a red heart", "blue"], [""]):
        assert same(ours.encode(captions), by_transformers.encode(captions)), captions
    assert ours.fingerprint == by_transformers.fingerprint  # caches of captions stay valid


def test_loading_keeps_the_random_state() -> None:
    state = torch.get_rng_state()

    FrozenTextEncoder().encode(["a red heart"])

    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"model_type": "roberta"}, {"is_decoder": True}])
def test_other_models_use_transformers(
    change: dict[str, object], by_transformers: FrozenTextEncoder, tmp_path: Path
) -> None:
    source, folder = Path(by_transformers._path), tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).symlink_to(source / name)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    assert read_config(folder) is not None

    (folder / "config.json").write_text(json.dumps({**config, **change}))

    assert read_config(folder) is None


def test_folder_without_a_fast_tokenizer_uses_transformers(
    by_transformers: FrozenTextEncoder, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        shutil.copy(Path(by_transformers._path) / name, tmp_path)

    assert read_config(tmp_path) is None
