"""Deformable attention and its layer, slowly, in plain loops and numpy float64."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import erf, exp, floor, log, sqrt, tanh

import numpy as np

from tests.references.differences import differentiate

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """What is computed: see the flags of ``DeformableAttention.Config``."""

    axis: str
    grouped: bool
    num_heads: int
    head_dim: int
    aligned: bool
    bias: str
    downsample: int
    kernel_size: int
    offset_scale: float


def gelu(x: float) -> float:
    return x * (1 + erf(x / sqrt(2))) / 2


def read(row: np.ndarray, position: float) -> float:
    """Read a row between its entries; there are zeros before the first and after the last."""
    low, total = floor(position), 0.0
    for index, weight in ((low, low + 1 - position), (low + 1, position - low)):
        if 0 <= index < len(row):
            total += weight * row[index]
    return total


def bias(form: Form, w: Mapping[str, np.ndarray], head: int, distance: float) -> float:
    """Return the bias at a distance between two places, of which the whole sequence is 2 long."""
    if form.bias == "table":
        table = w["bias.table"][head]
        return read(table, (distance / 2 + 1) / 2 * (len(table) - 1))
    x = np.array([np.sign(distance) * log(1 + abs(distance))])
    for layer in (0, 2, 4):
        x = w[f"bias.layers.{layer}.weight"] @ x + w[f"bias.layers.{layer}.bias"]
        x = np.maximum(x, 0) if layer < 4 else x
    return float(x[0])


def offsets(form: Form, w: Mapping[str, np.ndarray], queries: np.ndarray) -> list[float]:
    """Return the offset of each place of the grid, from one head's queries (e, n)."""
    dims, length = queries.shape
    pad = (form.kernel_size - form.downsample) // 2
    found = []
    for place in range((length + 2 * pad - form.kernel_size) // form.downsample + 1):
        total = 0.0
        for dim in range(dims):
            seen = w["offsets.0.bias"][dim]
            for tap in range(form.kernel_size):
                at = place * form.downsample + tap - pad
                if 0 <= at < length:
                    seen += w["offsets.0.weight"][dim, 0, tap] * queries[dim, at]
            total += w["offsets.2.weight"][0, dim, 0] * gelu(seen)
        found.append(form.offset_scale * tanh(total))
    return found


def head_output(form: Form, w: Mapping[str, np.ndarray], x: np.ndarray, head: int) -> np.ndarray:
    """Return eq. 8: one head's output (e, n) for one sequence (c, n)."""
    channels, length = x.shape
    width = channels // form.num_heads if form.grouped else channels
    own = x[head * width : (head + 1) * width] if form.grouped else x
    rows = slice(head * form.head_dim, (head + 1) * form.head_dim)
    queries = w["query.weight"][rows, :, 0] @ own
    moved = offsets(form, w, queries)
    places = [2 * (m + offset) / max(len(moved) - 1, 1) - 1 for m, offset in enumerate(moved)]
    keys, values = [], []
    for place in places:
        aligned, bordered = (place + 1) / 2 * (length - 1), ((place + 1) * length - 1) / 2
        sampled = np.array([read(row, aligned if form.aligned else bordered) for row in own])
        keys.append(w["key.weight"][rows, :, 0] @ sampled)
        values.append(w["value.weight"][rows, :, 0] @ sampled)
    output = np.zeros((form.head_dim, length))
    for n in range(length):
        near = 2 * n / (length - 1) - 1
        weights = [
            exp(float(queries[:, n] @ key) / sqrt(form.head_dim) + bias(form, w, head, near - place))
            for key, place in zip(keys, places, strict=True)
        ]
        for weight, value in zip(weights, values, strict=True):
            output[:, n] += weight / sum(weights) * value
    return output


def attention(form: Form, w: Mapping[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Return deformable attention of volumes' tokens (b, d, f)."""
    attended = np.empty_like(tokens)
    for volume, own in enumerate(tokens):
        x = own.T if form.axis == "slices" else own
        heads = [head_output(form, w, x, head) for head in range(form.num_heads)]
        y = w["output.weight"][:, :, 0] @ np.concatenate(heads) + w["output.bias"][:, None]
        attended[volume] = y.T if form.axis == "slices" else y
    return attended


def norm(x: np.ndarray, weight: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Normalise each token."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + shift


def layer(form: Form, w: Weights, tokens: np.ndarray) -> np.ndarray:
    """Return a layer's tokens (b, d, f), without dropout."""
    inner = {name.removeprefix("attention."): value for name, value in w.items()}
    x = tokens + attention(form, inner, tokens)
    x = norm(x, w["attention_norm.weight"], w["attention_norm.bias"])
    hidden = x @ w["feed_forward.0.weight"].T + w["feed_forward.0.bias"]
    hidden = np.vectorize(gelu)(hidden) @ w["feed_forward.3.weight"].T + w["feed_forward.3.bias"]
    return norm(x + hidden, w["feed_forward_norm.weight"], w["feed_forward_norm.bias"])


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Return the encoding of positions of Vaswani et al., section 3.5."""
    table = np.empty((length, dim))
    for position in range(length):
        for feature in range(dim):
            angle = position / 10000 ** (2 * (feature // 2) / dim)
            table[position, feature] = np.sin(angle) if feature % 2 == 0 else np.cos(angle)
    return table


def gradients(form: Form, w: Weights, tokens: np.ndarray, pull: np.ndarray, step: float = 1e-6) -> Weights:
    """Differentiate the sum of a layer's tokens, weighted by ``pull``, by every weight and by its input."""

    def pulled(name: str, value: np.ndarray) -> float:
        if name == "tokens":
            return float((layer(form, w, value) * pull).sum())
        return float((layer(form, {**w, name: value}, tokens) * pull).sum())

    return {
        name: differentiate(lambda x, name=name: pulled(name, x), value, step)
        for name, value in {**w, "tokens": tokens}.items()
    }
