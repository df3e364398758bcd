"""`from_pretrained`, `save_pretrained` and `push_to_hub`, as users of the Hugging Face hub know them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
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
        self: TextToImage,
        save_directory: str | Path,
        *,
        name: str | None = None,
        licence: str = "mit",
        evaluations: Sequence[Mapping[str, Any]] = (),
        prompts: Sequence[str] | None = None,
        images: Sequence[Path] = (),
        with_discriminator: bool = False,
        dtype: torch.dtype = torch.float16,
    ) -> Path:
        """Write what `push_to_hub` uploads: weights, config.json, a model card and samples.

        The data's path and captions are written only if the data source declares that they may be
        published; `save` writes them in any case, and no card.

        Args:
            save_directory: the folder; it is created.
            name: the model's name on the card; None takes the folder's.
            licence: licence of the weights, as the hub spells it.
            evaluations: contents of evaluation.json files, for the scores on the card.
            prompts: of the samples, drawn with seed 0; None takes the usual ones of the model. For a model
                that translates, domains.
            images: pictures for the samples of a model that changes pictures; without any, `icons` draws
                them.
            with_discriminator: write discriminator.safetensors too, for fine-tuning by `init_from`.
            dtype: of the weights.

        Raises:
            UserError: as of `save`, or a prompt or picture cannot be used.
        """
        from imagen_pl.inference.publishing import write_release

        folder = Path(save_directory)
        return write_release(
            self,
            folder,
            name or folder.resolve().name,
            licence,
            evaluations,
            prompts,
            images,
            with_discriminator,
            dtype,
        )

    def push_to_hub(  # type: ignore[misc]
        self: TextToImage,
        repo_id: str,
        *,
        private: bool = False,
        commit_message: str = "Upload by imagen_pl",
        licence: str = "mit",
        evaluations: Sequence[Mapping[str, Any]] = (),
        prompts: Sequence[str] | None = None,
        images: Sequence[Path] = (),
        with_discriminator: bool = False,
        dtype: torch.dtype = torch.float16,
    ) -> list[str]:
        """Upload the model with its card and samples; `imagen-pl push` does the same.

        Args:
            repo_id: its name on the hub, "owner/name"; the repository is created if it does not exist.
            private: make a new repository private.
            commit_message: of the upload.
            licence: as of `save_pretrained`, and so are the following.
            evaluations: scores on the card.
            prompts: of the samples.
            images: for the samples of a model that changes pictures.
            with_discriminator: upload the discriminator too.
            dtype: of the weights.

        Returns:
            Names of the uploaded files.

        Raises:
            UserError: as of `save_pretrained`; or nobody is logged in, or the hub refuses or is not reached.
        """
        check_hub(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            release = self.save_pretrained(
                folder,
                name=repo_id,
                licence=licence,
                evaluations=evaluations,
                prompts=prompts,
                images=images,
                with_discriminator=with_discriminator,
                dtype=dtype,
            )
            upload(release, repo_id, private, message=commit_message)
            return sorted(file.name for file in release.iterdir())
