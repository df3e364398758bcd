"""Every command of the README and of three pages runs, in a copy of the repository, training cut short."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.icon_packages import write_icon_packages
from tests.helpers.image_files import COLOURS, write_images, write_photos

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    (ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("commands", "your-images", "recipes")
]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", "\n".join([README, *PAGES]), re.MULTILINE | re.DOTALL)
# A backslash at the end of a line continues the command on the next one. What two pages name runs once.
LINES = (
    re.sub(r"\s+", " ", line)
    for kind, text in BLOCKS
    if not kind
    for line in text.replace("\\\n", " ").splitlines()
)
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith(("make ", "imagen-pl "))))

SMALL = (
    "--growth.stages '[{resolution: 8, kimg: 1, batch_size: 4}]' "
    "--trainer.max_steps 4 --trainer.val_check_interval 2 --data.val_samples 4 --data.num_workers 0 "
    "--trainer.accelerator cpu --trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto"
)
# A prior need not see the whole training set.
FEW = "--model.generator.init_args.prior.init_args.captions 64"
TWO_STAGES = (
    "[{resolution: 8, kimg: 0.008, batch_size: 4}, {resolution: 16, kimg: 1, batch_size: 4, fade_kimg: 0}]"
)
FEW_ICONS = "--size 32 --sets alpha beta lines many --packages packages --jobs 1"
# Options added to the commands that start like this; all others run unchanged.
SHORTER = {
    "make quickstart": "MINUTES=0.05",
    "make test": "TESTS='tests/cli/test_help.py -q'",
    "imagen-pl data icons --size 256": FEW_ICONS,
    "imagen-pl data icons --size 128": FEW_ICONS,
    "imagen-pl data icons --out icon_sets/": FEW_ICONS,
    "imagen-pl data icons": "--size 32 --packages packages --jobs 1",
    "imagen-pl evaluate runs/photos": "--val_fraction 0.2 --train_images 8 --distractors 2",
    "imagen-pl evaluate": "--split composition --num_images 20 --train_images 20 --distractors 4",
    "imagen-pl project": "--steps 4",
    "imagen-pl edit icons": "--steps 4",
    "imagen-pl fit-encoder": "--kimg 0.064",
    "imagen-pl fit-autoencoder": "--kimg 0.016 --resolution 32 --crop 32 --channels 8 8 --batch_size 4",
    "imagen-pl fit --config configs/experiment/icons128_latent.yaml": SMALL.replace(
        "resolution: 8", "resolution: 32"
    )
    + " --model.generator.init_args.generator.init_args.channels '{4: 8, 8: 8}' "
    "--model.discriminator.init_args.discriminator.init_args.channels '{4: 8, 8: 8}'",
    # Later options override earlier ones: use the local shards of the previous command, without network.
    "imagen-pl fit --config configs/experiment/folder64.yaml --config configs/data/webdataset.yaml "
    '--data.source.path "https': f"{SMALL} --data.num_workers 1 --data.val_fraction 0.2 --existing move "
    "--data.source.path shards/ --data.source.val_path null",
    "imagen-pl fit --config configs/experiment/folder64.yaml --config configs/data/webdataset.yaml": (
        f"{SMALL} --data.num_workers 1 --data.val_fraction 0.2 --existing move"
    ),
    "imagen-pl fit --config configs/experiment/folder64.yaml": f"{SMALL} --data.val_fraction 0.2",
    "imagen-pl fit --config runs/photos/config.yaml": "--trainer.max_steps 8",
    "imagen-pl fit --config configs/experiment/upsampler.yaml": SMALL.replace(
        "resolution: 8", "resolution: 32"
    )
    + " --data.crop_from 32 --model.generator.init_args.resolution 32 "
    "--model.generator.init_args.channels '[8, 8]' "
    "--model.discriminator.init_args.channels '{8: 8, 16: 8, 32: 8}'",
    "imagen-pl fit --config configs/experiment/translator.yaml": SMALL.replace(
        "resolution: 8", "resolution: 16"
    )
    + " --data.source.sets null --model.generator.init_args.channels '{8: 8, 16: 8}' "
    "--model.discriminator.init_args.channels '{8: 8, 16: 8}'",
    "imagen-pl fit --config configs/experiment/coco256.yaml": f"{SMALL} "
    "--data.val_fraction 0.5 --data.source.path coco/captions.json --data.source.images coco/images",
    "imagen-pl fit --config configs/experiment/emoji64.yaml": f"{SMALL} --data.val_fraction 0.2",
    "imagen-pl fit --config configs/experiment/quickstart.yaml "
    "--config configs/growth/progressive.yaml": f"{SMALL} "
    f"--growth.stages '{TWO_STAGES}' --trainer.max_steps 12 {FEW}",
    "imagen-pl fit --config configs/experiment/quickstart.yaml": f"{SMALL} --existing move {FEW}",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files that git tracks or would, with an environment beside them and a user's images."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    environment = Path(sys.prefix)
    (folder / ".venv").symlink_to(environment, target_is_directory=True)
    (folder / ".venv/installed").touch()  # newer than requirements.txt, as after an install
    write_photos(folder / "my_photos", 24, side=64)
    write_images(folder, ["my_bell.png", "reference.png"], side=64)
    write_icon_packages(folder / "packages", more=24)
    write_images(folder / "coco/images", [f"{i}.jpg" for i in range(8)], side=256)
    (folder / "coco/captions.json").write_text(
        json.dumps(
            {
                "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(8)],
                "annotations": [
                    {"image_id": i, "id": i, "caption": f"a {COLOURS[i]} wall"} for i in range(8)
                ],
            }
        )
    )
    (folder / "prompts.csv").write_text("prompt,id\na red heart,5\na cat,6\n")
    yield folder
    shutil.rmtree(folder)  # its runs have 7 GB


def run(command: str, folder: Path) -> str:
    path = f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(folder), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def shortened(command: str) -> str:
    for start, extra in SHORTER.items():
        if command.startswith(start):
            return f"{command} {extra}"
    return command


def test_first_commands_are_those_of_the_makefile() -> None:
    assert COMMANDS[:2] == ["make quickstart", "make test"]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)  # in their order: later ones need the runs of earlier ones
def test_command_of_the_readme_runs(command: str, clone: Path) -> None:
    output = run(shortened(command), clone)
    words = shlex.split(command)
    if "--out" in words:
        assert (clone / words[words.index("--out") + 1]).exists()
    if command == "make quickstart":
        assert "val/fd_efficientnet_lite1" in output
        assert (clone / "runs/quickstart/checkpoints/last.ckpt").is_file()
        assert re.search(r"Pictures: (.*\.png)", output)


@pytest.mark.slow
def test_python_of_the_readme_runs(clone: Path) -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    run(f"python -c {shlex.quote(code + 'assert pictures[0].size[0] >= 8')}", clone)
    assert (clone / "release/model.safetensors").is_file()


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_have_existing_targets(target: str) -> None:
    assert (ROOT / target).exists()
