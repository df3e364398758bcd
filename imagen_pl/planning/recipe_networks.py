"""The generator and the discriminator of a plan: channels, attention and heads."""

from __future__ import annotations

from imagen_pl.planning import rules
from imagen_pl.planning.planner import Plan
from imagen_pl.planning.settings import Block, Setting, part

BACKBONE = "imagen_pl.models.pretrained.backbones.TimmBackbone"


def has_prior(plan: Plan) -> bool:
    """Whether the generator has an image prior: in short runs on paired data; long runs do without."""
    return plan.paired and plan.design.resolution >= 32


def generator(plan: Plan) -> Block:
    design = plan.design
    cap = rules.channel_cap(design.base)
    arguments = [
        Setting(
            "channels",
            rules.channels(design.base, design.resolution, cap),
            f"Channels at each resolution, min({cap}, {design.base:,} / px) as in StyleGAN2-ADA: the widest "
            f"networks that see enough images in the time ({plan.enough_kimg:,.0f} thousand, or nearly).",
        ),
        Setting("latent_dim", 64, "Size of the latent: why samples of one caption differ (R3GAN)."),
        Setting(
            "style_dim",
            style_dim(plan),
            "Size of the style vector: as many as the widest layer, between 256 and 512.",
        ),
        Setting(
            "layers_per_block",
            1,
            "Residual layers at each resolution. 2 gives finer detail at twice the cost.",
        ),
        Setting(
            "text_attention_at",
            rules.attention_to_words(design.resolution, design.long_run),
            "Resolutions with attention from pixels to tokens. More follow captions better and cost time.",
        ),
    ]
    if design.long_run and design.resolution > 16:
        arguments.append(
            Setting(
                "self_attention_at",
                [16],
                "Resolutions with self-attention; its cost grows with resolution^4.",
            )
        )
    if has_prior(plan):
        arguments.append(
            Setting("prior", _prior(plan), "Predicts image features from the caption, as a further input.")
        )
    return [
        Setting("class_path", "imagen_pl.models.generators.style.StyleGenerator"),
        Setting("init_args", arguments),
    ]


def _prior(plan: Plan) -> Block:
    room = min(512 * -(-plan.data.groups // 512), 8192)
    backbone = part(BACKBONE, name="efficientnet_lite0", size=128, maps=[3, 4])
    arguments = [
        Setting(
            "backbone",
            backbone,
            "Installed with this package. It reads the training images before the first run.",
        ),
        Setting("captions", room, "Number of training captions for the regression: all, 8,192 at most."),
    ]
    return [Setting("class_path", "imagen_pl.models.image_prior.ImagePrior"), Setting("init_args", arguments)]


def style_dim(plan: Plan) -> int:
    return min(512, max(256, rules.channel_cap(plan.design.base)))


def discriminator_cap(plan: Plan) -> int:
    cap = rules.channel_cap(plan.design.base)
    return cap if plan.design.long_run else cap // 2


def discriminator(plan: Plan) -> Block:
    design = plan.design
    smallest = 8 if design.long_run and design.resolution > 8 else 4
    widths = rules.channels(design.base, design.resolution, discriminator_cap(plan), smallest)
    why = "As the generator's" + (", without 4." if smallest == 8 else ", at most half the channels.")
    arguments = [
        Setting("channels", widths, why),
        Setting("final_dim", style_dim(plan), "Size of the final feature vector of an image."),
    ]
    if design.long_run:
        coarse = [
            size for size in (16, 32) if size < design.resolution and (size == 16 or design.resolution > 64)
        ]
        if coarse:
            arguments.append(
                Setting(
                    "heads_at", coarse, "Further heads at coarser resolutions: more signal for the layout."
                )
            )
        if design.resolution > 16:
            arguments.append(Setting("self_attention_at", [16], "As the generator's."))
    if not plan.paired:
        arguments.append(
            Setting(
                "minibatch_stddev",
                4,
                "Group size of the minibatch standard deviation: prevents collapse (ProGAN).",
            )
        )
    return [
        Setting("class_path", "imagen_pl.models.discriminators.multiscale.MultiscaleDiscriminator"),
        Setting("init_args", arguments),
    ]
