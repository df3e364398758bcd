"""Text encoders of a few kB with random weights, saved to folders as transformers saves real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WIDTH = 16
POSITIONS = 24
_WORDS = ("a", "red", "blue", "heart", "cat", "cupcake", "fluent", "noto", "style", ",")


def _save(folder: Path, model_class: type, config: Any) -> Path:
    torch.manual_seed(0)
    model = model_class(config)
    # Layers start near the identity: without this, captions would hardly differ.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path) -> Any:
    """A tokenizer of a few words and every ASCII letter; [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4."""
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    letters = [chr(ord("a") + i) for i in range(26)]
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = dict.fromkeys([*special, *_WORDS, *letters, *(f"##{letter}" for letter in letters)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }


def _pair(tokenizer: Any) -> dict[str, Any]:
    """Sizes of a text half, as CLIP and SigLIP name them."""
    return {**_sizes(tokenizer), "bos_token_id": 2, "eos_token_id": 3}


_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def save_bert(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    return _save(folder, BertModel, BertConfig(**_sizes(_save_tokenizer(folder))))


def save_roberta(folder: Path) -> Path:
    """Its positions begin after the padding token: of POSITIONS, one is never used."""
    from transformers import RobertaConfig, RobertaModel

    sizes = _sizes(_save_tokenizer(folder))
    return _save(folder, RobertaModel, RobertaConfig(**sizes, bos_token_id=2, eos_token_id=3))


def save_t5(folder: Path) -> Path:
    """With its decoder, as T5 is published."""
    from transformers import T5Config, T5Model

    config = T5Config(
        vocab_size=len(_save_tokenizer(folder)),
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
    )
    return _save(folder, T5Model, config)


def save_clip_text(folder: Path) -> Path:
    from transformers import CLIPTextConfig, CLIPTextModel

    return _save(folder, CLIPTextModel, CLIPTextConfig(**_pair(_save_tokenizer(folder)), projection_dim=8))


def save_clip(folder: Path) -> Path:
    """Both halves, as CLIP is published; its text half is `save_clip_text`'s kind."""
    from transformers import CLIPConfig, CLIPModel

    text = {**_pair(_save_tokenizer(folder)), "projection_dim": 8}
    config = CLIPConfig(text_config=text, vision_config=dict(_VISION), projection_dim=8)
    return _save(folder, CLIPModel, config)


def save_siglip(folder: Path) -> Path:
    """Both halves, as SigLIP is published."""
    from transformers import SiglipConfig, SiglipModel

    text = {**_pair(_save_tokenizer(folder)), "projection_size": WIDTH}
    return _save(folder, SiglipModel, SiglipConfig(text_config=text, vision_config=dict(_VISION)))


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": save_bert,
    "roberta": save_roberta,
    "t5": save_t5,
    "clip_text": save_clip_text,
    "clip": save_clip,
    "siglip": save_siglip,
}
