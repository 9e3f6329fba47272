"""VoCo's overlaps, head and losses, slowly, in plain loops and numpy float64; one function per version.

``cvpr``, ``paper`` and ``released`` are written down one by one, from the equations and from what is known of the
code, without the flags of ``methods/voco.py``. Gradients are central differences; stopped sides keep their values.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from tests.references.differences import differentiate

BATCH_NORM_EPS = INSTANCE_NORM_EPS = 1e-5
LEAK = 0.01
FLOOR = 1e-6
Weights = dict[str, np.ndarray]
Embeddings = np.ndarray  # (views, samples, d)


def count_overlaps(box: np.ndarray, extent: tuple[int, ...], grid: tuple[int, ...]) -> list[float]:
    """Colour each voxel of a sample by its base; return the share of a box's voxels that have each colour."""
    counts = dict.fromkeys(itertools.product(*(range(g) for g in grid)), 0)
    voxels = 0
    for voxel in itertools.product(*(range(low, high) for low, high in zip(*box, strict=True))):
        base = tuple(v * g // s for v, g, s in zip(voxel, grid, extent, strict=True))
        counts[base] += 1
        voxels += 1
    return [count / voxels for count in counts.values()]


def batch_norm(x: np.ndarray) -> np.ndarray:
    """Normalise each column by its mean and biased variance."""
    out = np.empty_like(x)
    for column in range(x.shape[1]):
        values = x[:, column]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        out[:, column] = (values - mean) / math.sqrt(variance + BATCH_NORM_EPS)
    return out


def project(x: np.ndarray, w: Weights) -> np.ndarray:
    """Three linear layers; batch norm without affine and ReLU after the first two."""
    for layer in (0, 3):
        x = x @ w[f"head.projector.{layer}.weight"].T + w[f"head.projector.{layer}.bias"]
        x = np.maximum(batch_norm(x), 0)
    return x @ w["head.projector.6.weight"].T + w["head.projector.6.bias"]


def convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate (B, C, *s) with a (C2, C, 3, ...) kernel, beyond the border is 0."""
    padded = np.pad(x, [(0, 0), (0, 0), *[(1, 1)] * (x.ndim - 2)])
    out = np.zeros((len(x), len(kernel), *x.shape[2:]))
    for offset in itertools.product(range(3), repeat=x.ndim - 2):
        window = padded[(..., *(slice(o, o + s) for o, s in zip(offset, x.shape[2:], strict=True)))]
        out += np.einsum("oc,bc...->bo...", kernel[(..., *offset)], window)
    return out


def instance_norm(x: np.ndarray) -> np.ndarray:
    """Normalise each channel of each image over space."""
    flat = x.reshape(*x.shape[:2], -1)
    normal = (flat - flat.mean(2, keepdims=True)) / np.sqrt(flat.var(2, keepdims=True) + INSTANCE_NORM_EPS)
    return normal.reshape(x.shape)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, LEAK * x)


def skip_block(x: np.ndarray, w: Weights, number: int) -> np.ndarray:
    """Two convolutions with instance norm beside the identity, as many channels out as in."""
    conv = [w[f"head.skips.blocks.{number}.layer.conv{k}.conv.weight"] for k in (1, 2)]
    inner = leaky(instance_norm(convolve(x, conv[0])))
    return leaky(instance_norm(convolve(inner, conv[1])) + x)


def mean_over_space(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:2], -1).mean(axis=2)


def embed(images: np.ndarray, w: Weights, version: str) -> Embeddings:
    """Embed (views, samples, C, *s): all views of all samples share their batch statistics.

    The encoder is the identity; in ``released`` the image and the encoder's only map each go through a block.
    """
    flat = images.reshape(-1, *images.shape[2:])
    if version == "cvpr":
        z = project(mean_over_space(flat), w)
    elif version == "paper":
        positions = flat.reshape(*flat.shape[:2], -1)
        rows = np.concatenate([image.T for image in positions])
        z = np.stack([part.mean(axis=0) for part in np.split(project(rows, w), len(flat))])
    else:
        pooled = [mean_over_space(skip_block(flat, w, number)) for number in (0, 1)]
        z = project(np.concatenate(pooled, axis=1), w)
    return z.reshape(*images.shape[:2], -1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def positives_and_negatives(logits: np.ndarray, labels: np.ndarray, weighted: bool) -> float:
    """Return the two terms of one sample's loss: (R, K) similarities beside (R, K) overlaps."""
    positive = negative = weight = count = 0.0
    for similarity, label in zip(logits.ravel(), labels.ravel(), strict=True):
        if label > 0:
            positive -= (label if weighted else 1.0) * math.log(1 - abs(label - similarity) + FLOOR)
            weight += label if weighted else 1.0
        else:
            negative += similarity**2
            count += 1
    return positive / (weight + FLOOR) + negative / (count + FLOOR)


def equation_3(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return eq. 3 over all crops and bases of a sample."""
    total = 0.0
    for similarity, label in zip(logits.ravel(), labels.ravel(), strict=True):
        total -= math.log(max(0.0, 1 - abs(label - similarity)) + FLOOR)
    return total / labels.size


def equation_5(q: np.ndarray) -> float:
    """Return eq. 5 for the bases (K, d) of a sample, each pair counted once."""
    k = len(q)
    return 2 / (k * (k - 1)) * sum(abs(cosine(q[i], q[j])) for i in range(k) for j in range(i + 1, k))


def squared_regularisation(q: np.ndarray, seconds: np.ndarray) -> float:
    """Return the mean of ReLU(cosine)² over pairs i < j of one sample; ``seconds`` are what j is taken from."""
    pairs = [(i, j) for i in range(len(q)) for j in range(i + 1, len(q))]
    return sum(max(0.0, cosine(q[i], seconds[j])) ** 2 for i, j in pairs) / len(pairs)


@dataclass(frozen=True)
class Case:
    """Images (views, samples, C, *s), crops first; overlaps (samples, R, K); and a teacher for ``released``."""

    version: str
    images: np.ndarray
    shares: np.ndarray
    teacher: Weights


def loss(case: Case, w: Weights, images: np.ndarray, stopped: Embeddings) -> float:
    """Compute eq. 7 with lambda 1; ``stopped`` are the embeddings behind the student's own stop-gradients."""
    num_crops = case.shares.shape[1]
    z = embed(images, w, case.version)
    taught = embed(case.images, case.teacher, case.version) if case.version == "released" else None
    total = 0.0
    for sample, labels in enumerate(case.shares):
        p, q = z[:num_crops, sample], z[num_crops:, sample]
        fixed_q = stopped[num_crops:, sample]
        logits = np.empty_like(labels)
        for r, k in np.ndindex(labels.shape):
            if case.version == "cvpr":
                logits[r, k] = max(0.0, cosine(p[r], fixed_q[k]))
            elif case.version == "paper":
                logits[r, k] = cosine(p[r], fixed_q[k])
            else:
                assert taught is not None
                there = max(0.0, cosine(p[r], taught[num_crops + k, sample]))
                back = max(0.0, cosine(taught[r, sample], q[k]))
                logits[r, k] = (there + back) / 2
        if case.version == "paper":
            total += equation_3(logits, labels) + equation_5(q)
        else:
            seconds = fixed_q if case.version == "released" else q
            total += positives_and_negatives(logits, labels, weighted=case.version == "released")
            total += squared_regularisation(q, seconds)
    return total / len(case.shares)


def gradients(case: Case, w: Weights, step: float = 1e-6) -> Weights:
    """Differentiate ``loss`` by every weight of the student and by the images that the student sees."""
    stopped = embed(case.images, w, case.version)
    found = {
        name: differentiate(lambda x, name=name: loss(case, {**w, name: x}, case.images, stopped), value, step)
        for name, value in w.items()
    }
    return {**found, "images": differentiate(lambda x: loss(case, w, x, stopped), case.images, step)}
