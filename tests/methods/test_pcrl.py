"""PCRL: loss and gradient equal a slow reference; moves are what the network is told; mixtures go with their keys."""

import numpy as np
import pytest
import torch

from data.views.rng import SampleRng
from methods.base import Progress, Views
from methods.parts.flat_map import mean_features
from methods.parts.key_queue import loss_of_constant
from methods.pcrl import PCRL, draw_moves, moved
from tests.batches import FACTS, random_batch
from tests.encoders import Pixels
from tests.methods.test_contract import effective_rank, samples_of, take_steps
from tests.methods.test_pcrlv2 import Halvings
from tests.methods.two_views import shake, weights_of
from tests.references import pcrl as reference
from tests.references.embeddings import gradients

STILL = {"shuffle_prob": 0, "paint_prob": 0, "augment": {}}


def tiny(dims: int = 2, channels: int = 2, **fields: object) -> PCRL:
    torch.manual_seed(0)
    given = {"crops": {"size": 4}, "hidden_dim": 3, "projector_dim": 3, "queue_length": 4, **STILL, **fields}
    return PCRL(PCRL.Config.model_validate(given), Pixels(dims, channels), FACTS)


def streams(count: int) -> SampleRng:
    return SampleRng.for_samples(0, [0] * count, [str(i) for i in range(count)])


def noise(dims: int, side: int = 2, count: int = 3) -> Views:
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(6, count, 2, *[side] * dims, generator=generator, dtype=torch.float64)
    moves = [draw_moves((side,) * dims, streams(count).fold(view)) for view in range(2)]
    shares = 0.5 + 0.5 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return Views(tuple(images), targets={"moves": torch.from_numpy(np.stack(moves, 1)), "shares": shares})


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims: int) -> None:
    method, views = tiny(dims), noise(dims)
    shake(method)
    losses = method.loss(views)
    losses.total.backward()

    moves, shares = views.targets["moves"].numpy(), views.targets["shares"].numpy()
    images, queue = [image.numpy() for image in views.images], method.queue.rows[0].numpy()
    weights = weights_of(method)
    assert abs(losses.total.item() - reference.loss(images, moves, shares, weights, queue, 0.2)) < 1e-9
    trained = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    expected = gradients(lambda _, w: reference.loss(images, moves, shares, w, queue, 0.2), [], weights, trained)
    for name in trained:
        gradient = method.get_parameter(name).grad
        assert gradient is not None, name
        np.testing.assert_allclose(gradient.numpy(), expected[name], rtol=1e-6, atol=1e-7, err_msg=name)
        assert np.abs(expected[name]).max() > 1e-5, f"{name}: a zero gradient would prove nothing"


@pytest.mark.parametrize("size", [(4, 4), (4, 6), (3, 4, 4)])
def test_a_network_is_told_which_axes_are_flipped_and_how_far_a_view_turns(size: tuple[int, ...]) -> None:
    images = torch.arange(40.0 * np.prod(size)).view(40, 1, *size)
    moves = draw_moves(size, streams(40))
    n = len(size)
    for image, told, found in zip(images[:, 0].numpy(), moves, moved(images, moves)[:, 0].numpy(), strict=True):
        flipped = np.flip(image, tuple(np.flatnonzero(told[:n]).tolist()))
        np.testing.assert_array_equal(found, np.rot90(flipped, told[n:].argmax(), (n - 2, n - 1)))
    assert (moves[:, n:].sum(1) == 1).all()
    assert set(moves[:, n:].argmax(1)) == ({0, 1, 2, 3} if size[-1] == size[-2] else {0, 2})
    assert 0.2 < moves[:, :n].mean() < 0.8


def test_distorted_views_are_restored_moved_and_mixtures_are_restored_whole() -> None:
    batch = random_batch([(9, 10)] * 6)
    seen, other, _, _, whole, _ = tiny(channels=1).views(batch, batch.rng(0)).images
    assert torch.equal(seen, whole)
    assert not torch.equal(seen, other)
    method = tiny(channels=1, paint_prob=1, crops={"size": 9})
    views = method.views(batch, batch.rng(0))
    seen, _, seen_moved, _, whole, _ = views.images
    assert not torch.equal(seen, whole)
    assert torch.equal(seen_moved, moved(seen, views.targets["moves"][:, 0].numpy()))


def test_the_keys_of_views_and_of_mixtures_enter_the_queue_the_plain_ones_first() -> None:
    method = tiny(queue_length=9).double()
    views = noise(2)
    method.loss(views)
    method.after_step(Progress(1, 10, 0))
    plain = torch.nn.functional.normalize(method.teacher(views.images[1]), dim=1)
    assert int(method.queue.filled) == 9
    torch.testing.assert_close(method.queue.rows[0, :3], plain)


@pytest.mark.slow
def test_restoring_is_learnt_better_than_by_the_best_constant_and_features_differ() -> None:
    torch.manual_seed(0)
    config = {"crops": {"size": 16}, "projector_dim": 8, "queue_length": 32, **STILL}
    method, batch = PCRL(PCRL.Config.model_validate(config), Halvings(2), FACTS), samples_of("pcrl", 2, 8)
    take_steps(method, torch.optim.AdamW(method.parameters(), lr=1e-2), batch, range(50))
    views = method.drawn(batch, batch.rng(99))
    with torch.no_grad():
        losses, features = method.loss(views), mean_features(method.encoder, views.images[0])
    assert losses.of_constant is not None
    constant = losses.of_constant - loss_of_constant(method.queue, method.config.temperature)
    assert losses.parts["restoration_error"] < 0.8 * constant
    assert effective_rank(features) > 2


def test_a_batch_of_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch of 1 sample: .* mixed with; raise budget\.batch_size to 2"):
        tiny().loss(noise(2, count=1))
