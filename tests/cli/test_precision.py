"""`fit`, `validate` and `fit-captioner` choose the precision, print it, and keep it when resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen_pl.cli.main import main
from imagen_pl.storage.checkpoint_io import read_checkpoint
from imagen_pl.training import precision
from imagen_pl.training.precision import Race
from tests.cli.test_caption import captioner_config
from tests.helpers.runs import REPOSITORY, Tiny

# The tiny run sets float32, for the same numbers everywhere; here the machine decides.
SHORT = ["--trainer.max_steps", "4", "--trainer.precision", "null"]


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with the CPU's instructions, or None for a CPU whose bfloat16 is eight times slower."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision, "race_formats", lambda device: Race(120.0, 15.0))

    def stub(instructions: str | None) -> None:
        monkeypatch.setattr(precision, "_bfloat16_instructions", lambda: instructions)

    return stub


def lines_about_precision(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out = capsys.readouterr().out
    return [line for line in out.splitlines() if line.startswith(("Precision", "Warning"))]


def kept_in(run: Path) -> tuple[str, str, Any]:
    """The precision in the last checkpoint, in run.json's last start, and in config.yaml."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    starts = json.loads((run / "run.json").read_text())["starts"]
    checkpoint = read_checkpoint(run / "checkpoints/last.ckpt")
    return checkpoint["precision"], starts[-1]["precision"], config["trainer"]["precision"]


@pytest.mark.parametrize(("instructions", "chosen"), [("avx512_bf16", "bf16-mixed"), (None, "32-true")])
def test_run_uses_the_machine_s_precision_and_saves_it(
    tiny: Tiny, cpu: Any, capsys: pytest.CaptureFixture[str], instructions: str | None, chosen: str
) -> None:
    cpu(instructions)
    assert main(["fit", *tiny.words, *SHORT]) == 0

    (line,) = lines_about_precision(capsys)
    assert line.startswith(f"Precision: {chosen}, since this CPU has ")
    assert kept_in(tiny.run) == (chosen, chosen, None)


def test_resume_keeps_the_precision_with_a_warning_if_slow_unless_set(
    tiny: Tiny, cpu: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu("amx_bf16")
    main(["fit", *tiny.words, *SHORT])
    capsys.readouterr()

    cpu(None)
    resume = ["fit", "--config", str(tiny.run / "config.yaml"), "--ckpt_path", "last", "--trainer.max_steps"]
    assert main([*resume, "6"]) == 0
    line, warning = lines_about_precision(capsys)
    assert line.startswith("Precision: bf16-mixed, as in the checkpoint that this run resumes from.")
    assert warning.startswith("Warning: bfloat16 is 8.0 times slower than float32 here")
    assert warning.endswith("--trainer.precision 32-true is faster.")
    assert kept_in(tiny.run) == ("bf16-mixed", "bf16-mixed", None)

    assert main([*resume, "8", "--trainer.precision", "32-true"]) == 0
    assert lines_about_precision(capsys) == ["Precision: 32-true, as set by trainer.precision."]
    assert kept_in(tiny.run) == ("32-true", "32-true", "32-true")

    cpu("amx_bf16")
    assert main(["fit", *tiny.words, "--existing", "resume", *SHORT[2:], "--trainer.max_steps", "10"]) == 0
    assert lines_about_precision(capsys)[0].startswith("Precision: 32-true, as in the checkpoint")


def test_validation_uses_the_checkpoint_s_precision(
    trained: Tiny, cpu: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu("amx_bf16")

    assert main(["validate", *trained.words, "--trainer.precision", "null"]) == 0

    assert lines_about_precision(capsys)[0].startswith("Precision: 32-true, as in the checkpoint")


def test_captioner_uses_the_machine_s_precision_and_saves_it(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpu: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reader.yaml").write_text(yaml.safe_dump(captioner_config(photos, kimg=0.008)))
    words = ["fit-captioner", "--config", "reader.yaml", "--trainer.precision", "null"]

    cpu("avx512_bf16")
    assert main(words) == 0
    assert lines_about_precision(capsys) == [
        "Precision: bf16-mixed, since this CPU has bfloat16 instructions (avx512_bf16)."
    ]

    cpu(None)
    assert main([*words, "--ckpt_path", "last", "--model.kimg", "0.016"]) == 0
    line, warning = lines_about_precision(capsys)
    assert line.startswith("Precision: bf16-mixed, as in the checkpoint that this run resumes from.")
    assert "8.0 times slower" in warning
    assert kept_in(Path("runs/reader")) == ("bf16-mixed", "bf16-mixed", None)


@pytest.mark.parametrize(
    "file",
    sorted(f for f in (REPOSITORY / "configs").rglob("*.yaml") if f.parent.name != "cluster"),
    ids=lambda f: f.name,
)
def test_no_recipe_sets_the_precision(file: Path) -> None:
    assert "precision" not in yaml.safe_load(file.read_text(encoding="utf-8")).get("trainer", {})


@pytest.mark.parametrize("verb", ["fit", "validate", "fit-captioner"])
def test_help_names_the_default_precision(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0

    text = "".join(capsys.readouterr().out.split())  # lines may break at hyphens
    assert "Without--trainer.precision,bf16-mixedisusedwherethemachineisfastinbfloat16" in text


def test_precision_plugin_takes_precedence(tiny: Tiny, cpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cpu("amx_bf16")
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    config["trainer"]["plugins"] = [
        {
            "class_path": "lightning.pytorch.plugins.MixedPrecision",
            "init_args": {"precision": "bf16-mixed", "device": "cpu"},
        }
    ]
    Path("tiny.yaml").write_text(yaml.safe_dump(config))

    assert main(["fit", *tiny.words, *SHORT]) == 0

    assert lines_about_precision(capsys) == []
    assert kept_in(tiny.run)[0] == "bf16-mixed"
