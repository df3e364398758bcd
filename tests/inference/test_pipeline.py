"""`imagen_pl.load`, releases, and `imagen-pl sample`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import imagen_pl
from imagen_pl.cli.main import main
from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage, load
from tests.helpers.drawn import close, same, training_captions
from tests.helpers.runs import Tiny


@pytest.fixture
def model(trained_once: Path) -> TextToImage:
    return load(trained_once / "runs/tiny")


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, imagen_pl, imagen_pl.cli.main; "
        "print([m for m in ('torch', 'lightning') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
    assert imagen_pl.load is load


def test_images_depend_on_prompt_and_seed_alone(model: TextToImage) -> None:
    pictures = model.sample(["a red heart", "a cat"], seed=7, num_images=3)
    assert len(pictures) == 6
    assert all(p.size == (8, 8) and p.mode == "RGB" for p in pictures)
    assert all(
        same(a, b) for a, b in zip(model.sample(["a red heart", "a cat"], 7, 3), pictures, strict=True)
    )
    assert close(model.sample("a cat", seed=8)[0], pictures[4])
    assert close(model.sample(["x", "y", "z", "a red heart"], seed=9)[3], pictures[2])
    assert not same(pictures[0], pictures[1])
    assert not same(pictures[0], pictures[3])
    assert model.sample([], seed=7) == []


def test_many_images_are_drawn_in_several_batches(model: TextToImage) -> None:
    pictures = model.sample("a cat", seed=0, num_images=70)
    assert close(pictures[69], model.sample("a cat", seed=69)[0])


def test_truncation_moves_images_towards_the_mean(model: TextToImage) -> None:
    def spread(truncation: float) -> float:
        pictures = model.sample("a cat", num_images=16, truncation=truncation)
        return float(np.stack([np.asarray(p, np.float32) for p in pictures]).std(0).mean())

    assert spread(0.0) < 0.51 < spread(1.0)
    with pytest.raises(UserError, match=r"truncation 1\.5 is not between 0 and 1"):
        model.sample("a cat", truncation=1.5)
    with pytest.raises(UserError, match="num_images 0 must be 1 or more"):
        model.sample("a cat", num_images=0)


def test_guidance_of_one_equals_no_guidance_and_encodes_no_other_caption(model: TextToImage) -> None:
    plain = model.sample(["a red heart", "a cat"], 3, 2, refine=0)
    assert all(
        same(a, b)
        for a, b in zip(
            model.sample(["a red heart", "a cat"], 3, 2, guidance=1.0, refine=0), plain, strict=True
        )
    )
    assert "_wordless" not in model.__dict__
    assert not same(model.sample("a red heart", 3, guidance=3.0, refine=0)[0], plain[0])
    # At 0 the prompt does not affect the style, and this model has no attention to tokens.
    heart, cat = model.sample(["a red heart", "a cat"], 3, guidance=0.0, refine=0)
    assert close(heart, cat)
    assert not close(plain[0], plain[2])
    with pytest.raises(UserError, match=r"guidance 10\.5 is not between 0 and 10"):
        model.sample("a cat", guidance=10.5)
    with pytest.raises(UserError, match="guidance nan is not"):
        model.sample("a cat", guidance=float("nan"))


def test_guidance_moves_away_from_the_unconditional_style(
    trained_once: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From "" after caption dropout; else from the mean style of training captions."""

    def drawn(**described: object) -> Image.Image:
        model = load(trained_once / "runs/tiny", device="cpu")
        model.description |= described
        (picture,) = model.sample("a red heart", guidance=0.0, refine=0)
        model.sample("a cat", guidance=0.0, refine=0)
        return picture

    model = load(trained_once / "runs/tiny", device="cpu")
    assert model.description["caption_dropout"] == 0.0
    assert model.description["captions"] == training_captions(trained_once)  # so few that all are kept
    wordless, cat = model.sample("", refine=0)[0], model.sample("a cat", refine=0)[0]
    assert close(drawn(caption_dropout=0.1), wordless)
    assert close(drawn(captions=["a cat", "a cat"]), cat)
    assert not close(wordless, cat)
    assert not caplog.messages
    assert close(drawn(captions=[]), wordless)
    assert len(caplog.messages) == 1  # of two calls
    assert "which this model may not have been trained with" in caplog.messages[0]


def test_generator_without_guidance_draws_and_refuses_guidance(model: TextToImage) -> None:
    class Plain(type(model.generator)):  # type: ignore[misc]
        def forward(self, z, text, growth=None, truncation=1.0):  # type: ignore[no-untyped-def]
            return super().forward(z, text, growth, truncation)

    expected = model.sample("a cat")[0]
    model.generator.__class__ = Plain
    assert same(model.sample("a cat")[0], expected)
    with pytest.raises(UserError, match="Plain has no guidance: leave it at 1"):
        model.sample("a cat", guidance=2.0)


def test_a_release_draws_the_same_to_the_bit(model: TextToImage, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "release")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load(folder)
    for name, tensor in model.generator.state_dict().items():
        assert torch.equal(loaded.generator.state_dict()[name], tensor), name
    prompts = ["a red heart", "a cat, fluent style"]
    for guidance in (1.0, 2.0):
        before, after = (m.sample(prompts, 3, 2, guidance=guidance) for m in (model, loaded))
        assert all(same(a, b) for a, b in zip(before, after, strict=True))
    description = json.loads((folder / "config.json").read_text())
    assert description["resolution"] == 8
    assert description["generator"]["class_path"] == "imagen_pl.models.generators.style.StyleGenerator"
    assert description["imagen_pl"] == imagen_pl.__version__
    again = loaded.save(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_half_precision_release_draws_nearly_the_same(model: TextToImage, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "release", torch.bfloat16)
    weights = load_file(folder / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    a, b = (m.sample("a cat", refine=0)[0] for m in (model, load(folder)))
    assert np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() < 16


def test_a_run_gives_its_best_checkpoint(trained: Tiny) -> None:
    def weights(path: Path) -> torch.Tensor:
        return next(iter(load(path).generator.state_dict().values()))

    last, best = (trained.run / f"checkpoints/{name}.ckpt" for name in ("last", "best"))
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["state_dict"] = {n: t + 1 for n, t in checkpoint["state_dict"].items()}
    torch.save(checkpoint, best)
    torch.save(torch.load(last, weights_only=True), last)  # the newest again
    assert not torch.equal(weights(last), weights(best))
    assert torch.equal(weights(trained.run), weights(best))
    # A best checkpoint of a smaller resolution must not be used.
    torch.save({**checkpoint, "growth_resolution": 4}, best)
    torch.save(torch.load(last, weights_only=True), last)
    assert torch.equal(weights(trained.run), weights(last))


def test_unloadable_models_give_one_line_error(trained: Tiny, tmp_path: Path) -> None:
    path = trained.run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)

    def fails(what: Path, match: str) -> None:
        with pytest.raises(UserError, match=match) as output:
            load(what)
        assert "\n" not in str(output.value)

    fails(tmp_path / "nowhere", "there is no run, checkpoint or release .*nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(empty, "neither a run with checkpoints/.* nor a release")
    no_average = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("ema.")}
    torch.save({**checkpoint, "state_dict": no_average}, path)
    fails(path, "contains no moving average of a generator")
    torch.save({k: v for k, v in checkpoint.items() if k != "config"}, path)
    fails(path, "does not say which networks it holds")
    torch.save({**checkpoint, "config": checkpoint["config"].replace("style_dim: 8", "style_dim: 9")}, path)
    fails(path, r"contains another architecture: .* is \(8,.*\) in the file and \(9,.*\) here")
    torch.save({**checkpoint, "config": checkpoint["config"].replace("StyleGenerator", "NoGenerator")}, path)
    fails(path, "its generator cannot be built: .*NoGenerator")
    path.write_bytes(path.read_bytes()[:500])
    fails(path, "cannot be read: it is damaged")


def test_damaged_releases_give_one_line_error(model: TextToImage, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "release")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:100])
    with pytest.raises(UserError, match=r"release .* cannot be read"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load(folder)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"release .* cannot be read"):
        load(folder)


def test_text_adapter_is_saved_and_loaded(tiny: Tiny, tmp_path: Path) -> None:
    """It is a part of the generator: of its average, its checkpoint and its release."""
    adapter = {
        "class_path": "TextAdapter",
        "init_args": {"text_dim": 16, "hidden_dim": 8, "attention_heads": 2},
    }
    words = {"generator": {"init_args": {"text_adapter": adapter, "text_attention_at": [8]}}}
    Path("adapter.yaml").write_text(yaml.safe_dump({"model": words}))
    assert main(["fit", *tiny.words, "--config", "adapter.yaml"]) == 0

    model = load(tiny.run)
    released = load(model.save(tmp_path / "release"))

    trained = {n: p for n, p in model.generator.named_parameters() if n.startswith("text_adapter.")}
    assert all(trained[f"text_adapter.{part}.up.weight"].any() for part in ("pooled", "tokens"))
    kept = dict(released.generator.named_parameters())
    assert all(torch.equal(kept[name], value) for name, value in trained.items())
    (picture,) = model.sample("a red heart", seed=1)
    assert same(released.sample("a red heart", seed=1)[0], picture)
    released.generator.register_module("text_adapter", None)
    assert not same(released.sample("a red heart", seed=1)[0], picture)
