"""GL-MAE: loss and gradient equal a slow reference; the teacher sees whole crops; it comes to know hidden patches."""

import pytest
import torch

from data.views.rng import SampleRng
from methods.base import Progress, Views
from methods.encoders import ViTEncoder
from methods.gl_mae import GLMAE
from methods.parts.hidden_blocks import draw_hidden
from tests.batches import FACTS, random_batch
from tests.methods.test_contract import effective_rank
from tests.methods.test_mae import same_scans
from tests.references import gl_mae as reference

TINY = {"image_size": 4, "patch_size": 2, "hidden_size": 6, "mlp_dim": 5, "num_layers": 4, "num_heads": 2}
FIELDS = {
    "large_crops": {"size": 4},
    "small_crops": {"size": 4, "num": 1},
    "decoder_dim": 8,
    "decoder_heads": 4,
    "num_blocks": 1,
    "hidden_dim": 5,
    "projector_dim": 4,
    "num_prototypes": 6,
    "mask_ratio": 0.5,
}


def tiny(dims: int, encoder: dict | None = None, **fields: object) -> GLMAE:
    torch.manual_seed(0)
    network = ViTEncoder(ViTEncoder.Config.model_validate({"spatial_dims": dims, **TINY, **(encoder or {})}))
    return GLMAE(GLMAE.Config.model_validate({**FIELDS, **fields}), network, FACTS)


def views_of(method: GLMAE, count: int = 2) -> Views:
    dims, generator = len(method.grids[0]), torch.Generator().manual_seed(2)
    rng = SampleRng.for_samples(0, [0] * count, [str(i) for i in range(count)])
    sizes = [size for _, crops, size in method.crops.kinds() for _ in range(crops.num)]
    crops = tuple(torch.randn(count, 1, *size, generator=generator, dtype=torch.float64) for size in sizes)
    drawn = [
        torch.from_numpy(draw_hidden((2,) * dims, method.num_hidden[0], rng.fold(number)))
        for number in range(len(sizes))
    ]
    return Views(crops, targets={"large_crops": torch.stack(drawn[:2], 1), "small_crops": torch.stack(drawn[2:], 1)})


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_and_gradients_equal_the_reference(dims):
    method = tiny(dims).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        method.codes.centre.copy_(torch.linspace(-0.2, 0.2, 6))
    views = views_of(method)
    losses = method.loss(views)
    losses.total.backward()

    weights = {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()}
    hidden = [*views.targets["large_crops"].unbind(1), *views.targets["small_crops"].unbind(1)]
    expected = reference.loss(
        list(views.images), hidden, 2, (2, 2, 4), weights, method.codes.centre.clone(), (0.1, 0.04)
    )
    expected.backward()
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-7)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, weights[name].grad, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert parameter.grad.abs().sum() > 0, name


def test_the_student_sees_visible_patches_of_every_crop_and_the_teacher_all_of_large_ones():
    method = tiny(2, mask_ratio=0.75, small_crops={"size": 4, "num": 3})
    seen = {"student": [], "teacher": []}
    for name, encoder in (("student", method.encoder), ("teacher", method.teacher.encoder)):
        encoder.blocks[0].register_forward_hook(lambda m, given, out, n=name: seen[n].append(tuple(out.shape[:2])))
    batch = random_batch([(9, 11)] * 2)
    method.loss(method.views(batch, batch.rng(0)))
    assert seen == {"student": [(4, 1), (6, 1)], "teacher": [(4, 4)]}


def test_losses_are_weighted_and_logged_each():
    method = tiny(2, lambda_large=0.5, lambda_consistency=2.0).double()
    losses = method.loss(views_of(method))
    parts = losses.parts
    expected = parts["small_error"] + 0.5 * parts["large_error"] + 2 * parts["cross_entropy"]
    torch.testing.assert_close(losses.total, expected)


def test_images_in_chunks_change_neither_loss_nor_gradient():
    found = []
    for chunks in (1, 2):
        method = tiny(2).double()
        method.pass_in_chunks(chunks)
        losses = method.loss(views_of(method))
        losses.total.backward()
        found.append([losses.total, *(p.grad for p in method.parameters() if p.requires_grad)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_after_a_short_training_errors_are_below_those_of_the_mean_and_features_of_places_differ():
    encoder = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "mlp_dim": 48}
    crops = {"num": 1, "size": 32, "area": (1.0, 1.0), "aspect": (1.0, 1.0)}
    fields = {"large_crops": crops, "small_crops": crops, "decoder_dim": 64, "augment": {}, "normalise_patches": True}
    method, batch = tiny(2, encoder, **fields), same_scans()
    optimiser = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=3e-3, betas=(0.9, 0.95))
    for step in range(150):
        losses = method.loss(method.drawn(batch, batch.rng(step)))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
        method.after_step(Progress(step + 1, 150, 0))
    with torch.no_grad():
        losses = method.loss(method.drawn(batch, batch.rng(1000)))
        features = method.encoder.features(method.drawn(batch, batch.rng(0)).images[0])[-1][0].flatten(1).T
    assert losses.total < 0.8 * losses.of_constant
    assert losses.parts["large_error"] < 0.8
    assert effective_rank(features) > 3


def test_crops_of_both_kinds_are_needed():
    with pytest.raises(ValueError, match=r"small_crops\.num 0: both kinds of crops are needed; give 1 or more"):
        tiny(2, small_crops={"num": 0, "size": 4})
