"""The losses of a plan: gradient penalties, captions, paired images, and augmentation."""

from __future__ import annotations

from typing import Any

from imagen_pl.planning import rules
from imagen_pl.planning.planner import Plan
from imagen_pl.planning.recipe_networks import BACKBONE
from imagen_pl.planning.settings import Items, Setting, number, part

_TEXT = "imagen_pl.losses.text_matching"
_IMAGE = "imagen_pl.losses.image_matching"


def penalty_interval(plan: Plan) -> int:
    """Discriminator steps from one with penalties to the next."""
    return 4 if plan.design.long_run else 8


def why_penalties(plan: Plan) -> str:
    return (
        "Squared gradients of the discriminator at real images (R1) and at generated ones (R2); the weight "
        "grows with the resolution by a power law"
        + (" (R3GAN's)." if plan.design.long_run else " (the quickstart's and emoji64's).")
        + f" Each {penalty_interval(plan)}th step, as many times as strong, to save time (StyleGAN2)."
    )


def penalties(plan: Plan) -> Items:
    law = rules.penalty_law(plan.design.resolution, plan.design.long_run)._asdict()
    weight = part("imagen_pl.losses.gradient_penalties.PerResolution", **law)
    every = penalty_interval(plan)
    return Items(
        [
            (
                "",
                [
                    Setting("class_path", f"imagen_pl.losses.gradient_penalties.{name}"),
                    Setting("init_args", [Setting("weight", weight), Setting("every", every)]),
                ],
            )
            for name in ("R1", "R2")
        ]
    )


def why_losses(plan: Plan) -> str:
    data = plan.data
    if plan.paired:
        return (
            f"Losses that hold a picture against its caption's image fit: {1 - data.shared:.0%} of the "
            f"images have captions of their own, and {plan.passes:.1f} passes over the data are too few to "
            "learn them by heart."
        )
    if data.shared > rules.MOST_SHARED:
        return (
            f"None that holds a picture against its caption's image: {data.shared:.0%} of the images share "
            f"a caption with others ({data.images_per_caption:.1f} images a caption), and such losses would "
            "draw their mean."
        )
    if plan.passes >= rules.MANY_PASSES:
        return (
            f"None that holds a picture against its caption's image: over {plan.passes:,.0f} passes they "
            "would be learnt by heart."
        )
    return (
        "None that holds a picture against its caption's image: the time is enough for the adversarial loss "
        "alone."
    )


def losses(plan: Plan) -> Items:
    design = plan.design
    contrastive = {
        "discriminator_weight": 1.0,
        "generator_weight": 1.0,
    }
    found = [
        (
            "A real image under another's caption counts as fake (GAN-CLS).",
            part(f"{_TEXT}.MismatchedCaptions", discriminator_weight=1.0),
        ),
        (
            "Images and captions meet in one space (CLIP's loss). Lower generator_weight if the pictures of "
            "one caption look alike.",
            part(f"{_TEXT}.ImageTextContrastive", **contrastive),
        ),
    ]
    if not plan.paired:
        return Items(found)
    fall = rules.nice(max(40.0, design.kimg / 2))
    pixels = part("imagen_pl.schedules.Linear", start=100.0, end=10.0, kimg=number(fall))
    backbone = part(BACKBONE, name="efficientnet_lite0", size=min(max(design.resolution, 32), 64))
    found += [
        (
            "Near the real image in the discriminator's maps (pix2pixHD).",
            part(f"{_TEXT}.FeatureMatching", generator_weight=1.0),
        ),
        (
            "And in its pixels: shapes and colours early, weaker when detail comes.",
            [
                Setting("class_path", f"{_IMAGE}.PixelMatching"),
                Setting("init_args", [Setting("generator_weight", pixels)]),
            ],
        ),
    ]
    if design.resolution >= 16:
        found.append(
            (
                "And in the maps of a frozen network, which teaches subjects.",
                [
                    Setting("class_path", f"{_IMAGE}.PerceptualMatching"),
                    Setting(
                        "init_args",
                        [
                            Setting("backbone", backbone),
                            Setting("generator_weight", 4.0),
                            Setting("from_resolution", 16),
                        ],
                    ),
                ],
            )
        )
    return Items(found)


def augment(plan: Plan) -> tuple[Any, str]:
    images = plan.data.images
    if not rules.needs_augmentation(images, plan.passes):
        few = images < rules.MANY_IMAGES
        why = f"{plan.passes:.2g} passes over the data are few" if few else f"{images:,} images are many"
        return None, f"None: {why}, so that the discriminator does not learn them by heart."
    adaptive = part(
        "imagen_pl.models.augment.DiffAugment",
        policy=["color", "translation", "cutout"],
        probability=0.0,
        target=0.6,
        adapt_kimg=number(min(500.0, rules.nice(plan.design.kimg / 20))),
    )
    return adaptive, (
        f"{plan.passes:,.0f} passes over {images:,} images: the discriminator sees altered images, so that "
        "it does not learn them by heart; ADA's rule decides how often. Leave out color where captions name "
        "colours and they come out wrong."
    )
