"""Drawing: the cost per image of an IoU-bounded pair of crops, beside two plain random crops."""

import time
from collections.abc import Callable
from statistics import fmean

import numpy as np

from data.views.boxes import BoxPairs, uniform_boxes
from data.views.rng import SampleRng

CROP_SIZE = (96, 96)
IOU = (0.3, 0.6)
IMAGE_SIZES = (200, 450)
BATCHES = 2000


def time_per_image(batch_size: int) -> dict[str, float]:
    """Return microseconds per image of drawing a pair, and of drawing two boxes without a bound, in batches."""
    extents = np.random.default_rng(0).integers(*IMAGE_SIZES, (batch_size, 2), endpoint=True)
    ids = [f"image {index}" for index in range(batch_size)]
    pairs = BoxPairs(CROP_SIZE, IOU)

    def draw_pair(rng: SampleRng) -> None:
        pairs.draw(extents, rng)

    def draw_plain(rng: SampleRng) -> None:
        uniform_boxes(extents, CROP_SIZE, rng.fold("first"))
        uniform_boxes(extents, CROP_SIZE, rng.fold("second"))

    return {"iou_pair_us": _mean_us(draw_pair, ids), "plain_crops_us": _mean_us(draw_plain, ids)}


def _mean_us(draw: Callable[[SampleRng], None], ids: list[str]) -> float:
    seconds = []
    for epoch in range(BATCHES):
        rng = SampleRng.for_samples(0, [epoch] * len(ids), ids)
        began = time.perf_counter()
        draw(rng)
        seconds.append(time.perf_counter() - began)
    return fmean(seconds) / len(ids) * 1e6
