"""A vision transformer and MAE's decoder, one image and one token at a time; gradients come from autograd."""

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def part(weights: Weights, name: str) -> Weights:
    """Return the weights whose names begin with ``name.``, without it."""
    return {key[len(name) + 1 :]: value for key, value in weights.items() if key.startswith(f"{name}.")}


def norm(x: Tensor, w: Weights) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * w["weight"] + w["bias"]


def linear(x: Tensor, w: Weights) -> Tensor:
    return w["weight"] @ x + w.get("bias", 0)


def block(tokens: list[Tensor], w: Weights, heads: int) -> list[Tensor]:
    """Attention and two layers, each on normalised tokens and added to them."""
    width = len(tokens[0])
    side = width // heads
    triples = [linear(norm(x, part(w, "norm1")), part(w, "attn.qkv")) for x in tokens]
    attended = []
    for one in range(len(tokens)):
        found = []
        for head in range(heads):
            own = slice(head * side, (head + 1) * side)
            query = triples[one][:width][own]
            scores = [query @ other[width : 2 * width][own] / math.sqrt(side) for other in triples]
            shares = torch.stack(scores).softmax(0)
            found.append(sum(s * other[2 * width :][own] for s, other in zip(shares, triples, strict=True)))
        attended.append(tokens[one] + linear(torch.cat(found), part(w, "attn.out_proj")))
    return [
        x + linear(F.gelu(linear(norm(x, part(w, "norm2")), part(w, "mlp.linear1"))), part(w, "mlp.linear2"))
        for x in attended
    ]


def blocks(tokens: list[Tensor], w: Weights, heads: int) -> list[Tensor]:
    """All blocks of ``blocks``, and ``norm``."""
    count = 1 + max(int(key.split(".")[1]) for key in w if key.startswith("blocks."))
    for number in range(count):
        tokens = block(tokens, part(w, f"blocks.{number}"), heads)
    return [norm(x, part(w, "norm")) for x in tokens]


def patches_of(image: Tensor, side: int) -> list[Tensor]:
    """Return the voxels of each patch of an image (c, *s), in raster order."""
    corners = itertools.product(*(range(0, length, side) for length in image.shape[1:]))
    return [image[(slice(None), *(slice(c, c + side) for c in corner))].flatten() for corner in corners]


def embedded(image: Tensor, w: Weights, side: int) -> list[Tensor]:
    """Return the tokens of an image whose grid is that of the learnt positions."""
    kernel, bias = w["patch_embedding.patch_embeddings.weight"], w["patch_embedding.patch_embeddings.bias"]
    positions = w["patch_embedding.position_embeddings"][0]
    patches = patches_of(image, side)
    return [kernel.flatten(1) @ patch + bias + own for patch, own in zip(patches, positions, strict=True)]


def wave_positions(grid: tuple[int, ...], width: int) -> list[Tensor]:
    waves = width // (2 * len(grid))
    found = []
    for place in itertools.product(*map(range, grid)):
        values = []
        for along in place:
            angles = [along / 10000 ** (wave / waves) for wave in range(waves)]
            values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        found.append(torch.tensor(values + [0.0] * (width - len(values)), dtype=torch.float32).double())
    return found


def decoded(visible: list[Tensor], hidden: list[bool], w: Weights, grid: tuple[int, ...], heads: int) -> list[Tensor]:
    """Return the voxels that MAE's decoder predicts for each patch."""
    left = iter(visible)
    tokens = [w["token"][0, 0] if gone else linear(next(left), part(w, "embed")) for gone in hidden]
    positions = wave_positions(grid, len(tokens[0]))
    moved = [token + position for token, position in zip(tokens, positions, strict=True)]
    return [linear(x, part(w, "voxels")) for x in blocks(moved, w, heads)]
