"""Defaults work together: every method, and every downstream task, on every encoder, in 2D and 3D.

The papers' sizes are too large to compute here: shapes are followed on torch's ``meta`` device, without memory.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from data.boxes import Boxes
from data.views.batch import Batch
from methods import METHODS
from methods.base import Method, Views
from methods.downstream import TASKS, Task
from methods.downstream.classification import Classification
from methods.downstream.detection import Detection
from methods.downstream.segmentation import Segmentation
from methods.encoders import ENCODERS, Encoder, UNetEncoder
from methods.parts.flat_map import mean_features
from methods.simsiam import SimSiam
from tests.batches import eight_bit_batch
from tests.encoders import EACH_BUILD
from tests.methods.test_contract import FACTS, batch_of, encoder_for, fed, pairs, sgd, take_steps, takes, tiny_config

EXTENTS = {2: (256, 256), 3: (192, 192, 192)}
META = torch.device("meta")
# Their views depend on how many voxels an encoder's last map has.
SEE_VOXELS_OF_MAPS = ("spark", "pgl", "vicregl")
# They come with the instance norm of nnU-Net, of which a run warns where it averages the last map.
OF_NNUNET = ("plain_conv_unet", "residual_encoder_unet")


@cache
def default_encoder(name: str, dims: int) -> Encoder:
    return ENCODERS[name](ENCODERS[name].Config(spatial_dims=dims)).to(META)


def on_meta(views: Views) -> Views:
    targets = {name: target.to(META) for name, target in views.targets.items()}
    return Views(tuple(image.to(META) for image in views.images), views.boxes, targets)


@cache
def sample(dims: int, channels: int) -> Batch:
    voxels = np.random.default_rng(0).integers(0, 255, (2, channels, *EXTENTS[dims]), dtype=np.uint8)
    batch = eight_bit_batch(torch.from_numpy(voxels), [EXTENTS[dims]] * 2, ("a", "b"))
    boxes = Boxes(np.array([[[40] * dims, [90] * dims]]), np.array([2]))
    return replace(batch, classes=torch.tensor([[0], [2]]), boxes=(boxes, boxes))


@cache
def default_views(name: str, dims: int, encoder: str = "") -> Views:
    """Return what a method's defaults cut; most need no real encoder, but its stride."""
    light = UNetEncoder(UNetEncoder.Config(spatial_dims=dims, features=(1, 1, 1, 1, 1, 1))).to(META)
    if encoder or not takes(name, "unet"):
        light = default_encoder(encoder or encoder_for(name), dims)
    with META:
        method = METHODS[name](METHODS[name].Config(), light, FACTS)
    for key, buffer in method.named_buffers():
        if buffer.dtype == torch.int64 and "permutations" in key:  # views look at its values
            method.permutations = torch.arange(buffer.shape[1]).expand(buffer.shape)
        if key == "numbers":
            method.numbers = torch.tensor(sorted(FACTS.names))
    own, channels = fed(name, dims)
    method.check_extent(EXTENTS[own])
    batch = sample(own, channels)
    return on_meta(method.views(batch, batch.rng(0)))


def loss_shape(method: Method, views: Views) -> torch.Size:
    with torch.no_grad():
        return method.to(META).loss(views).total.shape


@pytest.mark.slow
@pytest.mark.parametrize(("name", "encoder", "dims"), pairs(name for name, kind in METHODS.items() if kind.trains))
def test_a_method_takes_an_encoder_as_both_come(name, encoder, dims, monkeypatch):
    monkeypatch.setattr("methods.voco._health", lambda *given: {})  # it looks at values
    network = default_encoder(encoder, dims)
    with META:
        method = METHODS[name](METHODS[name].Config(), network, FACTS)
    views = default_views(name, dims, encoder if name in SEE_VOXELS_OF_MAPS else "")
    leaves_one = encoder in OF_NNUNET or (encoder, dims) == ("pyramid_transformer", 2)
    if leaves_one and name in ("cpc", "jigsaw", "patch_location"):
        # Their stride of 32 leaves one voxel of these patches, which instance norm cannot take.
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            loss_shape(method, views)
        return
    assert loss_shape(method, views) == ()
    assert network.means_differ or not method.averages or encoder in OF_NNUNET


def views_of(task: Task) -> Views:
    """Return views without values, as a task cuts them out of two samples."""
    if isinstance(task, Segmentation):
        size, targets = task.crop_size, {"classes": torch.zeros(1, 2, *task.crop_size).long()}
    elif isinstance(task, Classification):
        size, targets = task.fitting.size, {"classes": torch.eye(3).bool()[:2]}
    else:
        assert isinstance(task, Detection)
        size, boxes = task.view_size, torch.zeros(2, 5, 4)
        targets = {"boxes": boxes, "classes": torch.zeros(2, 5).long(), "windows": boxes[:, 0]}
        targets["seeds"] = torch.zeros(2).long()
    return on_meta(Views((torch.zeros(2, 1, *size),), (), targets))


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "dims"), EACH_BUILD)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_takes_an_encoder_as_both_come(name, encoder, dims):
    # MONAI's SwinUNETR looks at values while it is built.
    with nullcontext() if (name, encoder) == ("segmentation", "swin_unetr") else META:
        task = TASKS[name](TASKS[name].Config(), default_encoder(encoder, dims), FACTS)
    assert loss_shape(task, views_of(task)) == ()


def unet(norm: str, dims: int, seed: int) -> Encoder:
    torch.manual_seed(seed)
    return UNetEncoder(UNetEncoder.Config(spatial_dims=dims, features=(4, 6, 8, 12, 16, 4), norm=norm)).train()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dims", [2, 3])
def test_means_of_a_u_net_differ_between_images_as_its_config_says(dims, seed):
    """How far the images' means lie from their common mean, as a share of their length."""
    batch, spread = batch_of(dims, 8), {}
    for norm in ("instance", "batch"):
        encoder = unet(norm, dims, seed)
        method = SimSiam(tiny_config("simsiam paper", dims), encoder, FACTS)
        with torch.no_grad():
            means = mean_features(encoder, method.views(batch, batch.rng(0)).images[0])
        spread[norm] = float((means - means.mean(0)).norm() / means.norm())
        assert encoder.means_differ == (spread[norm] > 0.2)
    assert spread["batch"] > 5 * spread["instance"]


@pytest.mark.slow
@pytest.mark.parametrize("norm", [UNetEncoder.Config.model_fields["norm"].default, "instance"])
def test_simsiam_learns_on_the_default_u_net_and_hardly_on_one_with_instance_norm(norm):
    encoder, batch = unet(norm, 2, seed=0), batch_of(2, 16)
    method = SimSiam(tiny_config("simsiam paper", 2), encoder, FACTS)
    losses = take_steps(method, sgd(method), batch, range(30))
    assert (np.mean(losses[-5:]) < -0.2) == encoder.means_differ
