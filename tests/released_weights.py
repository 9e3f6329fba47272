"""Names and shapes of residual networks as other projects save them, and state dicts of them with made-up values.

Read in the files that methods/encoders/layouts.py names. ``width`` is 64 in everything released.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def norm_shapes(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{key}", (channels,)) for key in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def resnet_shapes(depth: int, dims: int, channels: int, width: int = 64, shortcut: str = "B") -> Shapes:
    """Return a residual network without a head; shortcuts of type A have no weights."""
    widen = 4 if depth == 50 else 1
    found: Shapes = {"conv1.weight": (width, channels, *(7,) * dims), **dict(norm_shapes("bn1", width))}
    taken = width
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        own = width * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convolutions = [(own, taken, 3), (own, own, 3)]
            if depth == 50:
                convolutions = [(own, taken, 1), (own, own, 3), (4 * own, own, 1)]
            for number, (out, into, side) in enumerate(convolutions, start=1):
                found[f"{name}.conv{number}.weight"] = (out, into, *(side,) * dims)
                found |= dict(norm_shapes(f"{name}.bn{number}", out))
            if block == 0 and taken != widen * own and shortcut == "B":
                found[f"{name}.downsample.0.weight"] = (widen * own, taken, *(1,) * dims)
                found |= dict(norm_shapes(f"{name}.downsample.1", widen * own))
            taken = widen * own
    return found


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{key}": shape for key, shape in shapes.items()}


def classifier(depth: int, width: int, classes: int, name: str = "fc") -> Shapes:
    features = width * 8 * (4 if depth == 50 else 1)
    return {f"{name}.weight": (classes, features), f"{name}.bias": (classes,)}


def torchvision_shapes(depth: int, width: int = 64) -> Shapes:
    return {**resnet_shapes(depth, 2, 3, width), **classifier(depth, width, 1000)}


def monai_shapes(
    depth: int, dims: int, channels: int, width: int = 64, prefix: str = "", bias: bool = False
) -> Shapes:
    """Return MONAI's; by default its shortcuts have a bias too."""
    trunk = resnet_shapes(depth, dims, channels, width)
    for key, shape in list(trunk.items()) if bias else ():
        if key.endswith("downsample.0.weight"):
            trunk[key.replace("weight", "bias")] = shape[:1]
    return prefixed(prefix, {**trunk, **classifier(depth, width, 400)})


def medicalnet_shapes(depth: int, width: int = 64) -> Shapes:
    """Return Med3D's, saved from data-parallel training; 18 and 34 have shortcuts of type A."""
    return prefixed("module.", resnet_shapes(depth, 3, 1, width, "B" if depth == 50 else "A"))


def kinetics_shapes(depth: int, width: int = 64, shortcut: str = "B", prefix: str = "module.") -> Shapes:
    return prefixed(prefix, {**resnet_shapes(depth, 3, 3, width, shortcut), **classifier(depth, width, 400)})


def cspr_shapes(depth: int, width: int = 64, deep_stem: bool = False) -> Shapes:
    """Return SVD-Net's; V1c has a stem of three convolutions."""
    trunk = resnet_shapes(depth, 3, 1, width)
    if deep_stem:
        trunk = {key: shape for key, shape in trunk.items() if not key.startswith(("conv1.", "bn1."))}
        for number, (out, into) in enumerate([(width // 2, 1), (width // 2, width // 2), (width, width // 2)]):
            trunk[f"stem.{number}.conv.weight"] = (out, into, 3, 3, 3)
            trunk |= dict(norm_shapes(f"stem.{number}.bn", out))
    return {**prefixed("backbone.", trunk), **classifier(depth, width, 1000, "head.fc")}


def filled(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Return tensors of some shapes: kernels around 0, norms around 1, variances above 0, counters of 7 batches."""
    generator, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            found[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            found[key] = 0.5 + value.square()
        elif len(shape) > 1:
            found[key] = value / (0.5 * value[0].numel()) ** 0.5
        else:
            found[key] = 0.3 * value + (0 if key.endswith(("bias", "running_mean")) else 1)
    return found
