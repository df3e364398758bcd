"""`imagen-pl sample`: images, metadata, prompt files, and what is refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import load
from tests.helpers.commands import one_line_error
from tests.helpers.drawn import close, same
from tests.helpers.runs import Tiny


def test_sample_draws_one_row_per_prompt(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a red heart", "a cat", "--num_images", "3", "--seed", "7", "--out", "out/x.png"]
    assert main(["sample", str(trained.run), *words, "--singles", "single"]) == 0
    assert "out/x.png: 6 pictures of 8 px" in capsys.readouterr().out
    sheet = Image.open("out/x.png")
    assert sheet.width > 3 * 128
    assert sheet.height > 2 * 128
    names = sorted(p.name for p in Path("single").iterdir())
    assert names == [f"00000{row}-{k}.png" for row in range(2) for k in range(3)]
    expected = load(trained.run).sample(["a red heart", "a cat"], seed=7, num_images=3)
    assert all(same(Image.open(f"single/{n}"), e) for n, e in zip(names, expected, strict=True))


def test_pictures_can_be_traced_as_svg(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(trained.run), "a red heart", "--seed", "7", "--out", "heart.svg"]) == 0
    assert "heart.svg: 1 picture of 8 px" in capsys.readouterr().out
    text = Path("heart.svg").read_text()
    assert 'viewBox="0 0 512 512"' in text
    assert "prompt: a red heart; seed: 7" in text
    assert "<path " in text
    words = ["a red heart", "--num_images", "2", "--singles", "single", "--format", "svg"]
    assert main(["sample", str(trained.run), *words]) == 0
    assert sorted(path.name for path in Path("single").iterdir()) == ["000000-0.svg", "000000-1.svg"]
    Path("p.txt").write_text("a cat\n")
    words = ["--prompts", "p.txt", "--out", "pictures", "--format", "svg"]
    assert main(["sample", str(trained.run), *words]) == 0
    assert Path("pictures/000000.svg").read_text().startswith("<svg ")


def test_an_svg_file_holds_one_picture(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(trained.run), "a cat", "a dog", "--num_images", "2", "--out", "x.svg"]
    message = "--out x.svg holds one picture: for 4 of them, write --singles DIR --format svg"
    assert message in one_line_error(words, capsys)


def test_guidance_is_used_and_in_the_file_s_metadata(trained: Tiny) -> None:
    words = ["sample", str(trained.run), "a cat", "--guidance", "2.5", "--singles", "single", "--seed", "4"]
    assert main(words) == 0
    with Image.open("single/000000.png") as picture:
        assert picture.info["guidance"] == "2.5"
        assert same(picture, load(trained.run).sample("a cat", seed=4, guidance=2.5)[0])
    with Image.open("sample.png") as sheet:
        assert sheet.info["guidance"] == "2.5"
    Path("p.txt").write_text("a cat\n")
    words = ["sample", str(trained.run), "--prompts", "p.txt", "--out", "pictures", "--guidance", "0"]
    assert main(words) == 0
    with Image.open("pictures/000000.png") as picture:
        assert picture.info["guidance"] == "0.0"
        assert same(picture, load(trained.run).sample("a cat", guidance=0.0)[0])


def test_images_are_refined_by_default_with_a_prior(trained: Tiny) -> None:
    model = load(trained.run)
    assert model.refine_steps(None) == 20
    assert same(model.sample("a cat")[0], model.sample("a cat", refine=20)[0])
    assert not same(model.sample("a cat")[0], model.sample("a cat", refine=0)[0])
    assert main(["sample", str(trained.run), "a cat", "--singles", "automatic"]) == 0
    with Image.open("automatic/000000.png") as picture:
        assert picture.info["refine"] == "20"
    model.generator.register_module("prior", None)
    assert model.refine_steps(None) == 0
    with pytest.raises(UserError, match="has no prior"):
        model.refine_steps(1)


def test_an_empty_prompt_is_refused(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["sample", str(trained.run), "a cat", " "],
        ["edit", str(trained.run), "a cat", "--to", ""],
        ["interpolate", str(trained.run), "a cat", ""],
    ):
        assert main(words) == 2
        assert "prompt 2 of 2 is empty: write what to draw" in capsys.readouterr().err


def test_refined_images_equal_those_of_sample_and_are_in_the_metadata(trained: Tiny) -> None:
    words = ["sample", str(trained.run), "a cat", "--refine", "3", "--singles", "single", "--seed", "4"]
    assert main(words) == 0
    model = load(trained.run)
    with Image.open("single/000000.png") as picture:
        assert picture.info["refine"] == "3"
        assert same(picture, model.sample("a cat", seed=4, refine=3)[0])
        assert not same(picture, model.sample("a cat", seed=4)[0])
    Path("p.txt").write_text("a cat\n")
    words = ["sheet", str(trained.run), "p.txt", "--out", "drafts.html", "--num_images", "1", "--refine", "3"]
    assert main(words) == 0
    assert "--refine 3" in Path("drafts.html").read_text()


def test_sample_writes_sample_png_by_default(trained: Tiny) -> None:
    assert main(["sample", str(trained.run), "a cat"]) == 0
    labelled = Image.open("sample.png").height
    assert main(["sample", str(trained.run), "a cat", "--plain"]) == 0
    assert Image.open("sample.png").height < labelled


def test_file_of_prompts_gives_a_data_set(trained: Tiny) -> None:
    rows = [
        {"prompt": "a red heart", "id": 5, "tags": ["x", "y"]},
        {"prompt": "a cat", "seed": 99, "id": 6, "file_name": "old.png"},
    ]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--prompts", "p.jsonl", "--out", "pictures", "--num_images", "2", "--seed", "40"]
    assert main(["sample", str(trained.run), *words]) == 0
    found = [json.loads(line) for line in Path("pictures/metadata.jsonl").read_text().splitlines()]
    cat = {"prompt": "a cat", "id": 6, "source_file_name": "old.png"}
    assert found == [
        {"file_name": "000000-0.png", "prompt": "a red heart", "seed": 40, "id": 5, "tags": ["x", "y"]},
        {"file_name": "000000-1.png", "prompt": "a red heart", "seed": 41, "id": 5, "tags": ["x", "y"]},
        {"file_name": "000001-0.png", "seed": 99, **cat},
        {"file_name": "000001-1.png", "seed": 100, **cat},
    ]
    model = load(trained.run)
    for row in found:
        picture = Image.open(Path("pictures") / row["file_name"])
        assert close(picture, model.sample(row["prompt"], seed=row["seed"])[0])


def test_the_folder_opens_as_a_hugging_face_imagefolder(
    trained: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    Path("p.csv").write_text("prompt,id\na red heart,5\na cat,6\n")
    assert main(["sample", str(trained.run), "--prompts", "p.csv", "--out", "pictures"]) == 0
    opened = datasets.load_dataset(
        "imagefolder", data_dir="pictures", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert opened["prompt"] == ["a red heart", "a cat"]
    assert [str(i) for i in opened["id"]] == ["5", "6"]
    assert opened[0]["image"].size == (8, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name at least one prompt"),
        (["a cat", "--prompts", "p.txt"], "not both"),
        (["--prompts", "p.txt"], "name it with --out DIR"),
        (["--prompts", "p.txt", "--out", "x.png"], "must be a folder"),
        (["--prompts", "p.txt", "--out", "d", "--singles", "s"], "--singles goes with prompts on the line"),
        (["--prompts", "none.txt", "--out", "d"], "there is no such file"),
        (["--prompts", "p.txt", "--out", "full"], "already contains a metadata.jsonl"),
        (["a cat", "--out", "x.gif"], "must be a .png, .webp or .jpg file"),
        (["a cat", "--num_images", "0"], "--num_images 0 must be 1 or more"),
        (["a cat", "--truncation", "2"], "--truncation 2.0 is not between 0 and 1"),
        (["a cat", "--refine", "201"], "--refine 201 is not a whole number from 0 to 200"),
        (["a cat", "--guidance", "-1"], "--guidance -1.0 is not between 0 and 10"),
        (["--prompts", "p.txt", "--out", "d", "--guidance", "11"], "--guidance 11.0 is not between 0 and 10"),
    ],
)
def test_bad_input_of_sample_gives_one_line_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a cat\n")
    Path("full").mkdir()
    Path("full/metadata.jsonl").write_text("{}\n")
    output = one_line_error(["sample", "nowhere", *words], capsys)
    assert message in output


def test_sample_without_prompts_gives_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    output = one_line_error(["sample", "nowhere", "a cat"], capsys)
    assert output.startswith(
        "error: there is no run, checkpoint or release nowhere; emoji, icons and upsampler ship with"
    )
