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
    """Discriminator steps between two steps with penalties."""
    if plan.design.long_run:
        return 4
    return 16 if plan.design.resolution <= 32 else 8  # the quickstart's and emoji64's


def why_penalties(plan: Plan) -> str:
    return (
        "Squared gradients of the discriminator at real images (R1) and at generated ones (R2). The weight "
        "grows with the resolution by a power law"
        + (" (R3GAN's)." if plan.design.long_run else " (the quickstart's and emoji64's).")
        + f" Every {penalty_interval(plan)}th step, that many times as strong, to save time (StyleGAN2)."
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
            f"With losses that compare a sample with the real image of its caption: {1 - data.shared:.0%} "
            f"of the images have captions of their own, and {plan.passes:.1f} passes over the data are too "
            "few to memorise them."
        )
    if data.shared > rules.MOST_SHARED:
        return (
            f"None that compares a sample with the real image of its caption: {data.shared:.0%} of the "
            f"images share a caption with others ({data.images_per_caption:.1f} images per caption), and "
            "the generator would learn their mean."
        )
    if plan.passes >= rules.MANY_PASSES:
        return (
            f"None that compares a sample with the real image of its caption: over {plan.passes:,.0f} "
            "passes the generator would memorise the images."
        )
    return (
        "None that compares a sample with the real image of its caption: the time is enough for the "
        "adversarial loss alone."
    )


def losses(plan: Plan) -> Items:
    design = plan.design
    contrastive = {
        "discriminator_weight": 1.0,
        "generator_weight": 1.0,
    }
    found = [
        (
            "A real image with the caption of another one counts as fake (GAN-CLS).",
            part(f"{_TEXT}.MismatchedCaptions", discriminator_weight=1.0),
        ),
        (
            "Contrastive loss between images and captions (as CLIP's). Lower generator_weight if the "
            "samples of one caption look alike.",
            part(f"{_TEXT}.ImageTextContrastive", **contrastive),
        ),
    ]
    if not plan.paired:
        return Items(found)
    fall = number(rules.pixel_matching_share(design.kimg))
    pixels = part("imagen_pl.schedules.Linear", start=100.0, end=10.0, share=fall)
    backbone = part(BACKBONE, name="efficientnet_lite0", size=min(max(design.resolution, 32), 64))
    found += [
        (
            "Match the discriminator features of a sample to those of the real image (pix2pixHD).",
            part(f"{_TEXT}.FeatureMatching", generator_weight=1.0),
        ),
        (
            "The same in pixels: right shapes and colours early, weaker when details are learnt. share is "
            "how much of max_time the fall takes.",
            [
                Setting("class_path", f"{_IMAGE}.PixelMatching"),
                Setting("init_args", [Setting("generator_weight", pixels)]),
            ],
        ),
    ]
    if design.resolution >= 16:
        found.append(
            (
                "The same in the features of a pretrained network, which helps subjects.",
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
        return None, f"None: {why}, so the discriminator does not memorise them."
    adaptive = part(
        "imagen_pl.models.augment.DiffAugment",
        policy=["color", "translation", "cutout"],
        probability=0.0,
        target=0.6,
        adapt_kimg=number(min(500.0, rules.nice(plan.design.kimg / 20))),
    )
    return adaptive, (
        f"{plan.passes:,.0f} passes over {images:,} images: the discriminator sees augmented images, so "
        "that it does not memorise them; ADA's rule sets the probability. Remove color if samples have "
        "other colours than their captions say."
    )
