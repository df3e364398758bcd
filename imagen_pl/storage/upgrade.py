"""Renames old names, so that checkpoints, releases and configurations of earlier commits stay readable.

Modules, classes and settings were renamed before 0.1.0. Every file that contains their names is upgraded here
when it is read. To rename something, add a line to a table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

_PACKAGE = "imagen_pl."

# Modules whose classes a configuration may name, relative to the package.
MODULES = {
    "backbones": "models.pretrained.backbones",
    "callbacks.turns": "callbacks.block_policies",
    "captioner_training": "training.captioner_module",
    "data.augment": "models.augment",
    "data.emoji": "data.build_emoji",
    "discriminators.base": "models.discriminators.base",
    "discriminators.joint": "models.discriminators.joint",
    "discriminators.multiscale": "models.discriminators.multiscale",
    "discriminators.projected": "models.discriminators.projected",
    "dual_encoders": "models.pretrained.dual_encoders",
    "ema": "training.ema",
    "generators.base": "models.generators.base",
    "generators.blocks": "models.generators.blocks",
    "generators.style": "models.generators.style",
    "losses.colour": "losses.colorization",
    "losses.guidance": "losses.clip_guidance",
    "losses.instance": "losses.instance_discrimination",
    "losses.matching": "losses.text_matching",
    "losses.paired": "losses.image_matching",
    "losses.penalties": "losses.gradient_penalties",
    "losses.terms": "losses.base",
    "losses.unseen": "losses.interpolated_captions",
    "metrics.manifolds": "metrics.precision_recall",
    "muon": "training.muon",
    "text.adapter": "models.text.adapter",
    "text.caption_features": "models.captioner.image_features",
    "text.caption_tokens": "models.captioner.tokenizers",
    "text.captioner": "models.captioner.model",
    "text.encoder": "models.text.encoder",
    "text.kernel_ridge": "models.kernel_ridge",
    "text.prior": "models.image_prior",
}
# Classes that a configuration may name.
CLASSES = {
    "AllLearn": "TrainAllBlocks",
    "Colour": "Colorization",
    "InstanceContrast": "InstanceDiscrimination",
    "NewestLearns": "FreezeOldBlocks",
    "UnseenCaptions": "InterpolatedCaptionLoss",
    "VisualPrior": "ImagePrior",
}
# Settings at any depth of a configuration.
SETTINGS = {
    "reset_moments": "reset_optimizer_state",
    "share_fakes": "share_passes",
    "stem_from": "init_from",
    "turns": "blockwise_training",
}
# Names of scores, in a checkpoint's monitor and in a captioner's description.
SCORES = {
    "val/nlg": "val/caption_ce",
    "val/nlg_shuffled": "val/caption_ce_shuffled",
}
# Entries of a checkpoint or a release, outside its configuration.
ENTRIES = {"taught_by": "teacher_networks"}
# Class names of callbacks whose state a checkpoint holds.
CALLBACKS = {"GrowResolution": "ProgressiveGrowing", "TrainInTurn": "BlockwiseTraining"}

# Old settings of the model that were merged into the list `losses`, in the order of that list.
_LOSSES = ("matching", "self_supervised", "guidance", "captioning", "unseen")
_INTERPOLATED = "imagen_pl.losses.interpolated_captions.InterpolatedCaptionLoss"


def upgrade_class_path(path: str) -> str:
    """The new class path of an old one; any other string is returned unchanged."""
    module, _, name = path.rpartition(".")
    if not module:
        return CLASSES.get(name, name)
    if not module.startswith(_PACKAGE):
        return path
    below = module.removeprefix(_PACKAGE)
    return f"{_PACKAGE}{MODULES.get(below, below)}.{CLASSES.get(name, name)}"


def upgrade_settings(value: Any) -> Any:
    """A configuration, or a part of one, with old names replaced; without old names the result is equal."""
    if isinstance(value, Mapping):
        renamed: dict[str, Any] = {_new_key(key): upgrade_settings(each) for key, each in value.items()}
        if isinstance(path := renamed.get("class_path"), str):
            renamed["class_path"] = upgrade_class_path(path)
        return _merge_losses(renamed)
    if isinstance(value, list):
        return [upgrade_settings(each) for each in value]
    if isinstance(value, str):
        return SCORES.get(value, upgrade_class_path(value) if value.startswith(_PACKAGE) else value)
    return value


def _new_key(key: Any) -> Any:
    return SETTINGS.get(key, SCORES.get(key, key))


def _merge_losses(settings: dict[str, Any]) -> dict[str, Any]:
    """A model's settings with all losses in the list `losses`; any other mapping is returned unchanged."""
    if "adversarial" not in settings or "losses" in settings or not set(_LOSSES) & set(settings):
        return settings
    losses: list[Any] = []
    for name in _LOSSES:
        given = settings.pop(name, None) or []
        losses += given if isinstance(given, list) else [given]
    for loss in losses:
        if isinstance(loss, dict) and loss.get("class_path") == _INTERPOLATED:
            arguments = loss.get("init_args") or {}
            loss["init_args"] = {
                ("generator_weight" if k == "weight" else k): v for k, v in arguments.items()
            }
    return {**settings, "losses": losses}


def _upgrade_state(state: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict with its losses renamed to their places in the list `losses`."""
    last = len(model.get("losses") or []) - 1
    renamed = {}
    for name, value in state.items():
        if name.startswith("terms."):
            name = f"losses.{name.removeprefix('terms.')}"
        elif name.startswith("unseen."):
            name = f"losses.{last}.regression.{name.removeprefix('unseen.')}"
        renamed[name] = value
    return renamed


def renamed_class_paths(value: Any) -> dict[str, str]:
    """The old class paths in a configuration, each with its new one."""
    if isinstance(value, Mapping):
        found = [renamed_class_paths(each) for each in value.values()]
    elif isinstance(value, list):
        found = [renamed_class_paths(each) for each in value]
    elif isinstance(value, str) and value.startswith(_PACKAGE) and upgrade_class_path(value) != value:
        found = [{value: upgrade_class_path(value)}]
    else:
        found = []
    return {old: new for each in found for old, new in each.items()}


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with old names replaced and its tensors unchanged."""
    upgraded = {ENTRIES.get(key, key): value for key, value in checkpoint.items()}
    if isinstance(text := upgraded.get("config"), str):
        config = yaml.safe_load(text)
        if (renamed := upgrade_settings(config)) != config:
            upgraded["config"] = yaml.safe_dump(renamed, sort_keys=False, allow_unicode=True, width=110)
        if any(name.startswith(("terms.", "unseen.")) for name in upgraded["state_dict"]):
            upgraded["state_dict"] = _upgrade_state(
                upgraded["state_dict"], (renamed or {}).get("model") or {}
            )
    if isinstance(states := upgraded.get("callbacks"), Mapping):
        upgraded["callbacks"] = {_upgrade_state_key(key): state for key, state in states.items()}
    return upgraded


def upgrade_description(description: dict[str, Any]) -> dict[str, Any]:
    """A release's or captioner's config.json with old names replaced."""
    upgraded: dict[str, Any] = upgrade_settings(description)
    return {ENTRIES.get(key, key): value for key, value in upgraded.items()}


def _upgrade_state_key(key: str) -> str:
    """Rename a key of Lightning's callback states: the class, optionally followed by settings in braces."""
    name, brace, settings = key.partition("{")
    return CALLBACKS.get(name, name) + brace + settings
