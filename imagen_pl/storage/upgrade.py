"""Old names to new ones: checkpoints, releases and configurations that an earlier commit wrote stay readable.

Before 0.1.0 modules, classes and settings were renamed. Every file that names them passes through here when
it is read. A new name is one more line in a table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

_PACKAGE = "imagen_pl."

# Modules whose classes a configuration may name, below the package.
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
# Settings, at any depth.
SETTINGS = {
    "reset_moments": "reset_optimizer_state",
    "stem_from": "init_from",
    "turns": "blockwise_training",
}
# Names of scores: monitors of a checkpoint, and what a captioner's description says.
SCORES = {
    "val/nlg": "val/caption_ce",
    "val/nlg_shuffled": "val/caption_ce_shuffled",
}
# Entries of a checkpoint or a release, beside its configuration.
ENTRIES = {"taught_by": "teacher_networks"}
# Callbacks whose state a checkpoint holds, by the class.
CALLBACKS = {"GrowResolution": "ProgressiveGrowing", "TrainInTurn": "BlockwiseTraining"}


def upgrade_class_path(path: str) -> str:
    """The new class path of an old one; any other string is returned as it is."""
    module, _, name = path.rpartition(".")
    if not module:
        return CLASSES.get(name, name)
    if not module.startswith(_PACKAGE):
        return path
    below = module.removeprefix(_PACKAGE)
    return f"{_PACKAGE}{MODULES.get(below, below)}.{CLASSES.get(name, name)}"


def upgrade_settings(value: Any) -> Any:
    """A configuration, or a part of one, with new names; what has none is equal to what was given."""
    if isinstance(value, Mapping):
        renamed = {SETTINGS.get(key, SCORES.get(key, key)): upgrade_settings(v) for key, v in value.items()}
        if isinstance(path := renamed.get("class_path"), str):
            renamed["class_path"] = upgrade_class_path(path)
        return renamed
    if isinstance(value, list):
        return [upgrade_settings(each) for each in value]
    if isinstance(value, str):
        return SCORES.get(value, upgrade_class_path(value) if value.startswith(_PACKAGE) else value)
    return value


def renamed_class_paths(value: Any) -> dict[str, str]:
    """Old class paths in a configuration, and the new one of each."""
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
    """A checkpoint with new names, its tensors as they are; a new one is returned as it is."""
    upgraded = {ENTRIES.get(key, key): value for key, value in checkpoint.items()}
    if isinstance(text := upgraded.get("config"), str):
        config = yaml.safe_load(text)
        if (renamed := upgrade_settings(config)) != config:
            upgraded["config"] = yaml.safe_dump(renamed, sort_keys=False, allow_unicode=True, width=110)
    if isinstance(states := upgraded.get("callbacks"), Mapping):
        upgraded["callbacks"] = {_upgrade_state_key(key): state for key, state in states.items()}
    return upgraded


def upgrade_description(description: dict[str, Any]) -> dict[str, Any]:
    """What a release's or a captioner's config.json says, with new names."""
    upgraded: dict[str, Any] = upgrade_settings(description)
    return {ENTRIES.get(key, key): value for key, value in upgraded.items()}


def _upgrade_state_key(key: str) -> str:
    """Lightning keys a callback's state by its class, followed by settings in braces where it has several."""
    name, brace, settings = key.partition("{")
    return CALLBACKS.get(name, name) + brace + settings
