"""UniMiSS and USST: losses and gradients equal slow references; slices are those of the volumes; they learn."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import METHODS
from methods.base import Progress, Views
from methods.encoders import PyramidTransformerEncoder
from methods.self_distillation import SelfDistillation
from methods.usst import one_slice
from tests.batches import FACTS, eight_bit_batch
from tests.methods.test_contract import batch_of, effective_rank, tiny_method
from tests.references import unimiss as reference

PYRAMID = {
    "stem_dim": 3,
    "stage_dims": (4, 4, 4, 6),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 2, 2),
    "image_size": (32, 64),
    "volume_size": (16, 32, 64),
}
TINY = {"hidden_dim": 6, "projector_dim": 4, "num_prototypes": 5}
SIZES = {2: (32, 64), 3: (16, 32, 64)}


def encoder_of(dims: int, **fields: Any) -> PyramidTransformerEncoder:
    config = {"spatial_dims": dims, **PYRAMID, **fields}
    return PyramidTransformerEncoder(PyramidTransformerEncoder.Config.model_validate(config))


def tiny(name: str, dims: int) -> SelfDistillation:
    torch.manual_seed(0)
    method = METHODS[name](METHODS[name].Config.model_validate(TINY), encoder_of(dims), FACTS).double()
    assert isinstance(method, SelfDistillation)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        method.codes.centre.copy_(torch.linspace(-0.3, 0.4, 5))
    return method


def crops_of(dims: int, count: int = 2, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 1, *SIZES[dims], generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize(("name", "dims"), [("unimiss", 2), ("unimiss", 3), ("usst", 2), ("usst", 3)])
def test_loss_and_gradients_equal_the_reference(name, dims):
    method, own = tiny(name, dims), crops_of(dims, count=1 if name == "unimiss" else 2)
    kinds = [own, crops_of(2, seed=4)] if (name, dims) == ("usst", 3) else [own]
    learning = {key: p for key, p in method.named_parameters() if p.requires_grad}
    pairs = [
        (lambda x, network=half.encoder: network.class_tokens(x)[0], dict(half.head.named_parameters()))
        for half in (method, method.teacher)
    ]
    given = own if name == "unimiss" else kinds
    expected = getattr(reference, name)(given, *pairs, method.codes.centre.clone(), (0.1, 0.04))
    gradients = torch.autograd.grad(expected, [*learning.values()], allow_unused=True)

    losses = method.loss(Views(tuple(image for kind in kinds for image in kind)))
    losses.total.backward()
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-7)
    for key, gradient in zip(learning, gradients, strict=True):
        torch.testing.assert_close(learning[key].grad, gradient, rtol=0, atol=1e-7, msg=key)
    assert method.encoder.stages[0].token.grad.abs().max() > 1e-5
    assert all(p.grad is None for p in method.teacher.parameters())
    assert losses.of_constant <= (4 if (name, dims) == ("unimiss", 3) else len(kinds)) * np.log(5) + 1e-9


def test_a_slice_of_each_volume_is_one_of_its_own_and_each_is_drawn_in_time():
    voxels = torch.arange(2 * 5 * 4 * 3).view(2, 1, 5, 4, 3).to(torch.uint8)
    batch, seen = eight_bit_batch(voxels, [(5, 4, 3), (2, 4, 3)], ("a", "b")), [set(), set()]
    for seed in range(40):
        found, depths = one_slice(batch, batch.rng(seed))
        for sample, depth in enumerate(depths.tolist()):
            assert torch.equal(found.voxels[sample], voxels[sample, :, depth])
            seen[sample].add(depth)
    assert found.extents.tolist() == [[4, 3], [4, 3]]
    assert seen == [{0, 1, 2, 3, 4}, {0, 1}]


def test_boxes_of_crops_of_slices_lie_on_one_slice_of_the_volume():
    method, batch = tiny_method("usst", 3), batch_of(3, 3)
    views = method.views(batch, batch.rng(0))
    assert [image.ndim for image in views.images] == [5, 5, 5, 4, 4]
    assert all(np.array_equal(box[:, 0, 0] + 1, box[:, 1, 0]) for box in views.boxes[3:])
    assert np.array_equal(views.boxes[3][:, :, 0], views.boxes[4][:, :, 0])
    assert all((box[:, 1] <= batch.extents).all() for box in views.boxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unimiss", "usst"])
def test_volumes_need_an_encoder_with_embeddings_of_images_and_images_do_not(name):
    config = METHODS[name].Config()
    with pytest.raises(ValueError, match=rf"switchable False: {name} passes slices of volumes.*switchable=true"):
        METHODS[name](config, encoder_of(3, switchable=False), FACTS)
    assert METHODS[name](config, encoder_of(2, switchable=False), FACTS).crops.kinds()[0][2] == (224, 224)
    method = METHODS[name](config, encoder_of(3), FACTS)
    assert method.crops.kinds()[0][2] == (16, 96, 96)
    assert all(p.requires_grad for p in method.encoder.parameters())


@pytest.mark.slow
def test_a_slice_s_crops_are_at_least_two_and_fit_the_encoder():
    config = METHODS["usst"].Config
    with pytest.raises(ValueError, match="num 1: expected at least 2 crops"):
        config(slice_crops={"num": 1})
    with pytest.raises(ValueError, match=r"method\.slice_crops\.size \(48, 48\): 48 is not a multiple of .* 32"):
        METHODS["usst"](config(slice_crops={"size": 48}), encoder_of(3), FACTS)


def test_on_images_usst_is_unimiss():
    views, found = Views(tuple(crops_of(2))), []
    for name in ("unimiss", "usst"):
        found.append(tiny(name, 2).loss(views))
    assert found[0].logged.keys() == found[1].logged.keys()
    assert all(torch.equal(value, found[1].logged[key]) for key, value in found[0].logged.items())


def wide() -> SelfDistillation:
    """UniMiSS on images, with layers that pass on what is small: those of narrow networks are drawn too small to."""
    widths = {"stem_dim": 8, "stage_dims": (16, 24, 32, 48), "image_size": 32, "norm": "batch"}
    config = {
        "large_crops": {"area": (0.9, 1.0), "size": 32},
        "augment": {"flip_prob": 0.0, "scale_prob": 0.0, "shift_prob": 0.0, "noise_prob": 0.0, "transforms": ()},
        **{"hidden_dim": 128, "projector_dim": 32, "num_prototypes": 16},
        **{"teacher_decay": 0.9, "centre_decay": 0.5, "frozen_epochs": 0},
    }
    torch.manual_seed(0)
    method = METHODS["unimiss"](METHODS["unimiss"].Config.model_validate(config), encoder_of(2, **widths), FACTS)
    assert isinstance(method, SelfDistillation)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return method


@pytest.mark.slow
def test_what_is_predicted_beats_a_constant_while_features_of_different_phantoms_stay_apart():
    method, batch, ratios = wide(), batch_of(2, 8), list[float]()
    optimiser = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=2e-3)
    for step in range(40):
        losses = method.loss(method.drawn(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step(Progress(step + 1, 40, 0))
        ratios.append((losses.total / losses.of_constant).item())
    assert min(ratios[:3]) > 1
    assert sum(ratios[-5:]) < 5 * 0.8
    with torch.no_grad():
        features = method.encoder.class_tokens(method.drawn(batch, batch.rng(99)).images[0])[0]
    assert effective_rank(features) > 4
