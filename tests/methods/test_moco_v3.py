"""MoCo v3: loss and gradient equal a slow reference; the best constant finds every key alike."""

from math import log

import pytest
import torch

from methods.moco_v3 import MoCoV3
from tests.batches import FACTS
from tests.encoders import Pixels
from tests.methods.two_views import assert_equal_to_reference, noise_views, shake, weights_of
from tests.references import moco as reference
from tests.references.embeddings import head, means, unit


def tiny(dims: int = 2, channels: int = 4, **fields: object) -> MoCoV3:
    torch.manual_seed(0)
    config = {"hidden_dim": 5, "projector_dim": 3, "crops": {"size": 4}, "small_crops": {"size": 2}, **fields}
    return MoCoV3(MoCoV3.Config.model_validate(config), Pixels(dims, channels), FACTS)


@pytest.mark.parametrize(("variant", "temperature"), [("paper", 0.2), ("released", 1.0)])
@pytest.mark.parametrize(("num_views", "dims"), [(2, 2), (4, 2), (2, 3)])
def test_loss_and_gradients_equal_the_reference(variant, temperature, num_views, dims):
    method, views = shake(tiny(dims, variant=variant)), noise_views(num_views, dims=dims)
    taught = {
        name.removeprefix("teacher."): w for name, w in weights_of(method).items() if name.startswith("teacher")
    }
    keys = [unit(head(means(image.numpy()), taught, "projector")) for image in views.images[:2]]
    assert_equal_to_reference(
        method, views, lambda images, w: reference.v3_loss(images, w, keys, temperature=temperature)
    )


def test_a_constant_s_loss_is_twice_the_scaled_entropy_of_all_keys():
    for variant, temperature in (("paper", 0.2), ("released", 1.0)):
        losses = tiny(variant=variant).double().loss(noise_views(2))
        assert losses.of_constant is not None
        assert losses.of_constant.item() == pytest.approx(2 * 2 * temperature * log(5))


def test_a_batch_of_one_sample_is_refused():
    with pytest.raises(ValueError, match=r"batch of 1 sample: .* raise budget\.batch_size to 2"):
        tiny().double().eval().loss(noise_views(2, samples=1))


@pytest.mark.slow
def test_heads_of_the_paper_have_the_known_number_of_parameters():
    counts = {}
    for variant in ("paper", "released"):
        method = MoCoV3(MoCoV3.Config(variant=variant), Pixels(2, 768), FACTS)
        counts[variant] = [sum(p.numel() for p in part.parameters()) for part in (method.projector, method.predictor)]
    predictor = 256 * 4096 + 2 * 4096 + 4096 * 256
    assert counts["paper"] == [768 * 4096 + 4096**2 + 4 * 4096 + 4096 * 256, predictor]
    assert counts["released"] == [768 * 4096 + 2 * 4096 + 4096 * 256, predictor]
