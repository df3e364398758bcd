"""A judge of words: does a picture show what its caption says? It learns from real icons alone.

    python -m benchmarks.icon_judge --icons imagen_pl/data/shipped/icons64

A small ResNet and a linear projection of the sentence encoder's vectors are trained so that pictures and
captions match (InfoNCE both ways, CLIP, arXiv:2103.00020), on the icons of every split: models are asked for
subjects that they have not learnt, and the judge must know these. Each picture also has one hard negative, a
name that differs from its own in one word. Every tenth picture is held out. On these the judge is tested, at
64 px and shrunk to 32 px: whether it finds the name of a picture among 100, whether it tells names apart that
differ in one word, and that it gets worse with blur and noise and falls to chance with shuffled names. It
judges for benchmarks/icons.py and must teach no model.

Writes judge.safetensors, in half precision, and judge.json, with these figures, the command and the machine.

Axes: b batch, n names, e dimensions of the joint space, r pixels.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from benchmarks.machine import command_line, machine
from benchmarks.word_pairs import name_pairs
from imagen_pl.callbacks.run_record import git_state
from imagen_pl.data.sources.icons import SHIPPED, IconRow, IconSource
from imagen_pl.data.transforms import decode
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.storage.atomic_files import atomic_write

FOLDER = Path(__file__).with_name("judge")
SIDE, BATCH, CANDIDATES = 64, 128, 100
KINDS = 10  # that captions name, the most frequent ones
_WIDTHS = (32, 64, 128, 192)

Images = UInt8[Tensor, "b 3 r r"]


class IconJudge(nn.Module):
    """Pictures and captions as vectors in one space; the cosine says how well they match."""

    def __init__(self, text_dim: int = 384, joint_dim: int = 128) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, _WIDTHS[0], 5, 2, 2, bias=False), nn.BatchNorm2d(_WIDTHS[0]), nn.ReLU()
        )
        before = (_WIDTHS[0], *_WIDTHS)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in zip(before, _WIDTHS, strict=False)))
        # It reads all 4 x 4 positions of the last map: where the parts of an arrow are says where it points.
        self.image = nn.Linear(_WIDTHS[-1] * (SIDE // 16) ** 2, joint_dim)
        self.text = nn.Linear(text_dim, joint_dim)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.encoder = FrozenTextEncoder()  # no module: its weights are neither trained nor saved

    def images(self, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b e"]:
        """Unit vectors of images, -1 to 1, of any size."""
        if images.shape[-1] != SIDE:
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        x = self.blocks(self.stem(images))
        return F.normalize(self.image(x.flatten(1)).float(), dim=1)

    def texts(self, pooled: Float[Tensor, "n c"]) -> Float[Tensor, "n e"]:
        """Unit vectors of captions, from the sentence encoder's vectors."""
        return F.normalize(self.text(pooled).float(), dim=1)

    @torch.no_grad()
    def look(self, images: Images) -> Float[Tensor, "b e"]:
        """Unit vectors of pictures of any size, 0 to 255."""
        self.eval()
        return torch.cat([self.images(part.float() / 127.5 - 1) for part in images.split(256)])

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> Float[Tensor, "n e"]:
        """Unit vectors of captions."""
        return self.texts(encode(self.encoder, captions))

    @classmethod
    def load(cls, folder: Path = FOLDER) -> IconJudge:
        """The judge that is included in the repository."""
        judge = cls()
        judge.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
        return judge.eval().requires_grad_(False)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet, arXiv:1512.03385); a wider block halves the side."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        stride = 1 if before == width else 2
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(before, width, 1, 2)

    def forward(self, x: Float[Tensor, "b c r r"]) -> Float[Tensor, "b d s s"]:
        h = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(h)) + self.shortcut(x))


def encode(encoder: FrozenTextEncoder, captions: Sequence[str]) -> Float[Tensor, "n c"]:
    """The sentence encoder's vectors, of captions of similar length together."""
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    parts = [
        encoder.encode([captions[i] for i in order[k : k + 64]]).pooled for k in range(0, len(order), 64)
    ]
    return torch.cat(parts)[torch.tensor(order).argsort()]


def held_out(row: IconRow) -> bool:
    """Whether the judge is tested on a picture: every tenth, equal pictures alike."""
    return zlib.crc32(row.image) % 10 == 0


def one_word_apart(names: Sequence[str]) -> dict[str, list[str]]:
    """For each name those that have one word more, one less, or another one in one place."""
    known = {tuple(name.split()): name for name in names}
    near: defaultdict[str, set[str]] = defaultdict(set)
    with_gap: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for words, name in known.items():
        for i in range(len(words)):
            before, after = words[:i], words[i + 1 :]
            with_gap[(*before, "", *after)].add(name)
            if shorter := known.get(before + after):
                near[name].add(shorter)
                near[shorter].add(name)
    for group in with_gap.values():
        for name in group:
            near[name] |= group - {name}
    return {name: sorted(others) for name, others in near.items()}


def augment(images: Float[Tensor, "b 3 r r"], draw: torch.Generator) -> Float[Tensor, "b 3 r r"]:
    """Moved, scaled, at times at half the resolution, and with noise, since models draw less cleanly."""
    b = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, generator=draw)

    zero = torch.zeros(b)
    rows = [torch.stack([uniform(0.85, 1.15), zero, uniform(-0.1, 0.1)], 1) for _ in range(2)]
    rows[1] = rows[1][:, [1, 0, 2]]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images - 1, grid, align_corners=False) + 1  # white comes in at the sides
    small = F.interpolate(F.avg_pool2d(moved, 2), scale_factor=2, mode="bilinear")
    halved = torch.rand(b, 1, 1, 1, generator=draw) < 0.5
    noise = torch.randn(images.shape, generator=draw) * uniform(0.0, 0.15)[:, None, None, None]
    return torch.where(halved, small, moved) + noise


def train(judge: IconJudge, rows: Sequence[IconRow], images: Images, steps: int, seed: int) -> None:
    """Fit the judge to pictures and their names; half of those of a frequent kind are named with it."""
    names = sorted({row.words for row in rows})
    counts = Counter(row.kind for row in rows if row.kind)
    kinds = ["", *(f", {kind}" for kind, _ in counts.most_common(KINDS))]
    place = {(name, kind): i for i, (name, kind) in enumerate((n, k) for n in names for k in kinds)}
    vectors = encode(judge.encoder, ["".join(key) for key in place])
    twins = one_word_apart(names)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    judge.train()
    bar = tqdm(range(steps), "judge", mininterval=10)
    for _ in bar:
        chosen = torch.randint(len(rows), (BATCH,), generator=draw).tolist()
        own, other = [], []
        for i, pick in zip(chosen, torch.rand(BATCH, 2, generator=draw).tolist(), strict=True):
            kind = f", {rows[i].kind}" if pick[0] < 0.5 and f", {rows[i].kind}" in kinds else ""
            near = twins.get(rows[i].words) or names
            own.append(place[rows[i].words, kind])
            other.append(place[near[int(pick[1] * len(near))], kind])
        x = augment(images[chosen].float() / 127.5 - 1, draw)
        with torch.autocast("cpu", torch.bfloat16):
            seen = judge.images(x)
            read, apart = judge.texts(vectors[own]), judge.texts(vectors[other])
        scale = judge.log_scale.exp().clamp(max=100)
        subject = torch.tensor([i // len(kinds) for i in own])
        equal = (subject[:, None] == subject).fill_diagonal_(False)
        by_pair = (seen @ read.T * scale).masked_fill(equal, -torch.inf)
        twin = (seen * apart).sum(1, keepdim=True) * scale
        target = torch.arange(BATCH)
        loss = F.cross_entropy(torch.cat([by_pair, twin], 1), target) + F.cross_entropy(by_pair.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


def tests(
    judge: IconJudge, rows: Sequence[IconRow], images: Images, names: list[str], seed: int
) -> dict[str, Any]:
    """What the judge gets right about held-out real pictures, and about spoilt ones.

    Args:
        judge: the judge.
        rows: the held-out pictures' rows.
        images: their pictures.
        names: of all subjects, from which the wrong answers are drawn.
        seed: of the wrong answers.
    """
    draw = torch.Generator().manual_seed(seed)
    number = {name: i for i, name in enumerate(names)}
    read = judge.read(names)
    own = torch.tensor([number[row.words] for row in rows])
    # Other names, each once: the same shift of the list's order for a whole column.
    shifts = 1 + torch.rand(len(rows), len(names) - 1, generator=draw).argsort(1)[:, : CANDIDATES - 1]

    def among(seen: Float[Tensor, "b e"], named: Int64[Tensor, " b"]) -> dict[str, float]:
        similarity = seen @ read.T
        right = similarity.gather(1, named[:, None])
        wrong = similarity.gather(1, (named[:, None] + shifts) % len(names))
        ranks = 1 + (wrong >= right).sum(1)
        return {f"top{k}": float((ranks <= k).float().mean()) for k in (1, 5)}

    noise = torch.randn(images.shape, generator=draw) * 0.5 * 127.5
    spoilt = {
        "64 px": images.float(),
        "32 px": F.avg_pool2d(images.float(), 2),
        "blurred (sigma 3 px)": gaussian_blur(images.float(), [13, 13], [3.0, 3.0]),
        "noise (0.5)": images + noise,
    }
    seen = {name: judge.look(each.round().clamp(0, 255).to(torch.uint8)) for name, each in spoilt.items()}
    found: dict[str, Any] = {name: among(each, own) for name, each in seen.items()}
    found["64 px, names shuffled"] = among(seen["64 px"], own[torch.randperm(len(own), generator=draw)])
    pictures: defaultdict[int, list[int]] = defaultdict(list)
    for place, name in enumerate(own.tolist()):
        pictures[name].append(place)
    for size in ("64 px", "32 px"):
        right: defaultdict[str, list[bool]] = defaultdict(list)
        for first, second, category in name_pairs(names):
            for mine, other in ((number[first], number[second]), (number[second], number[first])):
                margin = seen[size][pictures[mine]] @ (read[mine] - read[other])
                right[category] += (margin > 0).tolist()
        for category, answers in right.items():
            found[size][category] = {"right": sum(answers) / len(answers), "pictures": len(answers)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, default=SHIPPED, help="folder of `imagen-pl data icons`")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the judge")
    parser.add_argument("--steps", type=int, default=1400, help=f"of {BATCH} pictures")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    options = parser.parse_args()
    rows = IconSource(str(options.icons)).icon_rows()
    images = torch.stack([decode(row.image, SIDE) for row in tqdm(rows, "pictures", mininterval=10)])
    kept = [i for i, row in enumerate(rows) if not held_out(row)]
    tested = [i for i, row in enumerate(rows) if held_out(row)]
    torch.manual_seed(options.seed)
    judge = IconJudge()
    train(judge, [rows[i] for i in kept], images[kept], options.steps, options.seed)
    weights = {name: value.half().contiguous() for name, value in judge.state_dict().items()}
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out / "judge.safetensors") as file:
        file.write(save(weights))
    names = sorted({row.words for row in rows})
    judge = IconJudge.load(options.out)
    found = tests(judge, [rows[i] for i in tested], images[tested], names, options.seed)
    about = {
        "command": command_line(),
        "git": git_state(),
        "machine": machine(),
        "pictures": {"trained on": len(kept), "tested on": len(tested)},
        "tests": found,
    }
    with atomic_write(options.out / "judge.json") as file:
        file.write((json.dumps(about, indent=2) + "\n").encode())
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
