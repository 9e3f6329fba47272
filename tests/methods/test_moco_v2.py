"""MoCo v2: loss and gradient equal a slow reference; the queue holds the last keys."""

from math import exp, log

import pytest
import torch
from torch.nn import functional as F

from methods.base import Progress
from methods.moco_v2 import MoCoV2
from methods.parts.key_queue import key_queue, loss_of_constant
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake, weights_of
from tests.references import moco as reference
from tests.references.embeddings import head, means, unit


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> MoCoV2:
    torch.manual_seed(0)
    config = {
        "hidden_dim": 6,
        "projector_dim": 3,
        "queue_length": 7,
        "crops": {"size": 4},
        "small_crops": {"size": 2},
    }
    return MoCoV2(MoCoV2.Config.model_validate(config | fields), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize(("num_views", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_loss_and_gradients_equal_the_reference(num_views, dims):
    method, views = shake(tiny(dims)), noise_views(num_views, dims=dims)
    taught = {
        name.removeprefix("teacher."): w for name, w in weights_of(method).items() if name.startswith("teacher")
    }
    keys = unit(head(means(views.images[1].numpy()), taught, "projector"))
    queue = method.queue.rows[0].numpy()
    assert_equal_to_reference(
        method, views, lambda images, w: reference.v2_loss(images, w, keys, queue, temperature=0.2)
    )


def test_the_queue_begins_with_random_keys_of_length_1_and_takes_the_step_s_keys_first():
    method, views = tiny().double(), noise_views(2, samples=2)
    before = method.queue.rows.clone()
    torch.testing.assert_close(before.norm(dim=2), torch.ones(1, 7).double(), rtol=0, atol=1e-6)
    keys = F.normalize(method.teacher(views.images[1]), dim=1)
    method.loss(views)
    assert torch.equal(method.queue.rows, before), "it changes after the step alone"
    method.after_step(Progress(1, 20, 0))
    torch.testing.assert_close(method.queue.rows, torch.cat([keys[None], before[:, :5]], dim=1))
    assert int(method.queue.filled) == 2


def test_a_constant_beats_the_random_keys_and_no_key_of_its_own():
    torch.manual_seed(0)
    queue = key_queue(20000, 64)
    alike = F.normalize(torch.ones(1, 64), dim=1)
    for pushed in (0, 5000):
        if pushed:
            queue.push(alike.expand(1, pushed, -1))
        logits = torch.cat([torch.ones(1), queue.rows[0] @ alike[0]]) / 0.2
        found = (logits.logsumexp(0) - logits[0]).item()
        assert loss_of_constant(queue, 0.2).item() == pytest.approx(log(1 + pushed + (20000 - pushed) * exp(-5)))
        # The cosines of random keys are not 0 but vary about it: by 1 / 8 with 64 dimensions.
        assert found == pytest.approx(loss_of_constant(queue, 0.2).item(), abs=0.25)
