"""Papers' sizes: on which images, with which encoder and with which settings of size each method was published.

Said once, here: `raydiology methods` counts parameters from it. What is not named is the configs' default.
"""

from dataclasses import dataclass, field
from typing import Any

from methods.base import Frozen
from methods.encoders import DenseNetEncoder, PooledUNetEncoder, SwinEncoder


@dataclass(frozen=True)
class PaperSize:
    """One pretraining of a paper.

    fields   of the method's config; the variant comes on top
    """

    images: str
    encoder: Frozen
    fields: dict[str, Any] = field(default_factory=dict)


def _proxy_sizes(volumes: dict[str, Any], pictures: dict[str, Any]) -> tuple[PaperSize, ...]:
    """Return seed 004's: cubes of 128 voxels by the paper's U-Net, and pictures of 224 pixels by DenseNet-121."""
    cubes = (("pancreas CT", 1), ("UK Biobank brains, T1 and FLAIR", 2), ("BraTS brains, four sequences", 4))
    fundus = DenseNetEncoder.Config(spatial_dims=2, in_channels=3)
    return (
        *(PaperSize(name, PooledUNetEncoder.Config(spatial_dims=3, in_channels=n), volumes) for name, n in cubes),
        PaperSize("fundus photographs", fundus, pictures),
    )


# Seed 001, section 4.2; seed 002, Table 9; seed 004, sections 3 and 4. Seed 004's patches are of 39 voxels (32 in
# CPC) and of 66 pixels (74 in CPC), of which its encoders see 32 and 64. SimMIM is a rival in seed 002, there with
# UNETR's transformer: what is counted has the encoder of its other rows.
PAPER_SIZES: dict[str, tuple[PaperSize, ...]] = {
    "simsiam": (
        PaperSize(
            "CT slices",
            SwinEncoder.Config(spatial_dims=2, drop_path=0.1),
            {"crops": {"size": (96, 96), "iou": (0.3, 0.6)}},
        ),
    ),
    "voco": (PaperSize("CT volumes", SwinEncoder.Config(spatial_dims=3)),),
    "simmim": (PaperSize("CT volumes", SwinEncoder.Config(spatial_dims=3), {"crop_size": (64, 96, 96)}),),
    "rotation": _proxy_sizes({"side": 128}, {"side": 224}),
    "patch_location": _proxy_sizes({}, {"patches": {"size": 64, "jitter": 8}}),
    "jigsaw": _proxy_sizes({}, {"patches": {"size": 64, "jitter": 8}}),
    "exemplar": _proxy_sizes({"side": 128}, {"side": 224}),
    "cpc": _proxy_sizes(
        {}, {"patches": {"grid": 5, "overlap": 0.5, "span": 0.917, "size": 64}, "skip_rows": 1, "border": "zero"}
    ),
}
