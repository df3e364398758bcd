"""Captions by retrieval."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from imagen_pl.cli.main import main
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.errors import UserError
from imagen_pl.inference.retrieval_captioning import RETRIEVAL, RetrievalCaptioner, load_any_captioner
from tests.helpers.image_files import encoded


def test_each_training_image_gets_its_own_caption_also_from_a_file(tmp_path: Path) -> None:
    images = (
        torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )
    captions = [f"pattern {k}" for k in range(6)]
    made = RetrievalCaptioner.fit(captions, images, components=5, side=64)
    made.save(tmp_path)
    for captioner in (made, RetrievalCaptioner.load(tmp_path)):
        assert captioner.caption_batch(images) == captions
        picture = encoded(to_pil_image(images[2]))
        assert captioner.caption(picture) == "pattern 2"
        first, second = captioner.draw(picture, 2)
        assert first == "pattern 2" != second
    (tmp_path / RETRIEVAL).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"retrieval\.safetensors cannot be read"):
        load_any_captioner(tmp_path)


def test_released_captioner_finds_captions_of_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trained captioner, without retrieval, captions the red heart as a japanese button."""
    source = EmojiSource()
    rows = source.load(SkippedImages())["train"]
    asked = [row for row in rows if row.captions[0].startswith(("red heart,", "cat face,", "pizza,"))]
    assert len(asked) >= 5
    for k, row in enumerate(asked):
        (tmp_path / f"{k}.webp").write_bytes(source.image(row))  # type: ignore[arg-type]
        assert main(["caption", "emoji", str(tmp_path / f"{k}.webp")]) == 0
        assert capsys.readouterr().out.strip().endswith(f": {row.captions[0]}")
