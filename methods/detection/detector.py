"""Detector: a two-stage network around an encoder, that finds boxes of classes in images or in planes of volumes.

Paper:     Ren et al., "Faster R-CNN", NeurIPS 2015; Lin et al., "Feature Pyramid Networks for Object Detection", CVPR
           2017; with a 3D encoder, as Zhang et al. (SVD-Net, seed 003), section III-B and Figure 2.
Reference: open-mmlab/mmdetection 2.x, ``faster_rcnn_r50_fpn.py``; urmagicsmine/MP3D @ 4ab3ea1, ``mp3d_groupconv.py``:
           anchors of scale 4, group transforms, and the variants that ``losses.py`` and ``roi_align.py`` name.
Variants:  see the files of the parts.
Shapes:    B images, C channels, M true boxes of an image, K classes, L levels of the pyramid, A anchors of a level.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data.views.intervals import Probability
from methods.base import FrozenConfig
from methods.detection.anchors import centred_in, level_anchors
from methods.detection.assignments import Assignment, Truth, assign_anchors, assign_regions
from methods.detection.detections import Detections, detections_of
from methods.detection.feature_pyramid import FeaturePyramid
from methods.detection.group_transform import GroupTransform
from methods.detection.heads import ProposalHead, RegionHead
from methods.detection.levels import detector_levels
from methods.detection.losses import proposal_losses, region_losses
from methods.detection.proposals import LevelAnswer, Proposals, proposals_of
from methods.detection.roi_align import roi_align
from methods.encoders import Encoder
from methods.parts.precision import full_precision


class Detector(nn.Module):
    """An encoder, a group transform for each of its levels if it is 3D, a feature pyramid, and two heads."""

    class Config(FrozenConfig):
        """Defaults are mmdetection's, but for anchors as in MP3D: of 16 to 256 pixels, at strides of 4 to 64.

        pyramid_channels   channels of the feature pyramid
        norm, norm_groups  of the pyramid's convolutions
        anchor_scale       side of a square anchor, in strides of its level
        anchor_ratios      of anchors' heights to their widths
        level_proposals    the likeliest anchors of each level that are looked at, in training and in evaluation
        proposals          how many are left of an image's, after suppression of those that overlap more than
                           ``proposal_iou`` with a likelier one
        sampled_anchors, sampled_regions   samples of an image that the losses look at
        region_size        bins of a region, along height and width
        region_samples     samples per axis and bin; 0 for as many as the bin has values
        head_dims          widths of the hidden layers on a region's features
        betas              of the losses of deltas, for anchors and for regions, see ``losses.py``
        score_threshold    detections need a higher score
        detection_iou      a detection that overlaps more with a likelier one of its class is dropped
        most_detections    the likeliest that are kept of an image's detections
        """

        pyramid_channels: PositiveInt = 256
        norm: Literal["none", "group"] = "none"
        norm_groups: PositiveInt = 32
        anchor_scale: PositiveFloat = 4.0
        anchor_ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
        level_proposals: tuple[PositiveInt, PositiveInt] = (2000, 1000)
        proposals: PositiveInt = 1000
        proposal_iou: Probability = 0.7
        sampled_anchors: PositiveInt = 256
        sampled_regions: PositiveInt = 512
        region_size: PositiveInt = 7
        region_samples: NonNegativeInt = 2
        head_dims: tuple[PositiveInt, ...] = Field(default=(1024, 1024), min_length=1)
        betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 0.0)
        score_threshold: Probability = 0.05
        detection_iou: Probability = 0.5
        most_detections: PositiveInt = 100

        @model_validator(mode="after")
        def _divides_its_channels(self) -> "Detector.Config":
            if self.norm == "group" and self.pyramid_channels % self.norm_groups:
                raise ValueError(
                    f"norm_groups {self.norm_groups} does not divide the {self.pyramid_channels} channels of the "
                    "pyramid; change one of the two"
                )
            return self

    def __init__(self, config: Config, encoder: Encoder, num_classes: int, slices: int | None = None) -> None:
        """Build the parts around ``encoder``, which takes volumes of ``slices`` slices, or images."""
        super().__init__()
        levels = detector_levels(encoder, slices)
        self.config = config
        self.num_classes = num_classes
        self.places = [level.place for level in levels]
        self.strides = [*(level.stride for level in levels), 2 * levels[-1].stride]
        self.encoder = encoder
        self.transforms = nn.ModuleList(
            GroupTransform(level.channels, level.depth) if level.depth else nn.Identity() for level in levels
        )
        self.pyramid = FeaturePyramid(
            [level.channels for level in levels],
            config.pyramid_channels,
            config.norm_groups if config.norm == "group" else None,
        )
        self.proposal_head = ProposalHead(config.pyramid_channels, len(config.anchor_ratios))
        in_dim = config.pyramid_channels * config.region_size**2
        self.region_head = RegionHead(in_dim, config.head_dims, num_classes)

    def forward(self, images: Float[Tensor, "b c *s"]) -> list[Float[Tensor, "b p _ _"]]:
        """Return the levels of the pyramid, finest first."""
        maps = self.encoder.features(images)
        planes = [transform(maps[place]) for transform, place in zip(self.transforms, self.places, strict=True)]
        return self.pyramid(planes)

    def losses(
        self,
        images: Float[Tensor, "b c *s"],
        boxes: Float[Tensor, "b M 4"],
        classes: Int64[Tensor, "b M"],
        seeds: Int64[Tensor, " b"],
        windows: Float[Tensor, "b 4"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the four losses, each the mean over the images; their sum is to be minimised.

        boxes, classes   in pixels, 0 to K - 1; a class of -1 marks padding
        seeds            decide which anchors and regions are sampled
        windows          the part of each image that is not padding, by default all of it
        """
        # A box of padding at least, so that there is something to index.
        boxes, classes = F.pad(boxes, (0, 0, 0, 1)), F.pad(classes, (0, 1), value=-1)
        return self._losses(self(images), boxes, classes, seeds, self._windows(images, windows))

    @torch.no_grad()
    def detect(
        self, images: Float[Tensor, "b c *s"], windows: Float[Tensor, "b 4"] | None = None
    ) -> list[Detections]:
        """Return what is found in each image, the likeliest first; boxes are cut at the windows."""
        return self._detect(self(images), self._windows(images, windows))

    @full_precision()
    def _losses(
        self,
        maps: list[Tensor],
        boxes: Float[Tensor, "b M 4"],
        classes: Int64[Tensor, "b M"],
        seeds: Int64[Tensor, " b"],
        windows: Float[Tensor, "b 4"],
    ) -> dict[str, Float[Tensor, ""]]:
        config, answers = self.config, self._answers(maps)
        anchors = torch.cat([level.anchors for level in answers[0]])
        truths = [Truth(one.to(anchors), own) for one, own in zip(boxes, classes, strict=True)]
        assigned, regions = [], []
        for levels, truth, seed, window in zip(answers, truths, seeds, windows.to(anchors), strict=True):
            usable = centred_in(anchors, window)
            assigned.append(assign_anchors(anchors, usable, truth, seed, config.sampled_anchors))
            proposals = self._proposals(levels, window, config.level_proposals[0])
            regions.append(assign_regions(proposals, truth, self.num_classes, seed, config.sampled_regions))
        names = ("proposal_class_loss", "proposal_box_loss", "class_loss", "box_loss")
        found = (*self._proposal_losses(answers, assigned), *self._region_losses(maps, regions))
        return dict(zip(names, found, strict=True))

    def _proposal_losses(
        self, answers: Sequence[Sequence[LevelAnswer]], assigned: Sequence[Assignment]
    ) -> tuple[Tensor, Tensor]:
        told = [
            (
                torch.cat([level.logits for level in levels])[one.index],
                torch.cat([level.deltas for level in levels])[one.index],
            )
            for levels, one in zip(answers, assigned, strict=True)
        ]
        logits, deltas = (torch.cat(each) for each in zip(*told, strict=True))
        return proposal_losses(
            logits,
            deltas,
            torch.cat([one.positive for one in assigned]),
            torch.cat([one.deltas for one in assigned]),
            torch.cat([one.weights for one in assigned]) / len(assigned),
            self.config.betas[0],
        )

    def _region_losses(self, maps: list[Tensor], regions: Sequence[Assignment]) -> tuple[Tensor, Tensor]:
        weights = torch.cat([one.weights for one in regions])
        counted = _places(weights > 0)
        images = torch.arange(len(regions), device=weights.device).repeat_interleave(len(regions[0].index))[counted]
        logits, deltas = self._regions(maps, torch.cat([one.boxes for one in regions])[counted], images)
        return region_losses(
            logits,
            deltas,
            torch.cat([one.classes for one in regions])[counted],
            torch.cat([one.deltas for one in regions])[counted],
            weights[counted] / len(regions),
            self.config.betas[1],
        )

    @full_precision()
    def _detect(self, maps: list[Tensor], windows: Float[Tensor, "b 4"]) -> list[Detections]:
        config, found = self.config, []
        for number, levels in enumerate(self._answers(maps)):
            window = windows[number].to(levels[0].anchors)
            proposals = self._proposals(levels, window, config.level_proposals[1])
            regions = proposals.boxes[proposals.counts]
            images = torch.full_like(regions[:, 0], number, dtype=torch.int64)
            logits, deltas = self._regions(maps, regions, images)
            bounds = (config.score_threshold, config.detection_iou)
            found.append(detections_of(regions, logits, deltas, window, *bounds, config.most_detections))
        return found

    def _answers(self, maps: Sequence[Tensor]) -> list[list[LevelAnswer]]:
        """Return what the proposal head says of each level, image by image."""
        config, levels = self.config, []
        for one, stride in zip(maps, self.strides, strict=True):
            logits, deltas = self.proposal_head(one)
            size = (one.shape[2], one.shape[3])
            anchors = level_anchors(size, stride, config.anchor_scale, config.anchor_ratios, logits)
            levels.append([LevelAnswer(anchors, *answer) for answer in zip(logits, deltas, strict=True)])
        return [[*image] for image in zip(*levels, strict=True)]

    def _proposals(self, levels: list[LevelAnswer], window: Float[Tensor, "4"], most_of_level: int) -> Proposals:
        return proposals_of(levels, window, most_of_level, self.config.proposals, self.config.proposal_iou)

    def _regions(
        self, maps: Sequence[Tensor], regions: Float[Tensor, "R 4"], images: Int64[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R K1"], Float[Tensor, "R K 4"]]:
        """Return the answers to regions; the pyramid's additional level is for anchors only."""
        config = self.config
        *of_encoder, _ = maps
        features = roi_align(
            of_encoder, self.strides[:-1], regions, images, config.region_size, config.region_samples
        )
        return self.region_head(features)

    def _windows(self, images: Float[Tensor, "b c *s"], windows: Tensor | None) -> Float[Tensor, "b 4"]:
        if windows is not None:
            return windows
        return images.new_tensor([0, 0, *images.shape[-2:]]).expand(len(images), 4)


def _places(counted: Tensor) -> Int64[Tensor, " k"]:
    """Return where entries are true; tensors without values have all of them."""
    return torch.arange(len(counted), device=counted.device) if counted.is_meta else counted.nonzero()[:, 0]
