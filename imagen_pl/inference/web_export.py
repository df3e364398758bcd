"""A page that draws in the reader's browser: a folder for any static host.

The page is imagen_pl/web/site, which is built from imagen_pl/web/source. To it come the model's files:
model/NAME.onnx, a graph without its large tensors, model/NAME.weights, these, in as few bits as keep the
images within the tolerance, the tokenizer, and site.json, which describes them.

Axes: b batch, c channels, h w pixels of the small image, H W of the large one, t tokens.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

import imagen_pl
from imagen_pl.data.sources.declaration import declaration_of
from imagen_pl.errors import UserError
from imagen_pl.inference.export import Drawer, need_onnx, onnx_model, open_onnx, quiet, trace
from imagen_pl.inference.packed_weights import BITS, pack, rounded
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.inference.upscaling import Upscaler
from imagen_pl.models.latents import latents
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.types import TextFeatures

SITE = Path(imagen_pl.__file__).parent / "web" / "site"
TOLERANCE = 2e-3  # of images, -1 to 1
_TRIALS = ("a red heart", "a cat, outline", "the face of a clock that shows half past ten")
_CAPTIONS = 13  # of the training set, beside these
_STYLES = 4  # that the page suggests where the data source declares none
# The packed weights are held to half the tolerance on the trials, since other prompts may differ by more.
_MARGIN = 0.5
_WORTH_IT = 0.95  # unpacking takes the browser time


@dataclass(frozen=True)
class PageTexts:
    """What the page says about its model.

    Args:
        name: of the model.
        examples: prompts to click on.
        card: the model card, Markdown: the training data, its authors and licences.
    """

    name: str
    examples: Sequence[str]
    card: str


class Enlarger(nn.Module):
    """The upsampler as a function of tensors alone, without noise: large images, -1 to 1."""

    def __init__(self, upscaler: Upscaler) -> None:
        super().__init__()
        self.generator = upscaler.generator

    def forward(
        self,
        small: Float[Tensor, "b c h w"],
        tokens: Float[Tensor, "b t c"],
        mask: Bool[Tensor, "b t"],
        pooled: Float[Tensor, "b c"],
    ) -> Float[Tensor, "b c H W"]:
        """Alpha, the fourth channel, is enlarged like a grey picture, as in Upscaler.upscale."""
        text, level = TextFeatures(tokens, mask, pooled), small.new_zeros(len(small))
        colours = self.generator.upscale(small[:, :3], level, text).clamp(-1, 1)
        if small.shape[1] == 3:
            return colours
        alpha = self.generator.upscale(small[:, 3:].expand(-1, 3, -1, -1), level, text)
        return torch.cat([colours, alpha.mean(1, keepdim=True).clamp(-1, 1)], 1)


def export_web(
    model: TextToImage,
    out: Path,
    texts: PageTexts,
    upscaler: Upscaler | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, float]:
    """Write the page and the model's files.

    Args:
        model: draws the pictures.
        out: a new folder.
        texts: what the page says about the model.
        upscaler: enlarges the pictures; None shows them as they are drawn.
        tolerance: largest difference of an image, -1 to 1, from the one that PyTorch draws. A larger one
            makes the files smaller.

    Returns:
        The largest difference found, by network: of the generator's images, and of the upscaler's.

    Raises:
        UserError: the model reads no free text, the upscaler reads it differently, a package is missing, or
            the images differ by more.
    """
    encoder = model.text_encoder
    if not isinstance(encoder, FrozenTextEncoder):
        raise UserError(
            f"--to web: this model reads no prompts but {type(encoder).__name__}, and the page has no "
            "tokenizer for them: draw with `imagen-pl sample` or serve `imagen-pl demo`"
        )
    _check_upscaler(encoder, upscaler)
    need_onnx("web")
    if not (SITE / "index.html").is_file():
        raise UserError(f"--to web: the page is not in {SITE}: build it with `make web`")
    packing = _Packing(model, encoder, tolerance)
    with quiet(), torch.no_grad():
        programs = trace(model, encoder)
        packing.pack("generator", onnx_model(programs["generator"], "generator"))
        packing.pack("text_encoder", onnx_model(programs["text_encoder"], "text_encoder"))
        if upscaler is not None:
            packing.pack_upscaler(Enlarger(upscaler).eval())
    _copy_page(out)
    files: dict[str, Any] = {}
    for name, (graph, weights, tensors, bits) in packing.packed.items():
        files[name] = {
            "graph": _write_compressed(out, f"model/{name}.onnx", graph),
            "weights": _write_compressed(out, f"model/{name}.weights", weights),
            "tensors": tensors,
            "bits": bits,
        }
    files["tokenizer"], files["tokenizer_config"] = _write_tokenizer(encoder, out)
    files["card"] = _write_compressed(out, "model/card.md", texts.card.encode())
    runtime = sorted((out / "runtime").iterdir())
    files["runtime"] = {file.name: _described(out, file) for file in runtime}
    width, height = model.size
    description = {
        "name": texts.name,
        "software": f"imagen_pl {imagen_pl.__version__}",
        "images_seen": model.description.get("images_seen"),
        "width": width,
        "height": height,
        "factor": 1 if upscaler is None else upscaler.factor,
        "alpha": model.alpha,
        "latent_dim": model.generator.latent_dim,
        "max_tokens": encoder.max_tokens,
        "styles": _styles(model),
        "examples": list(texts.examples),
        "refines": bool(model.refine_steps(None)),
        "files": files,
    }
    with atomic_write(out / "site.json") as file:
        file.write((json.dumps(description, indent=1) + "\n").encode())
    _finish_service_worker(out)
    return packing.gaps


def _styles(model: TextToImage) -> list[str]:
    """Endings of captions that name a style: what the data source declares, else the most frequent ones."""
    source = declaration_of(model.description.get("data"))
    if source.styles or not source.captions_may_be_published:
        return [f"{style} style" for style in source.styles]
    captions = model.description.get("captions") or ()
    endings = Counter(caption.rpartition(", ")[2] for caption in captions if ", " in caption)
    return [ending for ending, _ in endings.most_common(_STYLES)]


class _Packing:
    """Packs networks in as few bits as keep the images within the tolerance."""

    def __init__(self, model: TextToImage, encoder: FrozenTextEncoder, tolerance: float) -> None:
        self.encoder, self.tolerance = encoder, tolerance
        captions = [*_TRIALS, *(model.description.get("captions") or ())[:_CAPTIONS]]
        self.words = [encoder.tokenize([caption]) for caption in captions]
        self.texts = [encoder.encode([caption]) for caption in captions]
        self.z = [latents([0], seed, model.generator.latent_dim) for seed in range(len(captions))]
        drawer = Drawer(model).eval()
        with torch.inference_mode():
            self.images = [drawer(z, *_tensors(text)) for z, text in zip(self.z, self.texts, strict=True)]
        self.draw: Callable[..., list[Tensor]] | None = None
        self.packed: dict[str, tuple[bytes, bytes, list[int], int]] = {}
        self.gaps: dict[str, float] = {}

    def pack(self, name: str, graph: Any) -> None:
        """Pack the generator, then the text encoder, whose images the packed generator draws."""
        trial = self._generator_gap if name == "generator" else self._encoder_gap
        run = self._search(name, graph, trial, "images")
        if name == "generator":
            self.draw = run

    def pack_upscaler(self, enlarger: Enlarger) -> None:
        """Pack the upsampler, for pictures of the generator's size."""
        small = [((image + 1) * 127.5).round() / 127.5 - 1 for image in self.images[:4]]
        text = self.texts[0]
        words = torch.export.Dim("words", min=2, max=self.encoder.max_tokens)
        program = torch.export.export(
            enlarger,
            (small[0], *_tensors(text)),
            dynamic_shapes={"small": {}, "tokens": {1: words}, "mask": {1: words}, "pooled": {}},
        )
        large = [enlarger(image, *_tensors(text)) for image, text in zip(small, self.texts, strict=False)]

        def gap(run: Callable[..., list[Tensor]]) -> float:
            rows = zip(small, self.texts, large, strict=False)
            return max(_gap(run(image, *_tensors(text))[0], wanted) for image, text, wanted in rows)

        self._search("upscaler", onnx_model(program, "upscaler"), gap, "enlarged images")

    def _generator_gap(self, run: Callable[..., list[Tensor]]) -> float:
        rows = zip(self.z, self.texts, self.images, strict=True)
        return max(_gap(run(z, *_tensors(text))[0], image) for z, text, image in rows)

    def _encoder_gap(self, run: Callable[..., list[Tensor]]) -> float:
        assert self.draw is not None  # the generator is packed first
        rows = zip(self.z, self.words, self.images, strict=True)
        return max(_gap(self.draw(z, *run(*words))[0], image) for z, words, image in rows)

    def _search(
        self, name: str, graph: Any, gap: Callable[[Callable[..., list[Tensor]]], float], what: str
    ) -> Callable[..., list[Tensor]]:
        """Find the fewest bits by bisection, and keep the packed network; returns it, unpacked."""
        found: dict[int, tuple[float, Callable[..., list[Tensor]]]] = {}
        low, high = 0, len(BITS) - 1
        while high not in found:
            place = (low + high) // 2
            run = open_onnx(rounded(graph, BITS[place]).SerializeToString())
            found[place] = gap(run), run
            if found[place][0] <= self.tolerance * _MARGIN:
                high = place
            else:
                low = min(place + 1, high)
        self.gaps[name], run = found[high]
        if not self.gaps[name] <= self.tolerance:  # or no number
            raise UserError(
                f"the page's {what} differ by {self.gaps[name]:.1e} (of -1 to 1) from PyTorch's, more than "
                f"--tolerance {self.tolerance:g}"
            )
        packed = pack(graph, BITS[high], f"{name}.weights")
        self.packed[name] = (packed.graph, packed.weights, list(packed.tensors), packed.bits)
        return run


def _check_upscaler(encoder: FrozenTextEncoder, upscaler: Upscaler | None) -> None:
    if upscaler is not None and upscaler.model.text_encoder.fingerprint != encoder.fingerprint:
        raise UserError(
            "--to web: the upscaler reads prompts with another text encoder than the model: use "
            "--upscaler none"
        )


def _tensors(text: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
    return text.tokens, text.mask, text.pooled


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---------------------------------------------------------------------- files


@dataclass(frozen=True)
class _File:
    """A file of the site: its path in the folder, its size in bytes, and the start of its SHA-256."""

    path: str
    bytes: int
    hash: str


def _described(out: Path, file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return asdict(_File(file.relative_to(out).as_posix(), len(content), digest))


def _write_compressed(out: Path, path: str, content: bytes) -> dict[str, Any]:
    """Write PATH.gz, or PATH if gzip saves little. Static hosts compress few kinds of files themselves."""
    compressed = gzip.compress(content, 9, mtime=0)
    if len(compressed) < _WORTH_IT * len(content):
        path, content = f"{path}.gz", compressed
    with atomic_write(out / path) as file:
        file.write(content)
    return _described(out, out / path)


def _write_tokenizer(encoder: FrozenTextEncoder, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = out / "tokenizer"
    encoder.save_tokenizer(folder)
    names = ("tokenizer.json", "tokenizer_config.json")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"--to web: the text encoder's tokenizer has no {missing[0]}, which the page reads")
    first, second = (_write_compressed(out, f"model/{n}", (folder / n).read_bytes()) for n in names)
    shutil.rmtree(folder)
    return first, second


def _copy_page(out: Path) -> None:
    for file in sorted(SITE.rglob("*")):
        if file.is_file():
            with atomic_write(out / file.relative_to(SITE)) as copy:
                copy.write(file.read_bytes())


def _finish_service_worker(out: Path) -> None:
    """Tell the service worker which files to keep: the page's own now, the model's once they are loaded."""
    own: list[dict[str, Any]] = []
    large: list[dict[str, Any]] = []
    for file in sorted(out.rglob("*")):
        if file.is_file() and file.name not in ("sw.js", "source.sha256"):
            described = _described(out, file)
            (large if file.parent.name in ("model", "runtime") else own).append(described)
    listed = {"own": own, "large": [f"{each['path']}?{each['hash']}" for each in large]}
    worker = (out / "sw.js").read_text(encoding="utf-8")
    placeholder = '{"own": [], "large": []}'
    assert placeholder in worker, "sw.js has no place for the list of files"
    with atomic_write(out / "sw.js") as opened:
        opened.write(worker.replace(placeholder, json.dumps(listed)).encode())
