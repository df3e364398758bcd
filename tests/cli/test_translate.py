"""`imagen-pl translate`, and the verbs that refuse a translator."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.cli.project import read_pictures
from imagen_pl.demo.facts import Knowledge
from imagen_pl.demo.studio import Studio
from imagen_pl.demo.uploads import Uploads
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import to_pil, to_uint8
from imagen_pl.inference.translation import translated, unknown_domain
from tests.helpers.commands import one_line_error
from tests.helpers.image_files import noise, write_images
from tests.helpers.runs import REPOSITORY, read_state

RUN = "runs/translator"
FLUENT, NOTO = "fluent style", "noto style"


def tiny_recipe(encoder: Path) -> dict[str, Any]:
    """The shipped recipe with narrow networks, on emoji, whose domains are their styles."""
    # The whole image is drawn, since at the start of a training a residual is almost nothing.
    drawer = {"channels": {8: 8, 16: 4}, "style_dim": 8, "text_dim": 16, "residual": False}
    source = {"styles": ["fluent", "noto"], "style_captions": True}
    return {
        "growth": {"stages": [{"resolution": 16, "kimg": 0.016, "batch_size": 4}]},
        "samples": {"every_kimg": 0.008, "columns": 3},
        "checkpoint": {"monitor": None},
        "model": {
            "generator": {"init_args": drawer},
            "discriminator": {"init_args": {"channels": {4: 8, 8: 8, 16: 8}, "final_dim": 8, "text_dim": 16}},
            "text_encoder": {"init_args": {"name": str(encoder)}},
            "metrics": [],
        },
        "data": {
            "source": {"class_path": "imagen_pl.data.sources.emoji.EmojiSource", "init_args": source},
            "val_samples": 4,
            "num_workers": 0,
        },
        "trainer": {"accelerator": "cpu", "max_steps": 8, "precision": "32-true"},
    }


@pytest.fixture(scope="module")
def trained_once(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe(bert)))
    recipe = REPOSITORY / "configs/experiment/translator.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(recipe), "--config", "tiny.yaml", "--name", "translator"]) == 0
    for seed, name in enumerate(("a.png", "b.png")):
        noise(16, 16, seed).save(folder / name)
    return folder


@pytest.fixture
def folder(trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cells(sheet: Image.Image, columns: int, rows: int = 1) -> list[np.ndarray]:
    """The pictures of a grid, from left to right and from top to bottom."""
    step = (sheet.height - 6) // rows
    corners = [(6 + 102 * x, 6 + step * y) for y in range(rows) for x in range(columns)]
    rgb = sheet.convert("RGB")
    return [np.asarray(rgb.crop((x, y, x + 96, y + 96)), dtype=np.int16) for x, y in corners]


@pytest.mark.usefixtures("folder")
def test_the_recipe_trains_and_keeps_its_domains() -> None:
    state = read_state(Path(f"{RUN}/checkpoints/last.ckpt"))
    assert sorted(state["captions"]) == [FLUENT, NOTO]  # type: ignore[call-overload]
    sheet = Image.open(max(Path(f"{RUN}/samples").glob("*.png")))
    assert sheet.width == 6 + 3 * 102
    names = Path(f"{RUN}/metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("cycle", "style_reconstruction", "style_diversity"):
        assert f"train/g_{name}" in names


@pytest.mark.usefixtures("folder")
def test_translate_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["translate", RUN, "a.png", "b.png", "--to", FLUENT, NOTO, "--num_images", "2", "--seed", "3"]
    assert main([*words, "--singles", "single"]) == 0
    output = capsys.readouterr()
    assert "translated.png: one row for each picture, then 'fluent style', 'noto style'" in output.out
    assert output.err == ""
    with Image.open("translated.png") as sheet:
        assert sheet.width == 6 + 5 * 102
        assert sheet.info["to"] == f"{FLUENT}\n{NOTO}"
        assert sheet.info["seed"] == "3"
        source, first, second, other, _, *below = cells(sheet, 5, 2)
    with Image.open("a.png") as given:
        assert np.array_equal(source, np.asarray(given.resize((96, 96), Image.Resampling.NEAREST)))
    for one, two in ((first, second), (first, other), (first, below[1])):
        assert np.abs(one - two).max() > 0
    assert sorted(file.name for file in Path("single").iterdir()) == [
        f"{stem}-{k:02d}.png" for stem in "ab" for k in range(4)
    ]
    with Image.open("single/a-01.png") as single:
        assert single.size == (16, 16)
        assert single.info["to"] == FLUENT
        enlarged = np.asarray(single.resize((96, 96), Image.Resampling.NEAREST), dtype=np.int16)
    assert np.array_equal(enlarged, second)
    with Image.open("single/a-00.png") as single, Image.open("single/b-00.png") as another:
        assert np.abs(np.asarray(single, dtype=np.int16) - np.asarray(another)).max() > 0
    assert main(["translate", RUN, "a.png", "--to", FLUENT, "--seed", "4", "--out", "one.webp"]) == 0
    with Image.open("one.webp") as sheet:
        assert sheet.width == 6 + 2 * 102


@pytest.mark.usefixtures("folder")
def test_translate_like_a_reference(capsys: pytest.CaptureFixture[str]) -> None:
    for like in ("a", "b"):
        words = ["translate", RUN, "a.png", "--to", NOTO, "--like", f"{like}.png", "--out", f"{like}2.png"]
        assert main(words) == 0
        assert f"{like}2.png: one row for each picture" in capsys.readouterr().out
    with Image.open("a2.png") as first, Image.open("b2.png") as second:
        assert first.width == 6 + 3 * 102
        assert second.info["like"] == "b.png"
        (source, own, drawn), (same, other, redrawn) = cells(first, 3), cells(second, 3)
    assert np.array_equal(source, same)
    assert np.array_equal(source, own)
    assert not np.array_equal(own, other)
    assert not np.array_equal(drawn, redrawn)


@pytest.mark.usefixtures("folder")
def test_the_demo_of_a_translator_translates_uploads_and_has_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    studio = Studio(load(RUN, device="cpu"), RUN, None, tmp_path / "page")
    uploads = Uploads(studio)
    assert (studio.draws, uploads.can_translate, uploads.can_project) == (False, True, False)
    assert Knowledge.of(studio.model).domains() == ["fluent style", "noto style"]

    by_seed = uploads.translate("a.png", NOTO, 3, 2)
    by_picture = uploads.translate("a.png", NOTO, 3, 2, "b.png")

    assert [label for _, label in by_seed] == ["yours", "noto style (seed 3)", "noto style (seed 4)"]
    assert [label for _, label in by_picture] == ["yours", "noto style, in the style of the other"]
    given = read_pictures(studio.model, [Path("a.png")])
    (expected,) = to_pil(to_uint8(translated(studio.model, given, NOTO, 4)))
    with Image.open(by_seed[2][0]) as drawn:
        assert drawn.resize((16, 16), Image.Resampling.NEAREST).tobytes() == expected.tobytes()
    with pytest.raises(UserError, match="write a style first"):
        uploads.translate("a.png", " ", 0, 1)

    import gradio

    from imagen_pl.demo.page import build_page

    blocks = build_page(studio).blocks.values()
    assert "Draw" not in [block.value for block in blocks if isinstance(block, gradio.Button)]
    assert next(block.label for block in blocks if isinstance(block, gradio.Tab)) == "Translate"


@pytest.mark.usefixtures("folder")
def test_an_unknown_domain_is_named_with_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["translate", RUN, "a.png", "--to", "fluent stile"]) == 0
    assert "Warning: 'fluent stile' is not among the domains of this model" in capsys.readouterr().err
    model = load(RUN)
    assert unknown_domain(model, FLUENT) is None
    assert "try 'fluent style'" in (unknown_domain(model, "fluent stile") or "")


@pytest.mark.usefixtures("folder")
def test_a_release_translates_as_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", RUN, "--to", "safetensors", "--out", "release"]) == 0
    assert "read again from these files, weights differ by 0.0e+00 at most" in capsys.readouterr().out
    for model in (RUN, "release"):
        out = f"{Path(model).name}.png"
        assert main(["translate", model, "a.png", "--to", FLUENT, "--out", out]) == 0
    with Image.open("translator.png") as first, Image.open("release.png") as second:
        assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.usefixtures("folder")
def test_a_pushed_translator_s_card_shows_translations(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", RUN, "me/styles", "--images", "a.png", "b.png"]) == 0
    output = capsys.readouterr().out
    assert "Use it: imagen-pl translate me/styles picture.png --to DOMAIN" in output
    card = ModelCard.load(hub / "me/styles/README.md")
    assert (card.data.pipeline_tag, card.data.tags) == (
        "image-to-image",
        ["gan", "image-to-image", "pytorch-lightning"],
    )
    assert "imagen-pl translate me/styles picture.png --to DOMAIN" in card.text
    assert "model.sample(" not in card.text
    with Image.open(hub / "me/styles/samples.png") as sheet:
        drawn, given = np.asarray(sheet.convert("RGB")), np.asarray(Image.open("a.png").convert("RGB"))
    # Two rows of three: the picture, and both domains, of which the emoji's captions may be published.
    first = Image.fromarray(given).resize((128, 128), Image.Resampling.NEAREST)
    margin = next(k for k in range(20) if (drawn[k : k + 128, k : k + 128] == np.asarray(first)).all())
    assert drawn.shape[1] == 3 * (128 + margin) + margin
    assert main(["translate", "me/styles", "a.png", "--to", FLUENT, "--out", "again.png"]) == 0


@pytest.mark.usefixtures("folder")
def test_a_translator_of_private_data_needs_domains_for_its_card(
    hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(RUN)
    model.description["data"] = {"class_path": "imagen_pl.data.sources.folder.FolderSource"}
    with pytest.raises(UserError, match="need domains to translate to: give them as prompts"):
        model.push_to_hub("me/private", images=[Path("a.png")])
    model.push_to_hub("me/private", images=[Path("a.png")], prompts=[FLUENT])
    with Image.open(hub / "me/private/samples.png") as sheet:
        assert sheet.width < 2 * 150  # the picture and one domain
    assert "captions" not in (hub / "me/private/README.md").read_text()
    missing = one_line_error(["push", RUN, "me/none", "--images", "none.png"], capsys)
    assert "--images none.png: there is no such file" in missing


@pytest.mark.usefixtures("folder")
def test_training_starts_from_another_translator() -> None:
    words = ["fit", "--config", f"{RUN}/config.yaml", "--name", "more", "--trainer.max_steps", "2"]
    assert main([*words, "--model.generator.init_args.init_from", RUN]) == 0
    assert read_state(Path("runs/more/checkpoints/last.ckpt"))["images_seen"] == 4


@pytest.mark.usefixtures("folder")
def test_stargan_with_class_labels(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first StarGAN, as docs/translation.md says: one style a domain, and no losses of styles."""
    recipe = tiny_recipe(bert)
    labels = {
        "class_path": "imagen_pl.models.text.labels.ClassLabels",
        "init_args": {"classes": [FLUENT, NOTO]},
    }
    recipe["model"]["text_encoder"] = labels
    recipe["model"]["generator"]["init_args"] |= {"style_from": "domain", "text_dim": 2}
    recipe["model"]["discriminator"]["init_args"] |= {"text_dim": 2}
    losses = ("text_matching.MismatchedCaptions", "translation.CycleConsistency")
    recipe["model"]["losses"] = [{"class_path": f"imagen_pl.losses.{name}"} for name in losses]
    Path("stargan.yaml").write_text(yaml.safe_dump(recipe))
    whole = str(REPOSITORY / "configs/experiment/translator.yaml")
    assert main(["fit", "--config", whole, "--config", "stargan.yaml", "--name", "stargan"]) == 0
    assert "Try it: imagen-pl translate runs/stargan picture.png --to DOMAIN" in capsys.readouterr().out
    words = ["translate", "runs/stargan", "a.png", "--to"]
    assert main([*words, NOTO]) == 0
    said = one_line_error([*words, NOTO, "--like", "b.png"], capsys)
    assert "this model has one style for each domain: a reference picture has no effect" in said
    assert "'noto stile' is none of the 2 classes of this model" in one_line_error(
        [*words, "noto stile"], capsys
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.png", "--to", NOTO], "missing.png: there is no such file"),
        (["a.png", "--to", NOTO, "--like", "missing.png"], "missing.png: there is no such file"),
        (["a.png", "--to", " "], "the prompt is empty"),
        (["a.png", "--to", NOTO, "--out", "a.gif"], "--out a.gif must be a .png, .webp or .jpg file"),
        (["a.png", "--to", NOTO, "--out", "./a.png"], "--out a.png is a picture to read: name another file"),
        (["a.png", "--to", NOTO, "--num_images", "0"], "--num_images 0 must be 1 or more"),
        (["a.png", "--to", NOTO, "--seed", str(2**64)], "is out of range: it must be less than 2^64"),
        (["broken.png", "--to", NOTO], "broken.png cannot be read as a picture"),
        (
            ["a.png", "--to", NOTO, "--like", "b.png", "--num_images", "2"],
            "--num_images draws several styles, and --like gives one: leave one of them out",
        ),
        (
            ["a.png", "sub/a.png", "--to", NOTO, "--singles", "s"],
            "--singles s: two pictures have the same name; translate them one by one",
        ),
    ],
)
def test_bad_input_gives_one_line_error(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    write_images(folder, ["sub/a.png"])
    assert said in one_line_error(["translate", RUN, *words], capsys)


@pytest.mark.usefixtures("folder")
def test_other_generators_do_not_translate(capsys: pytest.CaptureFixture[str]) -> None:
    said = one_line_error(["translate", "icons", "a.png", "--to", NOTO], capsys)
    assert "this model's generator is a StyleGenerator, which does not translate pictures: train one" in said


@pytest.mark.parametrize(
    "words",
    [
        ["sample", RUN, "bell"],
        ["interpolate", RUN, "bell", "cat", "--out", "film.gif"],
        ["edit", RUN, "bell", "--to", "cat"],
        ["variants", RUN, "bell"],
        ["project", RUN, "a.png", "--prompt", "bell"],
        ["fit-encoder", RUN, "--out", "e.safetensors"],
        ["evaluate", RUN],
        ["export", RUN, "--to", "onnx", "--out", "onnx"],
        ["predict", "--config", f"{RUN}/config.yaml"],
    ],
)
@pytest.mark.usefixtures("folder")
def test_verbs_that_draw_captions_name_the_right_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = one_line_error(words, capsys)
    assert "is a Translator, which changes given pictures: use `imagen-pl translate " in said


@pytest.mark.usefixtures("folder")
def test_references_are_refused_where_a_domain_has_one_style() -> None:
    model = load(RUN)
    model.generator.style_from = "domain"  # type: ignore[assignment]
    image = torch.zeros(1, 3, 16, 16)
    with pytest.raises(UserError, match="a reference picture has no effect"):
        translated(model, image, NOTO, reference=image)
