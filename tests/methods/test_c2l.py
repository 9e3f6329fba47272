"""C2L: loss and gradient equal a slow reference; mixtures hold their own sample by half or more."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from methods.base import Progress
from methods.c2l import C2L, mixed
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake, weights_of
from tests.references import c2l as reference
from tests.references.embeddings import head, means


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> C2L:
    torch.manual_seed(0)
    config = {"projector_dim": 3, "queue_length": 7, "crops": {"size": 4}, "small_crops": {"size": 2}, **fields}
    return C2L(C2L.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize(("num_views", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_loss_and_gradients_equal_the_reference(num_views, dims):
    method, views = shake(tiny(dims, temperature=0.3)), noise_views(num_views, dims=dims)
    shares = torch.linspace(0.5, 1, 5).double()
    taught = {
        name.removeprefix("teacher."): w for name, w in weights_of(method).items() if name.startswith("teacher")
    }
    first, second = (image.numpy() for image in views.images[:2])
    inputs = (second, reference.mixed(second, shares.numpy()))
    outputs = [head(means(image), taught, "projector") for image in inputs]
    assert_equal_to_reference(
        method,
        replace(views, targets={"shares": shares}),
        lambda images, w: reference.loss(
            images, first, w, (outputs[0], outputs[1]), shares.numpy(), method.queue.rows[0].numpy(), 0.3
        ),
    )


def test_a_mixture_is_a_share_of_a_sample_and_the_rest_of_the_next():
    rows = torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]], requires_grad=True)
    found = mixed(rows, torch.tensor([0.5, 0.75, 1.0]))
    assert found.tolist() == [[0.5, 5.0], [1.25, 12.5], [2.0, 20.0]]
    assert not found.requires_grad


def test_shares_are_drawn_between_a_half_and_one_for_each_sample():
    method = tiny(channels=1, augment={"transforms": []})
    batch = random_batch([(6, 6)] * 400)
    shares = method.views(batch, batch.rng(0)).targets["shares"].numpy()
    assert 0.5 <= shares.min() < 0.51
    assert 0.99 < shares.max() <= 1
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.625, 0.75, 0.875], abs=0.05)


@pytest.mark.parametrize(("queued", "kinds"), [("all", 3), ("plain", 1)])
def test_the_queue_takes_the_plain_keys_first_and_then_those_of_mixtures(queued, kinds):
    method, views = tiny(queued=queued).double(), noise_views(2, samples=2)
    before = method.queue.rows.clone()
    shares = torch.tensor([0.6, 0.9]).double()
    second = views.images[1]
    key = method.teacher(second)
    expected = [key, method.teacher(mixed(second, shares)), mixed(key, shares)][:kinds]
    method.loss(replace(views, targets={"shares": shares}))
    method.after_step(Progress(1, 20, 0))
    keys = torch.cat([F.normalize(each, dim=1) for each in expected])
    torch.testing.assert_close(method.queue.rows[0], torch.cat([keys, before[0]])[:7])
    assert int(method.queue.filled) == 2 * kinds


def test_a_batch_of_one_sample_is_refused():
    views = replace(noise_views(2, samples=1), targets={"shares": torch.ones(1)})
    with pytest.raises(ValueError, match=r"batch of 1 sample: .* raise budget\.batch_size to 2"):
        tiny().double().loss(views)
