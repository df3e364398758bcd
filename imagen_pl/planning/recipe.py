"""A plan as a configuration, with the reason for every setting."""

from __future__ import annotations

from typing import Any

from imagen_pl.planning import rules
from imagen_pl.planning.planner import Plan
from imagen_pl.planning.recipe_losses import augment, losses, penalties, why_losses, why_penalties
from imagen_pl.planning.recipe_networks import discriminator, discriminator_cap, generator
from imagen_pl.planning.settings import Block, Items, Setting, number, part

_ADAM = {"betas": [0.0, 0.99]}
_EXTRACTORS = "imagen_pl.metrics.extractors"


def recipe(plan: Plan) -> Block:
    """The settings that `imagen-pl fit --config` reads."""
    return [
        Setting("seed_everything", 0, "Seed of the networks' first weights. Change it to repeat the run."),
        Setting("growth", [_stages(plan)]),
        Setting("samples", [_samples(plan)]),
        Setting("checkpoint", _checkpoint(plan)),
        Setting("model", model(plan)),
        Setting("data", _data(plan)),
        Setting("trainer", _trainer(plan)),
    ]


def _stages(plan: Plan) -> Setting:
    """Stages as shares of the run: max_time ends a plan, whose speed is only an estimate."""
    stages = plan.stages
    batches = f"Batches of {plan.batch_size}: the largest that still give 20,000 steps, and at least 32."
    if len(stages) == 1:
        why = f"One stage until max_time: at 32 px and less growing did not pay, as measured. {batches}"
    else:
        lengths = ", ".join(f"{stage.kimg:g}" for stage in stages)
        why = (
            "One line per stage. share is a share of max_time, the fade included; the last stage takes the "
            "rest. Shares instead of kimg, so that the run ends at full size even if it is slower than "
            f"measured. At the measured speed the stages see {lengths} thousand images: each but the last "
            f"twice as many as the one before, as in folder64. {batches}"
        )
    shares = zip(stages, plan.shares_of_time(), strict=True)
    return Setting("stages", [_stage(stage, share, stage is stages[-1]) for stage, share in shares], why)


def _stage(stage: rules.StageLength, share: float, is_last: bool) -> dict[str, Any]:
    """A line of the stages; the last one has no share, since it takes the rest."""
    found: dict[str, Any] = {"resolution": stage.resolution}
    if not is_last:
        found["share"] = _two_digits(share)
    found["batch_size"] = stage.batch_size
    if stage.fade_kimg:
        found["fade_share"] = _two_digits(share * stage.fade_kimg / stage.kimg)
    return found


def _two_digits(share: float) -> float:
    return float(f"{share:.2g}")


def _samples(plan: Plan) -> Setting:
    every = min(rules.nice(plan.design.kimg / 2), 50)
    return Setting("every_kimg", number(every), "Thousands of images between two grids of samples.")


def _checkpoint(plan: Plan) -> Block:
    found = [
        Setting("monitor", _monitor(plan), "The metric that selects best.ckpt."),
        Setting("mode", "min", "A distance: lower is better."),
    ]
    if plan.budget.hours >= 1:
        every = rules.nice(plan.design.kimg / max(10 * plan.budget.hours, 20))
        found.append(
            Setting(
                "every_kimg",
                number(every),
                "Thousands of images between two writes of last.ckpt: about ten an hour.",
            )
        )
    return found


def _extractor(plan: Plan) -> str:
    """The feature extractor of the metrics: never the network that trains the model."""
    return "EfficientNetLite1" if plan.paired else "EfficientNetLite0"


def _monitor(plan: Plan) -> str | None:
    if not plan.data.validates:
        return None
    return "val/fd_efficientnet_lite1" if plan.paired else "val/fd_efficientnet_lite0"


def model(plan: Plan) -> Block:
    """The settings of the model; they do not depend on the plan's speed."""
    design = plan.design
    clip = "Gradient norm above which a network is clipped."
    batch = plan.batch_size
    return [
        Setting("generator", generator(plan)),
        Setting("discriminator", discriminator(plan)),
        Setting(
            "text_encoder",
            part("imagen_pl.models.text.encoder.FrozenTextEncoder"),
            "The sentence encoder that is installed with this package.",
        ),
        Setting(
            "adversarial",
            part("imagen_pl.losses.adversarial.Relativistic"),
            "R3GAN's relativistic loss (arXiv:2501.05441): stable with both penalties below.",
        ),
        Setting("penalties", penalties(plan), why_penalties(plan)),
        Setting("losses", losses(plan), why_losses(plan)),
        Setting("augment", *augment(plan)),
        Setting("share_passes", not design.long_run, _why_share_passes(plan)),
        *_optimizers(plan),
        Setting(
            "learning_rate_schedule",
            part("imagen_pl.schedules.Cosine", **_schedule(plan)),
            "Factor on both learning rates, down to a quarter (R3GAN) at the end of the run: share 1 is all "
            f"of max_time, about {rules.nice(design.kimg):,g} thousand images at the measured speed. A run "
            "that will see less than half of these (kimg) prints a warning.",
        ),
        Setting("gradient_clip", 10.0, clip),
        Setting(
            "ema_halflife_kimg",
            rules.ema_halflife_kimg(design.kimg),
            "Half-life of the generator's moving average, thousands of images: 1.1 kimg^0.413, from the "
            f"recipes; StyleGAN2-ADA uses {batch * 10 / 32:.3g} for batches of {batch}.",
        ),
        Setting(
            "metrics",
            _metrics(plan),
            "Validation metrics."
            if plan.data.validates
            else "No image is held out, so there is nothing to compare with.",
        ),
    ]


def _why_share_passes(plan: Plan) -> str:
    if plan.design.long_run:
        return "Fresh generated images for each step, as in R3GAN. true saves a pass of each network."
    return (
        "Both steps use the same generated images and the same features of the real ones: faster, and each "
        "image taught as much at 32 px, as measured. false for accumulate > 1."
    )


def _optimizers(plan: Plan) -> Block:
    cap = discriminator_cap(plan)
    lr = round(rules.adam_lr(cap), 6)
    adam = f"Learning rate 2e-4 at 512 channels, inverse to the width (GAT); the widest layer here has {cap}."
    if plan.design.long_run:
        optimizer = part("torch.optim.Adam", lr=lr, **_ADAM)
        first = Setting("generator_optimizer", optimizer, f"Adam, as in R3GAN. {adam}")
        return [first, Setting("discriminator_optimizer", part("torch.optim.Adam", lr=lr, **_ADAM))]
    muon = part("imagen_pl.training.muon.Muon", lr=2e-3, momentum=0.95, **_ADAM)
    return [
        Setting("generator_optimizer", muon, "In short runs it fits captions sooner than Adam, as measured."),
        Setting("discriminator_optimizer", part("torch.optim.Adam", lr=lr, **_ADAM, fused=True), adam),
    ]


def _schedule(plan: Plan) -> dict[str, Any]:
    # With `share`, kimg is used only by the warning of a slow run.
    found = {"start": 1.0, "end": 0.25, "share": 1.0, "kimg": number(rules.nice(plan.design.kimg))}
    # Learning rates above R3GAN's need a warm-up: Adam's first steps rest on few gradients.
    return found if plan.design.long_run else {**found, "warmup_kimg": 1}


def _metrics(plan: Plan) -> Items:
    if not plan.data.validates:
        return Items([])
    distance = "imagen_pl.metrics.frechet.FrechetDistance"

    def by(extractor: str) -> Block:
        return [
            Setting("class_path", distance),
            Setting("init_args", [Setting("extractor", part(f"{_EXTRACTORS}.{extractor}"))]),
        ]

    taught = (
        "Not the network that trains the model."
        if plan.paired
        else "Its features are those of a network that is installed with this package."
    )
    found = [(taught, by(_extractor(plan)))]
    if plan.design.long_run:
        found.append(
            (
                "val/fid and val/kid, as in papers; needs the Inception weights, which are downloaded once.",
                by("InceptionV3"),
            )
        )
    return Items(found)


def _data(plan: Plan) -> Block:
    data, kimg = plan.data, plan.design.kimg
    source = [Setting("class_path", data.source_class)]
    if data.source_args:
        source.append(Setting("init_args", dict(data.source_args)))
    found = [Setting("source", source)]
    why = (
        f'"crop" keeps the middle square: {data.cropped:.0%} of the images lose over a quarter. '
        '"pad" keeps the whole image and fills the sides.'
    )
    if data.shape != 1:
        why += f" aspect_ratio: {data.shape:g} would train on the shape that most have."
    found.append(Setting("fit", "crop", why))
    if plan.design.long_run:
        why = "Share of captions replaced by an empty one, so that guidance works."
        found.append(Setting("caption_dropout", 0.05, why))
    if plan.budget.hours < 0.5:
        found.append(
            Setting(
                "epoch_kimg",
                1000,
                "Length of an epoch, thousands of images; validation runs after each, here only at the "
                "end, to save time.",
            )
        )
    else:
        every = rules.nice(kimg / (100 if plan.design.long_run else 5))
        found.append(
            Setting(
                "epoch_kimg",
                number(every),
                "Length of an epoch, thousands of images; validation runs after each.",
            )
        )
    if data.groups < data.images:
        why = f"Near-duplicates take turns: the {data.images:,} images count as {data.groups:,}."
        found.append(Setting("balance_groups", True, why))
    if data.validates:
        held = 2000 if plan.design.long_run else 500
        found.append(
            Setting("val_samples", held, "Number of held-out images for validation, at most, to save time.")
        )
    else:
        found.append(Setting("val_fraction", 0, "There are too few images to hold some out."))
    return found


def _trainer(plan: Plan) -> Block:
    hours, gpus = plan.budget.hours, plan.budget.gpus
    whole = round(hours * 3600)
    clock = f"{whole // 86400:02}:{whole // 3600 % 24:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    return [
        Setting(
            "accelerator",
            "gpu" if gpus else "auto",
            "auto uses a GPU if there is one. Precision follows the machine: bf16-mixed where it is fast.",
        ),
        Setting(
            "devices",
            max(gpus, 1),
            "Number of GPUs or CPU processes. batch_size above is the total over all of them.",
        ),
        Setting(
            "max_time",
            clock,
            "Days:hours:minutes:seconds of training. The stages and the schedule are shares of it.",
        ),
        Setting(
            "log_every_n_steps",
            50 if plan.design.long_run else 20,
            "Batches between two rows of metrics.csv.",
        ),
        Setting("num_sanity_val_steps", 1, "Validation batches before training, to find mistakes early."),
    ]
