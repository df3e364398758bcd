"""`imagen-pl export`: a trained model for other programs, held against the original."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage, load
from imagen_pl.models.latents import latents
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.storage.atomic_files import atomic_write
from imagen_pl.types import TextFeatures

# What an export is held against the original with: a batch of one, and one of three lengths.
_TRIALS = (
    ["red heart"],
    ["a cat", "a blue square, noto style", "the face of a clock that shows half past ten"],
)
# Images are -1 to 1: a level of a picture's 256 is 0.008.
_TOLERANCE = 2e-3
_TOLERANCE_HALF = 5e-2
_USE = """# Drawing with this export

These files draw without refinement (`imagen-pl sample --refine 0`): they hold the generator and the text
encoder, not the optimisation that `imagen-pl sample` runs by default where the generator has a prior.

`images` are float32, -1 to 1.{channels} `z` is standard normal, {latent_dim} wide. Captions become tokens by
`tokenizer/`, at most {max_tokens}.

```python
{code}
```
"""
_CODE_ONNX = """import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer/tokenizer.json")
tokenizer.enable_padding()
tokenizer.enable_truncation({max_tokens})
reader = onnxruntime.InferenceSession("text_encoder.onnx")
drawer = onnxruntime.InferenceSession("generator.onnx")

words = tokenizer.encode_batch(["red heart, fluent style"])
ids = np.array([w.ids for w in words], np.int64)
attention_mask = np.array([w.attention_mask for w in words], np.int64)
tokens, mask, pooled = reader.run(None, {{"ids": ids, "attention_mask": attention_mask}})
z = np.random.default_rng(7).standard_normal((len(ids), {latent_dim})).astype(np.float32)
(images,) = drawer.run(None, {{"z": z, "tokens": tokens, "mask": mask, "pooled": pooled}})
pixels = (images[0].transpose(1, 2, 0) + 1) * 127.5{straight}
Image.fromarray(pixels.round().astype(np.uint8)).save("heart.png")"""
_CODE_TORCH = """import torch
from torchvision.transforms.functional import to_pil_image
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("tokenizer")
reader = torch.export.load("text_encoder.pt2").module()
drawer = torch.export.load("generator.pt2").module()

words = tokenizer(
    ["red heart, fluent style"], padding=True, truncation=True, max_length={max_tokens}, return_tensors="pt"
)
tokens, mask, pooled = reader(words.input_ids, words.attention_mask)
z = torch.randn(1, {latent_dim}, generator=torch.Generator().manual_seed(7))
images = drawer(z, tokens, mask, pooled)
pixels = (images[0] + 1) / 2{straight}
to_pil_image(pixels).save("heart.png")"""
# Of images with alpha: the networks' colours are those on white, a file's are straight.
_CHANNELS = " The fourth channel is alpha; the others are the colours as they look on white."
_STRAIGHT_ONNX = """
alpha = pixels[..., 3:]
colours = (255 - (255 - pixels[..., :3]) * 255 / alpha.clip(1)).clip(0, 255)
pixels = np.concatenate([colours, alpha], 2)"""
_STRAIGHT_TORCH = """
alpha = pixels[3:]
colours = (1 - (1 - pixels[:3]) / alpha.clamp(1 / 255)).clamp(0, 1)
pixels = torch.cat([colours, alpha])"""


class Drawer(nn.Module):
    """The generator as a function of tensors alone: images, -1 to 1."""

    def __init__(self, model: TextToImage) -> None:
        super().__init__()
        self.generator, self.growth = model.generator, model.growth

    def forward(
        self,
        z: Float[Tensor, "b z"],
        tokens: Float[Tensor, "b t c"],
        mask: Bool[Tensor, "b t"],
        pooled: Float[Tensor, "b c"],
    ) -> Float[Tensor, "b _c h w"]:
        images: Tensor = self.generator(z, TextFeatures(tokens, mask, pooled), self.growth)
        return images.clamp(-1, 1)


class Reader(nn.Module):
    """The text encoder as a function of tensors alone: tokens, mask and pooled vectors."""

    def __init__(self, encoder: FrozenTextEncoder) -> None:
        super().__init__()
        self.network = encoder.network  # among this module's parameters
        self._encoder = [encoder]

    def forward(
        self, ids: Int64[Tensor, "b t"], attention_mask: Int64[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t c"], Bool[Tensor, "b t"], Float[Tensor, "b c"]]:
        text = self._encoder[0].read(ids, attention_mask)
        # Again: onnxruntime's own norm makes no number of a vector of zeros.
        return text.tokens.masked_fill(~text.mask[..., None], 0), text.mask, text.pooled


def export_safetensors(model: TextToImage, out: Path, half: bool, with_discriminator: bool = False) -> float:
    model.save(out, torch.float16 if half else torch.float32, with_discriminator)
    loaded, tolerance = load(out, device="cpu"), _TOLERANCE_HALF if half else _TOLERANCE
    if model.generator.reads_images:  # it draws nothing from captions alone: compare its weights
        return _compared_weights(model, loaded, tolerance)
    own, other = Drawer(model), Drawer(loaded)
    text = [model.text_encoder.encode(captions) for captions in _trials(model)]
    return _compared(own, other, text, model, tolerance)


def _compared_weights(model: TextToImage, loaded: TextToImage, tolerance: float) -> float:
    """The largest difference of the weights, of each tensor in relation to its largest one."""
    gap, others = 0.0, loaded.generator.state_dict()
    for name, weight in model.generator.state_dict().items():
        largest = weight.float().abs().max().clamp_min(1e-12)
        gap = max(gap, float((others[name].to(weight) - weight).abs().max() / largest))
    if not gap < tolerance:
        raise UserError(f"the exported weights differ by {gap:.1e} from the model's")
    return gap


def export_graphs(model: TextToImage, out: Path, kind: str) -> float:
    encoder = model.text_encoder
    if not isinstance(encoder, FrozenTextEncoder):
        raise UserError(
            f"--to {kind}: {type(encoder).__name__} is no FrozenTextEncoder: use --to safetensors"
        )
    if kind == "onnx":
        need_onnx(kind)
    own = Drawer(model).eval()
    with quiet(), torch.no_grad():
        programs = trace(model, encoder)
        write, opened = (_write_onnx, _open_onnx) if kind == "onnx" else (_write_torch, _open_torch)
        files = {name: write(program, out, name) for name, program in programs.items()}
    encoder.save_tokenizer(out / "tokenizer")
    numbers = {"latent_dim": model.generator.latent_dim, "max_tokens": encoder.max_tokens}
    code, straight = (_CODE_ONNX, _STRAIGHT_ONNX) if kind == "onnx" else (_CODE_TORCH, _STRAIGHT_TORCH)
    code = code.format(**numbers, straight=straight if model.alpha else "")
    channels = _CHANNELS if model.alpha else ""
    with atomic_write(out / "README.md") as file:
        file.write(_USE.format(code=code, channels=channels, **numbers).encode())
    with atomic_write(out / "config.json") as file:
        file.write((json.dumps({**model.description, **numbers}, indent=2) + "\n").encode())
    read, drawn = opened(files["text_encoder"]), opened(files["generator"])
    texts = [TextFeatures(*read(*encoder.tokenize(captions))) for captions in _TRIALS]
    for captions, found in zip(_TRIALS, texts, strict=True):
        expected = encoder.encode(captions)
        gap = max(_gap(found.tokens, expected.tokens), _gap(found.pooled, expected.pooled))
        if not (gap < _TOLERANCE and torch.equal(found.mask, expected.mask)):
            raise UserError(f"{files['text_encoder']} reads captions otherwise: vectors differ by {gap:.1e}")
    return _compared(own, drawn, texts, model, _TOLERANCE)


def trace(model: TextToImage, encoder: FrozenTextEncoder) -> dict[str, torch.export.ExportedProgram]:
    """The programs of the text encoder and the generator, for any batch size and any number of tokens."""
    captions = _TRIALS[1]
    ids, attention_mask = encoder.tokenize(captions)
    text = encoder.encode(captions)
    z = latents(range(len(captions)), 0, model.generator.latent_dim)
    batch = torch.export.Dim("batch", min=1, max=1024)
    words = torch.export.Dim("words", min=2, max=encoder.max_tokens)
    rows, table = {0: batch}, {0: batch, 1: words}
    return {
        "text_encoder": torch.export.export(
            Reader(encoder).eval(),
            (ids, attention_mask),
            dynamic_shapes={"ids": table, "attention_mask": table},
        ),
        "generator": torch.export.export(
            Drawer(model).eval(),
            (z, text.tokens, text.mask, text.pooled),
            dynamic_shapes={"z": rows, "tokens": table, "mask": table, "pooled": rows},
        ),
    }


def _trials(model: TextToImage) -> Sequence[list[str]]:
    classes = model.text_encoder.classes
    return _TRIALS if classes is None else ([classes[0]], [classes[k % len(classes)] for k in range(3)])


def _compared(
    own: Callable[..., Tensor],
    other: Callable[..., Any],
    texts: list[TextFeatures],
    model: TextToImage,
    tolerance: float,
) -> float:
    """The largest difference of two drawers' images, for the trials' captions."""
    gap = 0.0
    for captions, text in zip(_trials(model), texts, strict=True):
        z = latents(range(len(captions)), 0, model.generator.latent_dim)
        expected = model.text_encoder.encode(captions)
        with torch.inference_mode():
            first = own(z, expected.tokens, expected.mask, expected.pooled)
            second = other(z, text.tokens, text.mask, text.pooled)
        gap = max(gap, _gap(first, second[0] if isinstance(second, (list, tuple)) else second))
    if not gap <= tolerance:  # or no number
        raise UserError(f"what was written draws otherwise: images differ by {gap:.1e} (of -1 to 1)")
    return gap


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---------------------------------------------------------------------- kinds of files


def onnx_model(program: torch.export.ExportedProgram, name: str) -> Any:
    """The onnx.ModelProto of a program; `name` is "text_encoder", or another that draws images."""
    inputs = [node.name for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    outputs = ["tokens", "mask", "pooled"] if name == "text_encoder" else ["images"]
    made = torch.onnx.export(program, dynamo=True, input_names=inputs, output_names=outputs, verbose=False)
    assert made is not None
    return made.model_proto


def _write_onnx(program: torch.export.ExportedProgram, out: Path, name: str) -> Path:
    file = out / f"{name}.onnx"
    with atomic_write(file) as opened:
        opened.write(onnx_model(program, name).SerializeToString())
    return file


def _open_onnx(file: Path) -> Callable[..., list[Tensor]]:
    return open_onnx(str(file))


def open_onnx(model: str | bytes) -> Callable[..., list[Tensor]]:
    """An ONNX file, given by its path or content, as a function of its inputs in order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, given)]

    return run


def _write_torch(program: torch.export.ExportedProgram, out: Path, name: str) -> Path:
    file = out / f"{name}.pt2"
    with atomic_write(file) as opened:
        torch.export.save(program, opened)
    return file


def _open_torch(file: Path) -> Callable[..., Any]:
    return torch.export.load(file).module()


def need_onnx(kind: str) -> None:
    """Raise UserError if a package that `--to onnx` and `--to web` need is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"--to {kind} needs {', '.join(missing)}: pip install {' '.join(missing)}")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporters' progress messages, and warnings that do not apply."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "torch.export")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
