"""`imagen-pl fit` with settings or checkpoints that it refuses: one line that says why."""

from __future__ import annotations

import pytest

from imagen_pl.cli.main import main
from tests.helpers.runs import Tiny


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt_path", "none.ckpt"], "checkpoint none.ckpt: there is no such file"),
        (["--name", "other", "--ckpt_path", "last"], "contains no checkpoint to resume from"),
        (["--name", "a/b"], "--name 'a/b' must be a plain name"),
        (["--growth.stages", "[]"], "stages is empty: name at least one stage"),
        (["--growth.stagez", "3"], "unrecognized arguments: --growth.stagez 3"),
        (["--growth.kimg_scale", "-1"], "kimg_scale -1.0 must be more than 0"),
        (["--model.generator.init_args.style_dim", "wide"], "Expected a <class 'int'>. Got value: wide"),
        (["--model.accumulate", "0"], "model.accumulate 0 must be 1 or more"),
        (["--samples.columns", "0"], "samples.columns 0 must be 1 or more"),
        (["--checkpoint.mode", "best"], "checkpoint.mode"),
        (["--checkpoint.monitor", "val/fud"], "checkpoint.monitor val/fud is not among the scores"),
        (["--config", "none.yaml"], "none.yaml"),
        (
            [
                "--growth.stages",
                '[{"resolution": 8, "kimg": 1, "batch_size": 4}, '
                '{"resolution": 4, "kimg": 1, "batch_size": 4}]',
            ],
            "stages[1].resolution 4 does not grow on stages[0]'s 8: list the stages from small to large",
        ),
        (
            ["--growth.stages", '[{"resolution": 12, "kimg": 1, "batch_size": 4}]'],
            "stages[0].resolution 12 is not a power of two from 4 up",
        ),
        (
            ["--growth.stages", '[{"resolution": 8, "kimg": 1, "batch_size": 1}]'],
            "stages[0].batch_size 1 is too small",
        ),
    ],
)
def test_bad_input_gives_one_line_error(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["fit", *tiny.words, *words]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.startswith("error: ")
    assert message in output


def test_missing_configuration_gives_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert capsys.readouterr().err.startswith("error: name a configuration with --config")


def test_failed_start_does_not_reserve_the_run_name(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *tiny.words, "--data.source.path", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["fit", *tiny.words, "--trainer.max_steps", "4"]) == 0


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_checkpoint_of_another_architecture_gives_one_line_error(
    verb: str, trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt_path", "last", "--model.generator.init_args.style_dim", "12"]
    words += ["--name", trained.run.name, "--runs_dir", str(trained.run.parent)]
    assert main([verb, *trained.words, *words]) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert "last.ckpt contains another architecture: generator." in output
    assert "in the file and (" in output
    assert "more differ" in output


def test_corrupt_checkpoint_gives_one_line_error(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained.run / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["fit", *trained.words, "--ckpt_path", str(path)]) == 2
    assert "last.ckpt cannot be read: it is damaged" in capsys.readouterr().err
