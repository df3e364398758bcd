"""The text of `imagen-pl evaluate`: what it says beside the scores."""

from __future__ import annotations

import pytest

from imagen_pl.metrics.distances import FEW
from imagen_pl.metrics.evaluation import Evaluation
from imagen_pl.metrics.report import evaluation_report


def report(pictures: int, real: int) -> str:
    about = {
        "model": "emoji",
        "pictures": pictures,
        "real_images": real,
        "split": "test",
        "resolution": 64,
        "seed": 0,
        "truncation": 1.0,
        "guidance": 1.0,
        "refine": 0,
    }
    found = Evaluation(
        extractor="efficientnet_lite1",
        pictures=pictures,
        real=real,
        frechet=30.0,
        kernel=0.1,
        mmd=0.2,
        precision=None,
        recall=None,
        density=None,
        coverage=None,
        retrieval=None,
        shuffled=None,
        diversity=None,
        drawn_again=None,
        memorisation=None,
        frechet_of_halves=None,
    )
    return "\n".join(evaluation_report(about, [found]))


def test_the_names_of_distances_are_said_to_go_with_their_network() -> None:
    assert (
        "In features of Inception (inception_v3), the Fréchet distance is FID and the kernel distance KID; "
        "in those of CLIP ViT-L/14 at 336 px, the Gaussian discrepancy is CMMD. For other networks, "
        "these names do not apply."
    ) in report(FEW, FEW)


@pytest.mark.parametrize(("pictures", "real"), [(FEW, 99), (99, FEW)])
def test_few_images_are_warned_of_and_the_mend_is_named(pictures: int, real: int) -> None:
    text = report(pictures, real)

    assert "\n99 images are few: the fewer there are, the larger the Fréchet distance" in text
    assert text.endswith(
        "Compare the distance with that between halves of the real images, and compare models only at equal "
        "numbers."
    )
    assert "are few" not in report(FEW, FEW)
