"""`sheet`, `variants`, `sample --transparent`, and the pages that show them."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/use-cases").glob("*.md"))
HEART, CAT = "a red heart", "a cat, fluent style"
BRIEF = f'prompt,seed,notes\n{HEART},3,"$5 <b> & $6"\n"{CAT}",,\n'


def apart(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def colour_at(picture: Image.Image, at: tuple[int, int]) -> tuple[int, ...]:
    """All channels of one pixel."""
    colour = picture.getpixel(at)
    assert isinstance(colour, tuple)
    return colour


@pytest.fixture
def brief(trained: Tiny) -> Path:
    Path("brief.csv").write_text(BRIEF)
    return Path("brief.csv")


# ------------------------------------------------------------------ sheet


def test_html_sheet_of_drafts(trained: Tiny, brief: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained.run)
    assert main(["sheet", run, str(brief), "--num_images", "2", "--out", "out/drafts.html"]) == 0
    assert capsys.readouterr().out == "out/drafts.html: 4 drafts of 8 px for 2 prompts\n"
    page = Path("out/drafts.html").read_text()
    inside = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in inside]
    model = load(trained.run)
    wanted = [*model.sample(HEART, seed=3, num_images=2), *model.sample(CAT, seed=2, num_images=2)]
    assert [apart(a, b) <= 1 for a, b in zip(pictures, wanted, strict=True)] == [True] * 4
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["seed 3", "seed 4", "seed 2", "seed 3"]
    assert "<p>notes: $5 &lt;b&gt; &amp; $6</p>" in page
    assert page.count("<p>") == 1  # an empty cell is left out
    assert "http" not in page


def test_printed_command_reproduces_a_row(trained: Tiny, brief: Path) -> None:
    words = ["sheet", str(trained.run), str(brief), "--num_images", "1", "--truncation", "0.5"]
    assert main([*words, "--out", "drafts.html"]) == 0
    page = Path("drafts.html").read_text()
    commands = [shlex.split(html.unescape(c)) for c in re.findall(r"<code>(.*?)</code>", page)]
    assert commands[1][:4] == ["imagen-pl", "sample", str(trained.run), CAT]
    assert main([*commands[1][1:], "--singles", "again"]) == 0
    data = re.findall(r'base64,([^"]+)"', page)[1]
    with Image.open("again/000000.png") as again:
        assert apart(again, Image.open(io.BytesIO(base64.b64decode(data)))) <= 1


def pdf_text(data: bytes) -> str:
    """The text of a PDF by matplotlib, without kerning; the only ligature here is fl."""
    output = ""
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL):
        try:
            page = zlib.decompress(stream.rstrip(b"\r\n"))
        except zlib.error:
            continue
        for text in re.findall(rb"BT(.*?)ET", page, re.DOTALL):
            output += b"".join(re.findall(rb"\(((?:\\.|[^\\)])*)\)", text)).decode("latin-1") + "\n"
    return output.replace("\0", "fl")


def test_pdf_sheet_of_drafts(trained: Tiny, brief: Path) -> None:
    for n, pages in ((1, 1), (4, 1), (13, 2)):
        words = ["sheet", str(trained.run), str(brief), "--num_images", str(n)]
        assert main([*words, "--out", f"{n}.pdf"]) == 0
        data = Path(f"{n}.pdf").read_bytes()
        assert data.startswith(b"%PDF")
        assert len(re.findall(rb"/Type /Page\b", data)) == pages
        assert len(re.findall(rb"/Subtype /Image", data)) == 2 * n
    output = pdf_text(Path("4.pdf").read_bytes())
    for text in (HEART, CAT, "notes: $5 <b> & $6", "seed 6", f"imagen-pl sample {trained.run}"):
        assert text in output
    first = Path("4.pdf").read_bytes()
    assert main(["sheet", str(trained.run), str(brief), "--out", "4.pdf"]) == 0
    assert Path("4.pdf").read_bytes() == first


def test_missing_matplotlib_gives_one_line_error(
    trained: Tiny, brief: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["sheet", str(trained.run), str(brief)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not Path("drafts.pdf").exists()


# ------------------------------------------------------------------ variants


def test_variants_have_a_row_per_subject_and_a_column_per_style(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["variants", str(trained.run), "heart", "{style}", "--styles", "flat", "oil", "--num_images", "1"]
    assert main([*words, "--wording", "a {style} {subject}", "--seed", "5"]) == 0
    assert "variants.png: one row per subject; columns flat, oil; seeds from 5" in capsys.readouterr().out
    model = load(trained.run)
    with Image.open("variants.png") as grid:
        assert grid.info["prompt"] == "a flat heart\na oil heart\na flat {style}\na oil {style}"
        drawn = grid.convert("RGB").crop((126, 12, 222, 108)).resize((8, 8), Image.Resampling.NEAREST)
    assert apart(drawn, model.sample("a oil heart", seed=5)[0]) <= 1


def test_styles_are_those_that_the_data_source_declares(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["variants", str(trained.run), "heart"]) == 2
    assert "name the styles with --styles" in capsys.readouterr().err
    config = load(trained.run).save("release") / "config.json"
    for given, known in ((None, "fluent, noto, twemoji"), (["noto"], "noto")):
        description = json.loads(config.read_text())
        source = {"class_path": "imagen_pl.data.sources.emoji.EmojiSource", "init_args": {"styles": given}}
        config.write_text(json.dumps({**description, "data": source}))
        assert main(["variants", "release", "heart", "--num_images", "1"]) == 0
        assert f"columns {known};" in capsys.readouterr().out


# ------------------------------------------------------------------ transparent


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_transparent_images_have_an_alpha_channel(
    trained: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model does not draw white backgrounds, so it is replaced by squares on white.
    square = Image.new("RGB", (8, 8), "white")
    square.paste((200, 30, 40), (2, 2, 6, 6))
    monkeypatch.setattr("imagen_pl.inference.pipeline.to_pil", lambda images: [square] * len(images))
    words = ["sample", str(trained.run), HEART, "--transparent", "--format", kind]
    assert main([*words, "--singles", "cut", "--plain", "--out", f"grid.{kind}"]) == 0
    Path("prompts.txt").write_text(f"{HEART}\n")
    assert main(["sample", *words[1:2], "--prompts", "prompts.txt", *words[3:], "--out", "many"]) == 0
    for file in (f"cut/000000.{kind}", f"many/000000.{kind}"):
        with Image.open(file) as picture:
            assert picture.mode == "RGBA"
            assert [colour_at(picture, at)[3] for at in ((0, 0), (3, 3))] == [0, 255]
            assert colour_at(picture, (0, 0))[1] < 80  # not white, though nobody sees it
    with Image.open(f"grid.{kind}") as grid:
        assert grid.mode == "RGBA"
        assert colour_at(grid, (8, 8))[3] == 0
        assert colour_at(grid, (70, 70))[3] == 255


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", HEART, "--transparent", "--out", "cut.jpg"], "--transparent needs .png or .webp"),
        (["sample", HEART, "--transparent", "--format", "jpg"], "a JPEG file cannot be transparent"),
        (["sheet", "brief.csv", "--out", "drafts.docx"], "drafts.docx must be a .pdf or .html file"),
        (["sheet", "none.csv"], "none.csv: there is no such file"),
        (["sheet", "brief.csv", "--num_images", "0"], "--num_images 0 must be 1 or more"),
        (["variants", "heart", "--out", "grid.gif"], "grid.gif must be a .png, .webp or .jpg file"),
        (["variants", "heart", "--wording", "{subject}"], '--wording "{subject}" must contain {style}'),
        (["variants", "heart", "--truncation", "2"], "--truncation 2.0 is not between 0 and 1"),
    ],
)
def test_bad_input_gives_one_line_error(
    words: list[str], said: str, trained: Tiny, brief: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = one_line_error([words[0], str(trained.run), *words[1:]], capsys)
    assert said in output


# ------------------------------------------------------------------ pages


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_pages_commands_run_and_their_pictures_are_small(page: Path, trained: Tiny) -> None:
    text = page.read_text()
    shutil.copytree(ROOT / "docs/use-cases", "docs/use-cases")
    for command in re.findall(r"^imagen-pl .*", text.replace("\\\n", " "), re.MULTILINE):
        words = [str(trained.run) if word == "emoji" else word for word in shlex.split(command)[1:]]
        # The tiny model was not trained on emoji.
        styles = ["--styles", "fluent", "noto"] if words[0] == "variants" else []
        assert main([*words, *styles]) == 0
        assert Path(words[words.index("--out") + 1]).exists()
    pictures = re.findall(r"!\[[^]]*\]\((\S+)\)", text)
    assert pictures
    for picture in pictures:
        assert (page.parent / picture).stat().st_size < 200_000


def test_page_contains_the_example_brief() -> None:
    brief = (ROOT / "docs/use-cases/brief.csv").read_text()
    assert f"```csv\n{brief}```" in (ROOT / "docs/use-cases/drafts.md").read_text()
