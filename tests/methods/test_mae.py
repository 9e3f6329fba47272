"""MAE: loss and gradient equal a slow reference; what is hidden reaches no prediction; it learns more than means."""

import pytest
import torch

from data.views.batch import Batch
from data.views.rng import SampleRng
from methods.base import Views
from methods.encoders import ViTEncoder
from methods.mae import MAE
from methods.parts.hidden_blocks import blocks_of, draw_hidden, mean_of_visible, normalised, visible_places
from tests.batches import FACTS, eight_bit_batch, random_batch
from tests.methods.test_contract import effective_rank
from tests.references import mae as reference

TINY = {"image_size": 8, "patch_size": 2, "hidden_size": 6, "mlp_dim": 5, "num_layers": 4, "num_heads": 2}


def tiny(dims: int, encoder: dict | None = None, **fields: object) -> MAE:
    torch.manual_seed(0)
    given = {"crop_size": 8, "decoder_dim": 8, "decoder_heads": 4, "num_blocks": 1, **fields}
    network = ViTEncoder(ViTEncoder.Config.model_validate({"spatial_dims": dims, **TINY, **(encoder or {})}))
    return MAE(MAE.Config.model_validate(given), network, FACTS)


def views_of(method: MAE, size: int, count: int = 2) -> Views:
    dims, channels = len(method.grid), method.encoder.in_channels
    generator = torch.Generator().manual_seed(2)
    crops = torch.randn(count, channels, *[size] * dims, generator=generator, dtype=torch.float64)
    rng = SampleRng.for_samples(0, [0] * count, [str(i) for i in range(count)])
    return Views((crops,), targets={"hidden": torch.from_numpy(draw_hidden(method.grid, method.num_hidden, rng))})


def same_scans(count: int = 4) -> Batch:
    """Return one smooth pattern in different contrasts, so that what is hidden follows from its place."""
    down, across = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    pattern = (down / 4).sin() * (across / 5).cos()
    voxels = torch.stack([(127 + (60 + 15 * number) * pattern).byte() for number in range(count)])[:, None]
    return eight_bit_batch(voxels, [(32, 32)] * count, tuple(str(i) for i in range(count)))


@pytest.mark.parametrize(("dims", "variant"), [(2, "paper"), (3, "volumes")])
def test_loss_and_gradients_equal_the_reference(dims, variant):
    size = {2: 8, 3: 4}[dims]
    fields = {"variant": variant, "crop_size": size, "decoder_heads": 4}
    method = tiny(dims, {"in_channels": 2, "image_size": size}, **fields).double()
    views = views_of(method, size)
    method.loss(views).total.backward()
    ours = {name: p.grad for name, p in method.named_parameters()}

    weights = {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()}
    normalise = variant == "paper"
    expected = reference.loss(
        views.images[0], views.targets["hidden"], 2, (2, 4), weights, normalise, method.config.distance
    )
    expected.backward()
    torch.testing.assert_close(method.loss(views).total, expected, rtol=0, atol=1e-9)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, weights[name].grad, rtol=0, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    assert [name for name, p in method.named_parameters() if p.requires_grad and not p.grad.abs().sum()] == []


@pytest.mark.parametrize(("dims", "ratio", "hidden"), [(2, 0.75, 12), (3, 0.75, 48), (2, 0.7, 12), (2, 0.01, 1)])
def test_so_many_patches_are_hidden_and_the_encoder_sees_the_others(dims, ratio, hidden):
    method = tiny(dims, mask_ratio=ratio)
    seen = []
    method.encoder.blocks[0].register_forward_hook(lambda block, given, tokens: seen.append(tokens.shape[1]))
    batch = random_batch([(9, 11, 10)[-dims:]] * 3)
    views = method.views(batch, batch.rng(0))
    method.loss(views)
    assert views.targets["hidden"].flatten(1).sum(1).tolist() == [hidden] * 3
    assert seen == [4**dims - hidden]


def test_what_is_hidden_reaches_no_prediction():
    method = tiny(2)
    views = views_of(method, 8)
    hidden = views.targets["hidden"].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    other = torch.where(hidden, torch.rand_like(views.images[0]), views.images[0])
    predicted = []
    method.decoder.register_forward_hook(lambda module, given, found: predicted.append(found.detach()))
    for crops in (views.images[0], other):
        method.loss(Views((crops.float(),), targets=views.targets))
    assert torch.equal(predicted[0], predicted[1])


def test_the_loss_of_a_constant_is_that_of_the_mean_of_what_is_seen():
    hidden = torch.tensor([[[False, True], [False, True]]])
    image = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [3, 3, 9, 9], [3, 3, 9, 9]])[None, None]
    blocks = blocks_of(image, (2, 2))
    assert blocks[0].tolist() == [[1.0] * 4, [0.0] * 4, [3.0] * 4, [9.0] * 4]
    assert mean_of_visible(blocks, hidden)[0].tolist() == [[2.0] * 4] * 4
    assert visible_places(hidden, 2).tolist() == [[0, 2]]


def test_normalised_patches_have_mean_0_and_deviation_1_each():
    found = normalised(torch.rand(2, 3, 50, dtype=torch.float64))
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.std(-1), torch.ones(2, 3, dtype=torch.float64), rtol=0, atol=1e-4)


def test_images_in_chunks_change_neither_loss_nor_gradient():
    found = []
    for chunks in (1, 3):
        method = tiny(2).double()
        method.pass_in_chunks(chunks)
        losses = method.loss(views_of(method, 8, count=4))
        losses.total.backward()
        found.append([losses.total, *(p.grad for p in method.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "volumes"])
def test_after_a_short_training_it_predicts_better_than_the_mean_and_features_of_places_differ(variant):
    encoder = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "mlp_dim": 48}
    fields = {"crop_size": 32, "decoder_dim": 64, "decoder_heads": 4, "mask_ratio": 0.5, "augment": {}}
    method, batch = tiny(2, encoder, variant=variant, **fields), same_scans()
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(200):
        losses = method.loss(method.drawn(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    with torch.no_grad():
        judged = [method.loss(method.drawn(batch, batch.rng(1000 + n))) for n in range(5)]
        features = method.encoder.features(method.drawn(batch, batch.rng(0)).images[0])[-1][0].flatten(1).T
    assert sum(one.total for one in judged) < 0.6 * sum(one.of_constant for one in judged)
    assert effective_rank(features) > 3


def test_what_cannot_be_hidden_or_decoded_is_refused():
    with pytest.raises(
        ValueError, match=r"mask_ratio 0\.99 hides all of the 16 blocks of a crop; lower method\.mask"
    ):
        tiny(2, mask_ratio=0.99)
    with pytest.raises(ValueError, match=r"decoder_heads 3 does not divide method\.decoder_dim 8; change one"):
        tiny(2, decoder_heads=3)
    with pytest.raises(ValueError, match=r"crop_size \(9, 9\): 9 is not a multiple of the encoder's stride 2; use 8"):
        tiny(2, crop_size=9)
    with pytest.raises(ValueError, match=r"\(8, 8\) exceeds samples of size \(7, 9\); lower method\.crop_size"):
        tiny(2).check_extent((7, 9))
