"""`from_pretrained`, `save_pretrained` and `push_to_hub`, as users of the Hugging Face hub know them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imagen_pl.storage.hub_upload import check_hub, upload

if TYPE_CHECKING:
    from imagen_pl.inference.pipeline import TextToImage


class PretrainedMethods:
    """The methods of huggingface_hub's PyTorchModelHubMixin, for a TextToImage.

    The mixin itself stores a module and its constructor's arguments; a release holds the generator's
    average and names of the networks' classes, so its files differ.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        resolution: int | None = None,
        revision: str | None = None,
    ) -> TextToImage:
        """Open a model by its name on the hub, or from a folder: `imagen_pl.load` as the hub spells it.

        Args:
            pretrained_model_name_or_path: "owner/name" on the hub, a release's or run's folder, or a model
                that ships with this package.
            device: where to draw; None takes the first CUDA device if there is one.
            resolution: height of the pictures, px; None takes the size that training has grown to.
            revision: branch, tag or commit on the hub; None takes the newest.

        Raises:
            UserError: there is no such model, it is damaged, or a revision is given for a folder.
        """
        from imagen_pl.inference.pipeline import load
        from imagen_pl.storage.model_paths import model_file

        return load(model_file(pretrained_model_name_or_path, revision=revision), device, resolution)

    def save_pretrained(  # type: ignore[misc]  # self is of the class that inherits
        self: TextToImage, save_directory: str | Path, *, name: str | None = None, **settings: Any
    ) -> Path:
        """Write what `push_to_hub` uploads: weights, config.json, a model card and samples.

        The data's path and captions are written only if the data source declares that they may be
        published; `save` writes them in any case, and no card.

        Args:
            save_directory: the folder; it is created.
            name: the model's name on the card; None takes the folder's.
            settings: fields of imagen_pl.inference.publishing.ReleaseSettings: licence, evaluations, prompts,
                images, with_discriminator, dtype.

        Raises:
            UserError: as of `save`, or a prompt or picture cannot be used.
        """
        from imagen_pl.inference.publishing import ReleaseSettings, write_release

        folder = Path(save_directory)
        return write_release(self, folder, name or folder.resolve().name, ReleaseSettings(**settings))

    def push_to_hub(  # type: ignore[misc]
        self: TextToImage,
        repo_id: str,
        *,
        private: bool = False,
        commit_message: str = "Upload by imagen_pl",
        **settings: Any,
    ) -> list[str]:
        """Upload the model with its card and samples; `imagen-pl push` does the same.

        Args:
            repo_id: its name on the hub, "owner/name"; the repository is created if it does not exist.
            private: make a new repository private.
            commit_message: of the upload.
            settings: as of `save_pretrained`.

        Returns:
            Names of the uploaded files.

        Raises:
            UserError: as of `save_pretrained`; or the hub refuses, is not reached, or needs a
                login.
        """
        check_hub(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            release = self.save_pretrained(folder, name=repo_id, **settings)
            upload(release, repo_id, private, message=commit_message)
            return sorted(file.name for file in release.iterdir())
