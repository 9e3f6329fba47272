"""SliceTransformerEncoder: what its tokens are, parameter counts, chunks of slices, frozen slices, tasks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.downstream.classification import Classification
from methods.downstream.networks import segmentation_network
from methods.encoders import SlicesEncoder, SliceTransformerEncoder
from methods.encoders.slice_transformer import sinusoids
from tests.batches import eight_bit_batch, facts_of
from tests.references import deformable_attention as reference

RESNET = {"name": "resnet", "spatial_dims": 2, "depth": 18, "init_features": 2}
UNET = {"name": "unet", "spatial_dims": 2, "features": (2, 3, 4, 5, 6, 2), "norm": "instance"}
SMALL = {"slices": RESNET, "dim": 8, "num_layers": 2, "hidden_dim": 6, "num_slices": 32}
HEADS = {"num_heads": 2, "head_dim": 3}
TRUNK, PROJECTION = 23_508_032, 5888 * 640 + 640


def encoder_of(**fields: Any) -> SliceTransformerEncoder:
    torch.manual_seed(0)
    config = {**SMALL, **fields, "attention": {**HEADS, **fields.get("attention", {})}}
    return SliceTransformerEncoder(SliceTransformerEncoder.Config.model_validate(config))


def volumes(count: int = 2, size: tuple[int, int, int] = (32, 64, 32), seed: int = 1) -> Tensor:
    return torch.rand((count, 1, *size), generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def default_sized(**fields: Any) -> SliceTransformerEncoder:
    with torch.device("meta"):
        return SliceTransformerEncoder(SliceTransformerEncoder.Config.model_validate(fields))


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"variant": "released"}, 31_162_884),
        ({"variant": "released", "num_slices": 32}, 31_071_748),
        ({"variant": "released", "num_slices": 128}, 31_346_692),
        ({"variant": "released", "attention": {"axis": "slices"}}, 32_890_884),
        ({"variant": "released", "pooled": "last"}, 31_162_884 - (256 + 512 + 1024 + 2048) * 640),
        ({"variant": "paper"}, 36_272_096),
    ],
)
def test_there_are_as_many_parameters_as_the_published_number_needs(fields: dict, parameters: int) -> None:
    assert count(default_sized(**fields)) == parameters


def test_each_part_of_the_released_encoder_has_its_parameters() -> None:
    encoder = default_sized(variant="released")
    assert (count(encoder.slices), count(encoder.projection)) == (TRUNK, PROJECTION)
    for layer in encoder.layers:
        attention = layer.attention
        parts = [attention.query, attention.key, attention.value, attention.output, attention.offsets, attention.bias]
        assert [count(part) for part in parts] == [4096, 4096, 4096, 32_832, 512, 321]
        assert count(layer.attention_norm) + count(layer.feed_forward_norm) == 2560
        assert count(layer.feed_forward) == 922_960
        assert count(layer) == 971_473


@pytest.mark.parametrize(("pooled", "kept"), [("all", range(5)), ("last_twice", (1, 2, 3, 4, 4)), ("last", (4,))])
def test_tokens_are_projected_from_the_normalised_means_of_the_slice_s_maps(pooled: str, kept) -> None:
    encoder, images = encoder_of(pooled=pooled).eval(), volumes()
    with torch.no_grad():
        tokens = encoder.project(images)
        for volume, depth in ((0, 0), (1, 17)):
            maps = encoder.slices.features(images[volume, :, depth][None])
            means = [maps[index][0].flatten(1).double().mean(1).numpy() for index in kept]
            joined = np.concatenate([mean / np.sqrt((mean**2).sum()) for mean in means])
            weight, bias = (p.double().numpy() for p in encoder.projection.parameters())
            np.testing.assert_allclose(tokens[volume, depth].numpy(), weight @ joined + bias, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_attended_tokens_are_those_of_the_reference(variant: str) -> None:
    encoder = encoder_of(variant=variant, num_slices=8).double().eval()
    tokens = torch.randn(2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = tokens.numpy()
    if variant == "paper":
        expected = expected * np.sqrt(8) + reference.sinusoids(8, 8)
    for layer in encoder.layers:
        weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
        expected = reference.layer(reference.Form(**encoder.config.attention.model_dump()), weights, expected)
    with torch.no_grad():
        np.testing.assert_allclose(encoder.attend(tokens).numpy(), expected, rtol=0, atol=1e-11)


def test_positions_are_encoded_apart_from_each_other() -> None:
    table = sinusoids(torch.zeros(1, 64, 7))
    assert table.shape == (64, 7)
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.1
    np.testing.assert_allclose(table.numpy(), reference.sinusoids(64, 7), rtol=0, atol=1e-5)


def test_the_last_map_holds_the_tokens_and_its_mean_is_the_volume_s_vector() -> None:
    encoder, images = encoder_of().eval(), volumes(size=(64, 64, 32))
    plain = SlicesEncoder(SlicesEncoder.Config.model_validate({"slices": RESNET})).eval()
    plain.slices.load_state_dict(encoder.slices.state_dict())
    with torch.no_grad():
        maps, of_slices = encoder.features(images), plain.features(images)
        tokens = encoder.attend(encoder.project(images))
    assert tuple(one.shape[1] for one in maps) == encoder.channels == (2, 2, 4, 8, 8)
    assert tuple(maps[-1].shape) == (2, 8, 2, 2, 1)
    for found, expected in zip(maps[:-1], of_slices[:-1], strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(maps[-1].flatten(2).mean(2), tokens.mean(1))
    for place in range(2):
        torch.testing.assert_close(maps[-1][:, :, 1, place, 0], tokens[:, 32:].mean(1))


def gradients(encoder: SliceTransformerEncoder, images: Tensor, use: str) -> dict[str, Tensor]:
    """Return the output and every gradient, of all maps or of the tokens."""
    outputs = encoder.features(images) if use == "maps" else [encoder.attend(encoder.project(images))]
    generator = torch.Generator().manual_seed(7)
    pulls = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in outputs]
    torch.stack([(one * pull).sum() for one, pull in zip(outputs, pulls, strict=True)]).sum().backward()
    found = {str(number): one.detach() for number, one in enumerate(outputs)}
    return found | {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("use", ["maps", "tokens"])
@pytest.mark.parametrize(("at_once", "num_chunks"), [(7, 1), (64, 1), (12, 2), (None, 2)])
def test_the_number_of_slices_that_pass_at_once_changes_neither_value_nor_gradient(use, at_once, num_chunks) -> None:
    images, found = volumes(size=(16, 32, 32)).double(), []
    for slices_at_once, chunks in ((None, 1), (at_once, num_chunks)):
        encoder = encoder_of(slices=UNET, slices_at_once=slices_at_once, dropout=0.0).double().train()
        encoder.num_chunks = chunks
        found.append(gradients(encoder, images, use))
    assert len(found[0]) > 60
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_slices_pass_at_once_as_many_as_asked_for() -> None:
    encoder = encoder_of(slices=UNET, slices_at_once=6).train()
    seen: list[int] = []
    encoder.slices.levels()[0].register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    encoder.freeze_slices()
    encoder.project(volumes(size=(16, 32, 32)))
    assert max(seen) <= 6
    assert sum(seen) == 32


def test_batch_norm_is_refused_in_chunks_while_it_trains_and_exact_in_evaluation() -> None:
    encoder, images = encoder_of(slices_at_once=24), volumes()
    with pytest.raises(ValueError, match=r"slices_at_once 24: the 64 slices would pass batch norm in 3 chunks"):
        encoder.train().project(images)
    whole = encoder_of()
    for one in (encoder, whole):
        one.train()
        one.slices.eval()
    torch.testing.assert_close(encoder.project(images), whole.project(images), rtol=0, atol=1e-6)


def held_bytes(encoder: SliceTransformerEncoder, images: Tensor) -> int:
    """Return how many bytes the backward pass holds of the tokens, beside weights."""
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        encoder.project(images).sum().backward()
    return sum(held.values())


def test_frozen_slices_keep_weights_and_statistics_and_hold_no_activations() -> None:
    encoder, images = encoder_of(dropout=0.0).train(), volumes()
    free = held_bytes(encoder, images)
    encoder.zero_grad(set_to_none=True)
    before = {key: value.clone() for key, value in encoder.slices.state_dict().items()}
    encoder.freeze_slices()
    encoder.train()
    vectors = images.shape[0] * images.shape[2] * encoder.projection.in_features * 4
    assert held_bytes(encoder, images) == vectors < free / 50
    assert all(torch.equal(value, before[key]) for key, value in encoder.slices.state_dict().items())
    assert all(p.grad is None for p in encoder.slices.parameters())
    assert encoder.projection.weight.grad is not None
    assert not any(module.training for module in encoder.slices.modules())
    assert all(module.training for module in encoder.layers.modules())


def test_frozen_slices_pass_a_gradient_on_to_images_that_want_one() -> None:
    encoder, images = encoder_of().eval(), volumes().requires_grad_()
    encoder.freeze_slices()
    encoder.project(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize("frozen_levels", [0, 5])
def test_volumes_are_classified_on_the_mean_of_the_tokens(frozen_levels: int) -> None:
    torch.manual_seed(0)
    config = Classification.Config(size=(32, 64, 64), hidden_dims=(6,), dropout=0)
    task = Classification(config, encoder_of(), facts_of({0: "a", 1: "b"}))
    task.freeze(frozen_levels)
    task.see_classes(np.array([[0], [1]]), np.array([[0], [1]]))
    batch = replace(
        eight_bit_batch((volumes(size=(40, 66, 70)) * 255).byte(), [(40, 66, 70)] * 2, ("a", "b")),
        classes=torch.tensor([[0], [1]]),
    )
    task.train()
    task.loss(task.views(batch, batch.rng(0))).total.backward()
    reached = {name for name, p in task.encoder.named_parameters() if p.grad is not None}
    names = {name for name, p in task.encoder.named_parameters()}
    assert reached == {name for name in names if frozen_levels == 0 or not name.startswith("slices.")}
    images = volumes(size=(32, 64, 64))
    with torch.no_grad():
        task.eval()
        vector = task.encoder.attend(task.encoder.project(images)).mean(1)
        torch.testing.assert_close(task.network(images), task.network.head(vector))


def test_the_part_serves_segmentation_of_slices_and_the_whole_that_of_volumes() -> None:
    encoder = encoder_of()
    flat = segmentation_network(encoder.slices, 3)
    assert tuple(flat(torch.rand(2, 1, 64, 32)).shape) == (2, 3, 64, 32)
    whole = segmentation_network(encoder, 3)
    logits = whole(volumes())
    assert tuple(logits.shape) == (2, 3, 32, 64, 32)
    logits.square().mean().backward()
    assert [name for name, p in whole.named_parameters() if p.grad is None] == []


def test_float32_stays_near_float64_from_the_image_to_the_tokens() -> None:
    encoder, images = encoder_of(attention={"bias": "mlp"}).eval(), volumes()
    with torch.no_grad():
        found = encoder.attend(encoder.project(images))
        exact = encoder.double().attend(encoder.project(images.double()))
    assert (found - exact).abs().max() < 5e-4


def test_released_attention_takes_its_own_number_of_slices_only() -> None:
    encoder = encoder_of(variant="released")
    with pytest.raises(ValueError, match=r"volume of 64 slices: .* takes 32 slices"):
        encoder.features(volumes(size=(64, 32, 32)))


def test_flags_complete_a_variant_one_by_one() -> None:
    config = SliceTransformerEncoder.Config.model_validate({"variant": "released", "attention": {"axis": "slices"}})
    assert (config.positions, config.pooled) == ("none", "last_twice")
    assert config.attention.model_dump() == {
        "axis": "slices", "grouped": True, "num_heads": 8, "head_dim": 64, "aligned": False, "bias": "mlp",
        "downsample": 4, "kernel_size": 6, "offset_scale": 2.0,
    }  # fmt: skip
    again = SliceTransformerEncoder.Config.model_validate_json(config.model_dump_json())
    assert again == config
    paper = SliceTransformerEncoder.Config()
    assert (paper.positions, paper.pooled, paper.attention.axis) == ("sinusoidal", "all", "slices")
    with pytest.raises(ValueError, match=r"slices: spatial_dims 2 and in_channels 1; expected 2 and 3, those of"):
        SliceTransformerEncoder.Config.model_validate({"in_channels": 3})
