"""JSSL's stages 2 and 3 against slow references: masked slices, what is frozen, volumes' vectors, clusters."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods import METHODS
from methods.base import Facts, Method, Progress, Views
from methods.encoders.slice_transformer import SliceTransformerEncoder
from methods.jssl_cluster import JSSLCluster
from methods.jssl_mask import JSSLMask, masked_error
from tests.batches import FACTS
from tests.methods.test_contract import batch_of, sgd, take_steps, tiny_encoder
from tests.references import clustering as reference

SIZE = (32, 32, 32)
PLAIN: dict[str, Any] = {"size": SIZE, "augment": {}}


def method_of(name: str, facts: Facts = FACTS, seed: int = 0, **fields: Any) -> Method:
    torch.manual_seed(seed)
    config = METHODS[name].Config.model_validate({"size": SIZE, **fields})
    return METHODS[name](config, tiny_encoder("slice_transformer", 3), facts).train()


def slow_error(predicted: Tensor, tokens: Tensor, counted: Tensor, distance: str) -> Tensor:
    """Eq. 15 and the released error, slice by slice."""
    views, volumes, slices, features = predicted.shape
    total = predicted.new_zeros(())
    for view in range(views):
        for volume in range(volumes):
            for place in range(slices):
                if not counted[volume, place]:
                    continue
                squares = sum((predicted[view, volume, place, k] - tokens[view, volume, place, k]) ** 2
                              for k in range(features))  # fmt: skip
                total = total + (squares**0.5 / volumes if distance == "norm" else squares / features / counted.sum())
    return total


@pytest.mark.parametrize("distance", ["norm", "squared"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_the_error_of_slices_equals_a_slow_reference_in_value_and_gradient(distance: Any, everywhere: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    found, slow = (torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1)).double() for _ in range(2))
    counted = torch.ones(3, 5).bool() if everywhere else torch.arange(15).view(3, 5) % 5 < 2
    value = masked_error(found.requires_grad_(), tokens, counted, distance)
    expected = slow_error(slow.requires_grad_(), tokens, counted, distance)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.grad, slow.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_stage_2_predicts_the_tokens_of_masked_slices_from_those_that_it_sees(variant: str) -> None:
    method = method_of("jssl_mask", variant=variant, mask_ratio=0.1)
    assert isinstance(method, JSSLMask)
    method.double()
    batch = batch_of(3, 2)
    views = method.drawn(batch, batch.rng(0))
    views = Views(tuple(image.double() for image in views.images), views.boxes, views.targets, views.rows)
    masked = views.targets["masked"]
    assert masked.sum(1).tolist() == [4, 4], "32 slices, a tenth, rounded up"
    assert len(views.images) == {"paper": 1, "released": 2}[variant]
    tokens = [method.encoder.project(image) for image in views.images]
    predicted = []
    for one in tokens:
        seen = one.clone()
        for volume, place in masked.nonzero().tolist():
            seen[volume, place] = method.token
        predicted.append(method.decoder(method.encoder.attend(seen)))
    counted = masked if variant == "paper" else torch.ones_like(masked)
    expected = slow_error(
        torch.stack(predicted), torch.stack(tokens), counted, {"paper": "norm"}.get(variant, "squared")
    )
    expected = expected if variant == "paper" else expected / 3
    found = method.loss(views)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-12)
    assert found.parts["mean_error"] > 0


@pytest.mark.slow
def test_masked_slices_differ_between_samples_and_epochs_and_reach_every_place() -> None:
    method = method_of("jssl_mask", mask_ratio=0.25, **PLAIN)
    batch = batch_of(3, 4)
    drawn = [method.drawn(batch, batch.rng(seed)).targets["masked"] for seed in range(40)]
    assert {int(count) for masked in drawn for count in masked.sum(1)} == {8}
    shares = torch.cat(drawn).double().mean(0)
    assert shares.min() > 0.12
    assert shares.max() < 0.4
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0], drawn[1])


def test_stage_2_trains_neither_the_encoder_of_slices_nor_the_projection() -> None:
    method = method_of("jssl_mask", mask_ratio=0.25)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    take_steps(method, sgd(method), batch_of(3, 2), range(2))
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if key.startswith(("encoder.slices.", "encoder.projection."))]
    assert {"token", "decoder.weight", "encoder.layers.0.attention.query.weight"} <= changed
    chunked = {*method.trained_in_chunks()}
    assert isinstance(method, JSSLMask)
    assert not chunked & {*method.encoder.slices.modules()}
    assert method.encoder.layers[0] in chunked


@pytest.mark.slow
def test_stage_2_learns_to_predict_slices_better_than_by_their_mean() -> None:
    fields = {**PLAIN, "mask_ratio": 0.25, "distance": "squared"}
    method, batch = method_of("jssl_mask", **fields), batch_of(3, 4)
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    take_steps(method, optimiser, batch, range(200))
    losses = method.loss(method.drawn(batch, batch.rng(999)))
    assert losses.total < 0.7 * losses.parts["mean_error"]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_stage_3_swaps_the_codes_of_the_means_over_a_volume_s_tokens(variant: str) -> None:
    method = method_of("jssl_cluster", variant=variant, clusters={"num_prototypes": 5}).double()
    assert isinstance(method, JSSLCluster)
    batch = batch_of(3, 3)
    views = method.drawn(batch, batch.rng(0))
    views = Views(tuple(image.double() for image in views.images), views.boxes, views.targets, views.rows)
    with torch.no_grad():
        tokens = method.encoder.attend(method.encoder.project(torch.cat(views.images)))
        z = np.stack([vector / np.linalg.norm(vector) for vector in tokens.numpy().mean(1)]).reshape(2, 3, -1)
        scores = z @ method.clusters.prototypes.weight.numpy().T
        if variant == "paper":
            codes = reference.sinkhorn(scores.reshape(6, 5), 0.05, 3).reshape(2, 3, 5)
        else:
            codes = np.stack([reference.sinkhorn(one, 0.05, 3) for one in scores])
        found = method.loss(views).total.item()
    reduction = {"paper": "sum", "released": "mean"}[variant]
    assert found == pytest.approx(reference.swapped_loss(scores, codes, 0.1, reduction), abs=1e-9)


def test_stage_3_takes_deepcluster_with_three_heads_of_four_whose_flags_the_variant_completes() -> None:
    asked = JSSLCluster.Config.model_validate({"variant": "released", "clusters": {"name": "deepcluster_v2"}})
    assert (asked.clusters.num_heads, asked.clusters.num_prototypes, asked.clusters.learn_after) == (3, 4, 313)
    paper = JSSLCluster.Config.model_validate({"clusters": {"name": "deepcluster_v2", "num_prototypes": 7}})
    assert (paper.clusters.num_prototypes, paper.clusters.learn_after) == (7, None)
    assert JSSLCluster.Config(variant="released").clusters.codes == "apart"
    with pytest.raises(ValueError, match="epsilon"):
        JSSLCluster.Config.model_validate({"clusters": {"name": "deepcluster_v2", "epsilon": 0.1}})


@pytest.mark.slow
def test_stage_3_clusters_all_volumes_at_the_end_of_an_epoch_and_trains_the_slices_too() -> None:
    facts = Facts(num_samples=6, steps=10, batch_size=3)
    method = method_of(
        "jssl_cluster", facts, clusters={"name": "deepcluster_v2", "num_heads": 2, "num_prototypes": 3}
    )
    assert method.shares == ("clusters.bank", "clusters.assigned")
    optimiser = sgd(method)
    for first in (0, 3):
        take_steps(method, optimiser, batch_of(3, 3, first), range(1))
    method.after_epoch(Progress(2, 10, 1))
    assigned = method.get_buffer("clusters.assigned")
    assert assigned.shape == (6, 2)
    assert assigned.min() >= 0
    moved = [key for key, p in method.encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any(key.startswith("slices.") for key in moved)


@pytest.mark.parametrize("name", ["jssl_mask", "jssl_cluster"])
def test_other_sizes_are_refused_by_name(name: str) -> None:
    config = METHODS[name].Config(size=SIZE)
    with pytest.raises(ValueError, match=r"method\.size"):
        METHODS[name](METHODS[name].Config(size=(30, 32, 32)), tiny_encoder("slice_transformer", 3), FACTS)
    torch.manual_seed(0)
    released = SliceTransformerEncoder.Config.model_validate(
        {**tiny_encoder("slice_transformer", 3).config.model_dump(), "num_slices": 64,  # type: ignore[union-attr]
         "attention": {"axis": "features", "num_heads": 2, "head_dim": 4}}
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"32 slices, attention along the features takes 64; set encoder\.num_slices"
    ):
        METHODS[name](config, SliceTransformerEncoder(released), FACTS)


def test_a_ratio_that_masks_everything_is_refused_and_doubts_name_the_clusters() -> None:
    with pytest.raises(ValueError, match=r"method\.mask_ratio 0\.99 masks all 32 slices"):
        method_of("jssl_mask", mask_ratio=0.99)
    (said,) = method_of("jssl_cluster", Facts(num_samples=99, steps=9, batch_size=12)).doubts()
    assert said.startswith("method.clusters.num_prototypes 3000: 24 embeddings are coded together (12 samples")


def test_the_loss_under_autocast_is_near_that_in_float32() -> None:
    for name in ("jssl_mask", "jssl_cluster"):
        method, batch = method_of(name, **PLAIN), batch_of(3, 2)
        views = method.drawn(batch, batch.rng(0))
        plain = method.loss(views).total
        with torch.autocast("cpu", torch.bfloat16):
            cast = method.loss(views).total
        assert cast.dtype == torch.float32
        assert abs(cast.item() - plain.item()) < 0.05 * abs(plain.item())
