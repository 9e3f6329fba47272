"""SwinMM's loss, slowly, in numpy float64, where the encoder's map is the image and the decoder one layer."""

import numpy as np

from tests.references.differences import differentiate
from tests.references.swin_pretext import contrast

Weights = dict[str, np.ndarray]
FLAT = 1e-6


def swapped(image: np.ndarray, swap: int) -> np.ndarray:
    """Exchange the first axis of an image (c, *s) with the next but ``swap``."""
    return image.swapaxes(1, 2 + swap)


def loss(
    seen: np.ndarray, whole: np.ndarray, turns: np.ndarray, swaps: np.ndarray, hidden: np.ndarray, w: Weights,
    tokens: str, normalise: bool,
) -> float:  # fmt: skip
    """Return all losses' sum of versions (crops, 2, b, c, *s), seen in two views of them, the first axis of ``seen``.

    Turns, swaps and hidden voxels are (b, crops * 2, ..).
    """
    crops, _, samples, channels = whole.shape[:4]
    weight, bias = w["decoder.out.weight"].reshape(channels, channels), w["decoder.out.bias"]
    plain_errors, swapped_errors, disagreements, entropies, embedded = [], [], [], [], {}
    for crop, version, sample in np.ndindex(crops, 2, samples):
        image, other_image = seen[:, crop, version, sample]
        target, own = whole[crop, version, sample].copy(), 2 * crop + version
        turn, swap, unseen = int(turns[sample, own]), int(swaps[sample, own]), hidden[sample, own]
        plain, other = (
            np.einsum("kc,c...->k...", weight, view) + bias.reshape(-1, *[1] * (image.ndim - 1))
            for view in (image, other_image)
        )
        other = swapped(other, swap)
        if normalise:
            for channel in target:
                channel[:] = (channel - channel.mean()) / np.sqrt(channel.var(ddof=1) + FLAT)
        plain_errors += ((plain - target)[:, unseen] ** 2).flatten().tolist()
        swapped_errors += ((other - target)[:, unseen] ** 2).flatten().tolist()
        if version == 0:
            disagreements += ((plain - other)[:, unseen] ** 2).flatten().tolist()
        flat = image.reshape(channels, -1)
        first, second = (flat.mean(1), flat.mean(1)) if tokens == "mean" else (flat[:, 0], flat[:, 1])
        scores = np.exp(w["turn_head.weight"] @ first + w["turn_head.bias"])
        entropies.append(-np.log(scores[turn] / scores.sum()))
        embedded[crop, version, sample] = w["contrast_head.weight"] @ second + w["contrast_head.bias"]
    versions = [
        np.stack([embedded[crop, version, sample] for crop in range(crops) for sample in range(samples)])
        for version in range(2)
    ]
    means = [np.mean(each) for each in (plain_errors, swapped_errors, disagreements, entropies)]
    return float(np.sum(means)) + contrast(versions[0], versions[1], 0.5)


def gradients(*given: np.ndarray, w: Weights, tokens: str, normalise: bool) -> Weights:
    """Differentiate the loss by every weight."""
    seen, whole, turns, swaps, hidden = given
    return {
        name: differentiate(
            lambda x, name=name: loss(seen, whole, turns, swaps, hidden, {**w, name: x}, tokens, normalise),
            value,
            1e-6,
        )
        for name, value in w.items()
    }
