"""Universal Model: loss and gradient equal a slow reference; the encoder hides what a head tells of modalities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from methods.base import Views
from methods.parts.flat_map import mean_features
from methods.universal_model import UniversalModel
from tests.batches import FACTS, facts_of, random_batch
from tests.methods.test_contract import effective_rank, samples_of, take_steps
from tests.methods.test_pcrlv2 import Halvings
from tests.methods.two_views import shake
from tests.references import universal_model as reference

MODALITIES = facts_of({0: "CT", 1: "MR", 2: "PET"})
STILL = {"curve_prob": 0, "shuffle_prob": 0, "paint_prob": 0}


def tiny(dims: int = 2, **fields: object) -> UniversalModel:
    torch.manual_seed(0)
    given = {"crop_size": 8, **STILL, **fields}
    return UniversalModel(UniversalModel.Config.model_validate(given), Halvings(dims), MODALITIES)


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims: int) -> None:
    method = tiny(dims, lambda_scale=0.3, lambda_modality=0.2)
    shake(method)
    scales, modalities = [0, 2, 1, 1], [2, 0, 0, 1]
    generator = torch.Generator().manual_seed(2)
    seen, whole = torch.rand(2, 4, 1, *[8] * dims, generator=generator, dtype=torch.float64)
    targets = {"scales": torch.tensor(scales), "modalities": torch.tensor(modalities)}
    losses = method.loss(Views((seen, whole), targets=targets))
    losses.total.backward()
    weights: dict[str, Tensor] = {**dict(method.named_parameters())}
    ours = {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}
    assert set(ours) == set(weights)

    maps = method.encoder.features(seen)
    of_heads, of_encoder = reference.losses(method.decoder(maps), maps[-1], whole, (scales, modalities), weights)
    torch.testing.assert_close(losses.total, of_heads, rtol=0, atol=1e-9)
    for name, weight in weights.items():
        (expected,) = torch.autograd.grad(
            of_heads if "head" in name else of_encoder, weight, retain_graph=True, allow_unused=True
        )
        torch.testing.assert_close(ours[name], expected, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_crops_measure_shares_of_the_size_and_are_resized_to_it() -> None:
    method = tiny()
    batch = replace(random_batch([(9, 12), (30, 20)] * 30), classes=torch.tensor([[2], [0]] * 30))
    views = method.views(batch, batch.rng(0))
    boxes, scales = views.boxes[0], views.targets["scales"].numpy()
    sides = np.array([4, 6, 8])[scales]
    np.testing.assert_array_equal(boxes[:, 1] - boxes[:, 0], np.stack([sides, sides], 1))
    assert boxes.min() >= 0
    assert (boxes[:, 1] <= batch.extents).all()
    assert set(scales) == {0, 1, 2}
    assert views.images[0].shape == (60, 1, 8, 8)
    assert torch.equal(views.images[0], views.images[1])
    assert views.targets["modalities"].tolist() == [2, 0] * 30
    low, high = boxes[np.flatnonzero(scales == 2)[0]]
    whole = batch.voxels[np.flatnonzero(scales == 2)[0], 0, low[0] : high[0], low[1] : high[1]] / 255
    torch.testing.assert_close(views.images[1][np.flatnonzero(scales == 2)[0], 0], whole, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_crops_are_restored_better_than_by_the_best_constant_and_features_differ() -> None:
    method, batch = tiny(crop_size=16), samples_of("universal_model", 2, 8)
    take_steps(method, torch.optim.AdamW(method.parameters(), lr=1e-2), batch, range(50))
    views = method.drawn(batch, batch.rng(99))
    with torch.no_grad():
        losses, features = method.loss(views), mean_features(method.encoder, views.images[1])
    assert losses.of_constant is not None
    assert losses.total < 0.8 * losses.of_constant
    assert effective_rank(features) > 1.5


def test_samples_need_one_modality_of_several() -> None:
    with pytest.raises(ValueError, match=r"the shards name 0 classes, expected at least 2, one for each modality"):
        UniversalModel(UniversalModel.Config(), Halvings(2), FACTS)
    with pytest.raises(ValueError, match=r"universal_model: 1 of the 2 samples do not have exactly 1 class"):
        tiny().see_classes(np.array([[0, 1], [2, -1]]), np.zeros((0, 2), np.int64))


def test_zooms_that_are_not_in_order_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"zooms \[1\.0, 0\.5\]: expected positive numbers, each larger"):
        UniversalModel.Config.model_validate({"zooms": [1, 0.5]})
