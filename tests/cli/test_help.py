import argparse
import importlib
import re
import shlex
from collections.abc import Iterator

import pytest

from imagen_pl import __version__
from imagen_pl.cli import data as verbs
from imagen_pl.cli.main import HELP, VERBS, main
from imagen_pl.cli.options import EXAMPLES


def _words(example: str) -> list[str]:
    """The verb of a line of examples: one word, or two as in "data inspect"."""
    words = example.split()[1:3]
    return words if words[0] == "data" else words[:1]


def test_help_shows_the_verbs_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        assert capsys.readouterr().out == HELP
    listed = HELP.split("verbs:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(VERBS)
    for verb in VERBS:
        assert f"imagen-pl {verb} " in HELP


@pytest.mark.parametrize("verb", sorted({" ".join(_words(line)) for line in EXAMPLES.splitlines()}))
def test_help_of_a_verb_ends_with_its_unwrapped_examples(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb.split(), "--help"]) == 0
    output = capsys.readouterr().out.splitlines()
    own = [f"  {line}" for line in EXAMPLES.splitlines() if " ".join(_words(line)) == verb]
    place = output.index("examples:")
    assert output[place + 1 : place + 1 + len(own)] == own
    assert max(map(len, output[place + 1 + len(own) :]), default=0) <= 80  # what comes after is wrapped


@pytest.mark.parametrize("line", EXAMPLES.splitlines())
def test_examples_parse(line: str) -> None:
    verb, *words = shlex.split(line, comments=True)[1:]
    if verb == "data":
        assert verbs._parser().parse_args(words).run
    elif verb in (
        "fit",
        "validate",
        "test",
        "predict",
        "fit-captioner",
    ):  # the README's and the configurations' tests run those
        assert words[0] == "--config"
    else:
        module = importlib.import_module(f"imagen_pl.cli.{verb.replace('-', '_')}")
        module.make_parser().parse_args(words)


def test_version_option_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"imagen-pl {__version__}\n"


def test_unknown_verb_gives_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: unknown verb 'train': use new, plan, fit, validate, test, predict, sample, sheet, variants, "
    )


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_fit_explains_its_settings_with_units(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for setting, explained in {
        "--name NAME": "the run's name",
        "--existing {error,move,resume}": "nothing is deleted",
        "--ckpt_path CKPT_PATH": "last or best of this run",
        "--growth.kimg_scale KIMG_SCALE": "in a quarter of the images",
        "--blockwise_training.policy POLICY": "which blocks are trained when",
        "--blockwise_training.learning_rate_factors LEARNING_RATE_FACTORS": "0 freezes it",
        "--samples.every_kimg EVERY_KIMG": "in thousands of images seen",
        "--checkpoint.monitor MONITOR": "score that decides which is best",
        "--model.ema_halflife_kimg EMA_HALFLIFE_KIMG": "thousands of images",
        "--trainer.devices DEVICES": "devices to use",
    }.items():
        assert setting in output
        assert explained in output.split(setting, 1)[1][:700], setting


def test_help_explains_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.generator.help", "StyleGenerator"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "feature maps at each resolution, smallest first" in output
    assert main(["fit", "--blockwise_training.policy.help", "Alternate"]) == 0
    assert "length of a turn, in thousands of images" in " ".join(capsys.readouterr().out.split())


def test_help_lists_our_optimizer_and_explains_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--help"])
    assert "imagen_pl.training.muon.Muon" in capsys.readouterr().out.replace("\n", "")

    main(["fit", "--model.generator_optimizer.help", "imagen_pl.training.muon.Muon"])
    assert "Newton-Schulz steps" in capsys.readouterr().out


def test_sample_explains_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "a field `seed` takes precedence over --seed" in output


def test_caption_explains_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "a captioner's folder, a run or .ckpt that was trained with one, or emoji" in output
    assert "random captions per picture, in place of the most likely one" in output


def test_fit_captioner_explains_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-captioner", "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for setting, explained in {
        "--existing {error,move,resume}": "move it out of the way",
        "--model.kimg KIMG": "length of the training, thousands of images",
        "--data.resolution RESOLUTION": "height of the images, px",
    }.items():
        assert explained in output.split(setting, 1)[1][:400], setting


ARGPARSE_VERBS = (
    "new", "plan", "sample", "sheet", "variants", "interpolate", "edit", "demo", "evaluate", "grow_report",
    "export", "push", "caption", "fit_autoencoder",
)  # fmt: skip


def _parsers() -> Iterator[argparse.ArgumentParser]:
    """Of all verbs without configuration files."""
    for verb in ARGPARSE_VERBS:
        yield importlib.import_module(f"imagen_pl.cli.{verb}").make_parser()
    for action in verbs._parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def test_an_option_s_help_can_be_read_alone() -> None:
    """It names its noun: "seed of the shuffling", not "of the order"."""
    helps = {
        f"{parser.prog} {action.dest}": str(action.help)
        for parser in _parsers()
        for action in parser._actions
    }
    assert len(helps) > 80
    rest = {"of", "as", "in", "to", "its", "default:", "None"}
    assert {name: text for name, text in helps.items() if text.split()[0] in rest} == {}


@pytest.mark.parametrize("verb", ["fit", "fit-captioner"])
def test_the_command_that_lists_a_class_s_settings_works(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    (words,) = re.findall(r"`imagen-pl (\S+ --model\S+\.help \S+)` lists the settings of a class", output)
    assert main(words.split()) == 0
    assert "(type: float, default: " in capsys.readouterr().out
