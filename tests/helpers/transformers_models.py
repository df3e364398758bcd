"""Text encoders of a few kB, with random weights, saved as transformers saves real ones."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "red", "heart", "cat", "square", "blue", "green", "fluent", "noto", "style", ",")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _vocabulary(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(ord("a") + i) for i in range(26)]
    pieces = [*SPECIAL, *WORDS, *letters[1:], *(f"##{letter}" for letter in letters)]
    path = folder / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    return path


def save_bert(folder: Path, width: int = 16) -> Path:
    """A BERT of one layer, with a tokenizer of letters and a few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    tokenizer = BertTokenizerFast(str(_vocabulary(folder)))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=32,
    )
    tokenizer.save_pretrained(folder)
    BertModel(config).save_pretrained(folder)
    return folder


def save_clip_text(folder: Path, width: int) -> Path:
    """The text half of a CLIP, of one layer."""
    from transformers import BertTokenizerFast, CLIPTextConfig, CLIPTextModel  # type: ignore[attr-defined]

    tokenizer = BertTokenizerFast(str(_vocabulary(folder)))
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    tokenizer.save_pretrained(folder)
    CLIPTextModel(config).save_pretrained(folder)
    return folder
