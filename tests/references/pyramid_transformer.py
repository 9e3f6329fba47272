"""A pyramid transformer, one image and one token at a time; convolutions are torch's own."""

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.references.vit import Weights, linear, part


def embedded(image: Tensor, w: Weights, stride: tuple[int, ...]) -> Tensor:
    """A convolution whose kernel hangs over by half its side, instance norm, leaky ReLU."""
    convolve = (F.conv2d, F.conv3d)[image.ndim - 3]
    found = convolve(image[None], w["conv.weight"], stride=stride, padding=w["conv.weight"].shape[-1] // 2)[0]
    rows = []
    for channel, weight, bias in zip(found, w["norm.weight"], w["norm.bias"], strict=True):
        centred = channel - channel.mean()
        x = centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias
        rows.append(torch.where(x > 0, x, 0.01 * x))
    return torch.stack(rows)


def norm(x: Tensor, w: Weights, epsilon: float) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + epsilon).sqrt() * w["weight"] + w["bias"]


def seen_by(tokens: list[Tensor], grid: tuple[int, ...], w: Weights, kind: str) -> list[Tensor]:
    """What every token attends to: the class token if there is one, and blocks of the others, each as one token."""
    if f"reduce.{kind}.weight" not in w:
        return tokens
    kernel, bias = w[f"reduce.{kind}.weight"], w[f"reduce.{kind}.bias"]
    side = kernel.shape[-1]
    num_others = len(tokens) - math.prod(grid)
    by_place = dict(zip(itertools.product(*map(range, grid)), tokens[num_others:], strict=True))
    found = tokens[:num_others]
    for corner in itertools.product(*(range(length // side) for length in grid)):
        total = bias
        for inside in itertools.product(range(side), repeat=len(grid)):
            place = tuple(side * c + i for c, i in zip(corner, inside, strict=True))
            total = total + kernel[(slice(None), slice(None), *inside)] @ by_place[place]
        found.append(total)
    return [norm(x, part(w, "norm"), 1e-5) for x in found]


def block(tokens: list[Tensor], grid: tuple[int, ...], w: Weights, heads: int, kind: str) -> list[Tensor]:
    attention, normal = part(w, "attn"), [norm(x, part(w, "norm1"), 1e-6) for x in tokens]
    width = len(tokens[0])
    side = width // heads
    pairs = [linear(x, part(attention, "kv")) for x in seen_by(normal, grid, attention, kind)]
    moved = []
    for token, x in zip(tokens, normal, strict=True):
        query, found = linear(x, part(attention, "q")), []
        for own in (slice(head * side, (head + 1) * side) for head in range(heads)):
            shares = torch.stack([query[own] @ pair[:width][own] / side**0.5 for pair in pairs]).softmax(0)
            found.append(sum(s * pair[width:][own] for s, pair in zip(shares, pairs, strict=True)))
        moved.append(token + linear(torch.cat(found), part(attention, "proj")))
    layers = part(w, "mlp")
    return [
        x + linear(F.gelu(linear(norm(x, part(w, "norm2"), 1e-6), part(layers, "fc1"))), part(layers, "fc2"))
        for x in moved
    ]


def maps(image: Tensor, w: Weights, heads: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """Return the five maps of an image (c, *s) whose size is that of the positions, and the last class token."""
    dims = image.ndim - 1
    kind, token = f"{dims}D", torch.empty(0)
    found = [embedded(image, part(w, f"stem.{kind}"), (1, 2, 2)[-dims:])]
    for stage, count in enumerate(heads):
        own = part(w, f"stages.{stage}")
        places = embedded(found[-1], part(own, f"embed.{kind}"), (2,) * dims)
        token = own["token"][0, 0] if stage == 0 else linear(token, part(own, "token"))
        tokens = [x + p for x, p in zip([token, *places.flatten(1).T], own[f"positions.{kind}"][0], strict=True)]
        for number in range(num_blocks(own)):
            tokens = block(tokens, tuple(places.shape[1:]), part(own, f"blocks.{number}"), count, kind)
        token = tokens[0]
        found.append(torch.stack(tokens[1:], dim=1).view(-1, *places.shape[1:]))
    return found, token


def num_blocks(w: Weights) -> int:
    return 1 + max(int(key.split(".")[1]) for key in w if key.startswith("blocks."))


def grown(coarse: Tensor, w: Weights) -> Tensor:
    """Each place becomes two along every axis, by a kernel of its own for each of them."""
    kernel, bias = w["weight"], w["bias"]
    fine = torch.empty(kernel.shape[1], *(2 * length for length in coarse.shape[1:]), dtype=coarse.dtype)
    for place in itertools.product(*map(range, coarse.shape[1:])):
        for inside in itertools.product(range(2), repeat=len(place)):
            at = tuple(2 * p + i for p, i in zip(place, inside, strict=True))
            fine[(slice(None), *at)] = coarse[(slice(None), *place)] @ kernel[(..., *inside)] + bias
    return fine


def logits(maps: list[Tensor], w: Weights, heads: tuple[int, ...]) -> Tensor:
    """Return the logits of an image at the size of its first map, by the decoder, from the maps of the encoder."""
    *skipped, found = maps
    kind = f"{found.ndim - 1}D"
    for stage, count in enumerate(heads):
        own = part(w, f"stages.{stage}")
        places = grown(found, part(own, "grow")) + skipped.pop()
        tokens = [x + p for x, p in zip(places.flatten(1).T, own["positions"][0], strict=True)]
        for number in range(num_blocks(own)):
            tokens = block(tokens, tuple(places.shape[1:]), part(own, f"blocks.{number}"), count, kind)
        found = torch.stack(tokens, dim=1).view_as(places)
    flat = torch.stack([norm(x, part(w, "norm"), 1e-6) for x in found.flatten(1).T], dim=1)
    joined = grown(flat.view_as(found), part(w, "grow")) + skipped.pop()
    refined = embedded(joined, part(w, "refine"), (1,) * (joined.ndim - 1))
    matrix = w["classify.weight"].flatten(1)
    return (matrix @ refined.flatten(1) + w["classify.bias"][:, None]).view(-1, *refined.shape[1:])
