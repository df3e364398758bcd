"""The page for static hosts: its files, what is in them, and what it refuses."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.export import open_onnx
from imagen_pl.inference.packed_weights import BITS
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.web_export import SITE, PageTexts, export_web
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.latents import latents
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.models.text.labels import ClassLabels
from imagen_pl.types import Growth
from tests.helpers.runs import Tiny
from tests.helpers.upscalers import random_upscaler
from tests.inference.test_packed_weights import unpack_values

pytest.importorskip("onnxruntime")
SOURCE = SITE.parent / "source"
TEXTS = PageTexts("tiny", ["a red heart"], "# Card")


def test_the_bundle_was_built_from_these_sources() -> None:
    """After a change of imagen_pl/web/source, run `make web`."""
    digest = hashlib.sha256()
    paths = {p.relative_to(SOURCE).as_posix(): p for p in SOURCE.rglob("*") if p.is_file()}
    for name in sorted(name for name in paths if not name.startswith("node_modules/")):
        digest.update(name.encode() + b"\0" + paths[name].read_bytes() + b"\0")
    assert (SITE / "source.sha256").read_text().strip() == digest.hexdigest()


def test_licences_of_all_bundled_packages_are_in_the_site() -> None:
    text = (SITE / "THIRD_PARTY.txt").read_text()
    packages = json.loads((SOURCE / "package.json").read_text())["dependencies"]
    for name, version in packages.items():
        assert f"## {name} {version}\n" in text
    assert text.count("Copyright") >= len(packages)


def read(out: Path, file: dict[str, Any]) -> bytes:
    """A file that site.json describes, unpacked."""
    content = (out / file["path"]).read_bytes()
    assert len(content) == file["bytes"]
    assert hashlib.sha256(content).hexdigest().startswith(file["hash"])
    return gzip.decompress(content) if file["path"].endswith(".gz") else content


def open_network(out: Path, name: str, folder: Path) -> Any:
    """A network of the site, from its files alone."""
    described = json.loads((out / "site.json").read_text())["files"][name]
    packed, place, values = read(out, described["weights"]), 0, []
    for count in described["tensors"]:
        groups, bits = -(-count // 128), described["bits"]
        size = 2 * count if bits == 0 else 4 * groups + bits // 8 * count + -(-count * (bits % 8) // 8)
        values.append(unpack_values(packed[place : place + size], count, bits))
        place += size
    assert place == len(packed)
    (folder / f"{name}.weights").write_bytes(b"".join(each.tobytes() for each in values))
    (folder / f"{name}.onnx").write_bytes(read(out, described["graph"]))
    return open_onnx(str(folder / f"{name}.onnx"))


@pytest.fixture(scope="module")
def exported(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page of the tiny run, and what the command printed."""
    out, printed = tmp_path_factory.mktemp("exported") / "site", io.StringIO()
    words = ["export", str(trained_once / "runs/tiny"), "--to", "web", "--examples", "a cat"]
    with contextlib.redirect_stdout(printed):
        assert main([*words, "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_the_files_of_the_site_draw_what_the_model_draws(
    exported: tuple[Path, str], trained_once: Path, tmp_path: Path
) -> None:
    out, output = exported
    found = re.search(r"images differ by (\S+) at most from PyTorch's", output)
    assert found is not None
    assert float(found[1]) <= 2e-3
    model = load(trained_once / "runs/tiny", device="cpu")
    site = json.loads((out / "site.json").read_text())
    assert (site["width"], site["height"], site["latent_dim"]) == (8, 8, 8)
    assert (site["name"], site["examples"], site["factor"]) == ("tiny", ["a cat"], 1)
    assert read(out, site["files"]["card"]).startswith(b"---\nlicense: mit")
    reader, drawer = (open_network(out, name, tmp_path) for name in ("text_encoder", "generator"))
    encoder = model.text_encoder
    assert isinstance(encoder, FrozenTextEncoder)
    for seed, caption in enumerate(["a red heart", "a cat, fluent style", "x"]):
        z = latents([0], seed, 8)
        (image,) = drawer(z, *reader(*encoder.tokenize([caption])))
        expected = model.generator(z, encoder.encode([caption]), model.growth).clamp(-1, 1)
        torch.testing.assert_close(image, expected, atol=2e-3, rtol=0)


def test_the_service_worker_lists_every_file(exported: tuple[Path, str]) -> None:
    out, _ = exported
    found = re.search(r"^const LIST = (.*);$", (out / "sw.js").read_text(), re.MULTILINE)
    assert found is not None
    listed = json.loads(found[1])
    names = [each["path"] for each in listed["own"]] + [name.partition("?")[0] for name in listed["large"]]
    files = {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()}
    assert sorted(names) == sorted(files - {"sw.js", "source.sha256"})
    assert "index.html" in names


def wide_model(bert: Path) -> TextToImage:
    """Draws pictures of 12 x 8 px with transparency."""
    torch.manual_seed(0)
    generator = StyleGenerator(
        {4: 8, 8: 8}, text_dim=16, latent_dim=20, style_dim=8, image_channels=4, aspect_ratio=1.5
    )
    return TextToImage(generator, FrozenTextEncoder(str(bert)), Growth(8), {"alpha": True})


def test_other_shapes_and_transparency_are_exported_within_any_tolerance(bert: Path, tmp_path: Path) -> None:
    model, upscaler = wide_model(bert), random_upscaler()
    upscaler.model.text_encoder = model.text_encoder
    gaps = export_web(model, tmp_path / "site", TEXTS, upscaler, tolerance=1e-4)
    assert max(gaps.values()) <= 5e-5
    site = json.loads((tmp_path / "site/site.json").read_text())
    assert (site["width"], site["height"], site["factor"], site["alpha"]) == (12, 8, 4, True)
    (tmp_path / "files").mkdir()
    (large,) = open_network(tmp_path / "site", "upscaler", tmp_path / "files")(
        torch.rand(1, 4, 8, 12), *upscaler_text(model)
    )
    assert large.shape == (1, 4, 32, 48)

    export_web(model, tmp_path / "coarse", TEXTS, tolerance=0.5)
    bits = [json.loads((tmp_path / name / "site.json").read_text())["files"] for name in ("site", "coarse")]
    for name in ("text_encoder", "generator"):
        fine, coarse = (BITS.index(files[name]["bits"]) for files in bits)
        assert coarse < fine


def upscaler_text(model: TextToImage) -> tuple[torch.Tensor, ...]:
    text = model.text_encoder.encode(["a cat"])
    return text.tokens, text.mask, text.pooled


def test_what_the_page_cannot_draw_is_refused(bert: Path, tmp_path: Path) -> None:
    model = wide_model(bert)
    with pytest.raises(UserError, match="the upscaler reads prompts with another text encoder"):
        export_web(model, tmp_path / "site", TEXTS, random_upscaler())
    model.text_encoder = ClassLabels(["cat", "dog"])
    with pytest.raises(UserError, match="this model reads no prompts but ClassLabels"):
        export_web(model, tmp_path / "site", TEXTS)
    assert not (tmp_path / "site").exists()


def test_bad_options_give_one_line_errors(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(trained.run), "--out", "new", "--to"]
    assert main([*words, "onnx", "--tolerance", "0.1"]) == 2
    assert "--tolerance goes with --to web alone" in capsys.readouterr().err
    assert main([*words, "onnx", "--examples", "a cat"]) == 2
    assert "--examples goes with --to web alone" in capsys.readouterr().err
    assert main([*words, "web", "--tolerance", "0"]) == 2
    assert "--tolerance 0.0 must be more than 0" in capsys.readouterr().err
    assert main([*words, "web", "--upscaler", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not Path("new").exists()
