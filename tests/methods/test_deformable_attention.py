"""Deformable attention: values and gradients equal a slow reference in every form; what its flags change."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.encoders.slice_transformer import SliceLayer
from methods.parts.deformable_attention import FORMS, DeformableAttention, interpolate
from tests.references import deformable_attention as reference

SLICES, FEATURES = 12, 10
SMALL = {"num_heads": 2, "head_dim": 3}
CASES: dict[str, dict[str, Any]] = {
    "paper": {**FORMS["paper"], **SMALL},
    "released": {**FORMS["released"], **SMALL},
    "released, by slices": {**FORMS["released"], **SMALL, "axis": "slices"},
    "paper, by features": {**FORMS["paper"], **SMALL, "axis": "features"},
    "paper, grouped": {**FORMS["paper"], **SMALL, "grouped": True},
    "paper, with a network": {**FORMS["paper"], **SMALL, "bias": "mlp"},
    "paper, not aligned": {**FORMS["paper"], **SMALL, "aligned": False, "offset_scale": 0.5, "kernel_size": 4},
}


def spread(module: nn.Module, seed: int) -> None:
    """Draw all weights anew, larger than they begin, so that offsets and biases matter.

    Offsets stay small enough that no head samples beyond both ends alone, where all is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.1 if name.endswith("offsets.2.weight") else 0.6
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def form_of(config: DeformableAttention.Config) -> reference.Form:
    return reference.Form(**config.model_dump())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_layer_equals_the_reference_in_value_and_gradient(case):
    config = DeformableAttention.Config(**CASES[case])
    layer = SliceLayer(config, FEATURES, SLICES, hidden_dim=2, dropout=0.5).double().eval()
    spread(layer, seed=2)
    tokens, pull = noise(1, SLICES, FEATURES).requires_grad_(), noise(1, SLICES, FEATURES, seed=4)
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}

    found = layer(tokens)
    (found * pull).sum().backward()
    expected = reference.layer(form_of(config), weights, tokens.detach().numpy())
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-11)

    slow = reference.gradients(form_of(config), weights, tokens.detach().numpy(), pull.numpy())
    # A bias of all places cancels in the softmax, and what all features of a slice share is normalised away.
    cancelled = {"attention.bias.layers.4.bias", "attention.output.bias" if config.axis == "features" else ""}
    ours = {name: p.grad for name, p in [*layer.named_parameters(), ("tokens", tokens)]}
    for name, gradient in slow.items():
        assert ours[name] is not None
        np.testing.assert_allclose(ours[name].numpy(), gradient, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.abs(gradient).max() > 1e-3 or name in cancelled, name


@pytest.mark.parametrize("case", CASES)
def test_attention_of_several_volumes_equals_the_reference(case):
    config = DeformableAttention.Config(**CASES[case])
    attention = DeformableAttention(config, FEATURES, SLICES).double()
    spread(attention, seed=2)
    tokens = noise(2, SLICES, FEATURES)
    weights = {name: p.detach().numpy() for name, p in attention.named_parameters()}
    with torch.no_grad():
        found = attention(tokens).numpy()
    np.testing.assert_allclose(
        found, reference.attention(form_of(config), weights, tokens.numpy()), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("num_slices", [4, 7, 23])
def test_attention_along_the_slices_takes_any_number_and_stretches_its_table(num_slices):
    config = DeformableAttention.Config(**CASES["paper"])
    attention = DeformableAttention(config, FEATURES, SLICES).double()
    spread(attention, seed=2)
    tokens = noise(1, num_slices, FEATURES)
    weights = {name: p.detach().numpy() for name, p in attention.named_parameters()}
    with torch.no_grad():
        found = attention(tokens).numpy()
    np.testing.assert_allclose(
        found, reference.attention(form_of(config), weights, tokens.numpy()), rtol=0, atol=1e-11
    )


def test_a_table_is_read_at_its_entries_for_distances_of_whole_slices():
    attention = DeformableAttention(DeformableAttention.Config(**CASES["paper"]), FEATURES, SLICES)
    distances = torch.tensor([-11.0, -1, 0, 4, 11]) * 2 / (SLICES - 1)
    found = attention.bias(distances.expand(1, 2, 1, 5))[0, :, 0]
    torch.testing.assert_close(found, attention.bias.table[:, [0, 10, 11, 15, 22]])


def test_an_aligned_grid_meets_the_first_and_last_slices_and_another_half_of_them():
    row = torch.tensor([[[4.0, 1, 2, 8]]])
    ends = torch.tensor([[-1.0, 1]])
    assert interpolate(row, ends, aligned=True).tolist() == [[[4.0, 8]]]
    assert interpolate(row, ends, aligned=False).tolist() == [[[2.0, 4]]]
    assert interpolate(row, torch.tensor([[-9.0, 9]]), aligned=True).tolist() == [[[0.0, 0]]]


@pytest.mark.parametrize("bias", ["table", "mlp"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_attention_along_the_slices_treats_features_as_channels(grouped, aligned, bias):
    """Without offsets, the grid of 3 places sees few slices: another one changes no token but its own."""
    fields = {**SMALL, "grouped": grouped, "aligned": aligned, "bias": bias}
    attention = DeformableAttention(DeformableAttention.Config(**fields), FEATURES, SLICES).double()
    with torch.no_grad():
        attention.offsets[2].weight.zero_()
    tokens = noise(1, SLICES, FEATURES)
    other = tokens.clone()
    other[:, 3] += 1
    changed = (attention(other) - attention(tokens)).abs().amax(dim=(0, 2))
    assert changed[3] > 1e-3
    assert changed[[*range(3), *range(4, SLICES)]].max() == 0


def test_what_cannot_be_attended_is_refused_with_a_remedy():
    released = DeformableAttention(DeformableAttention.Config(**CASES["released"]), FEATURES, SLICES)
    with pytest.raises(ValueError, match=r"volume of 9 slices: .* takes 12 slices.*set encoder\.num_slices, or"):
        released(torch.zeros(1, 9, FEATURES))
    paper = DeformableAttention(DeformableAttention.Config(**CASES["paper"]), FEATURES, SLICES)
    with pytest.raises(ValueError, match=r"volume of 3 slices: attention takes 4 or more"):
        paper(torch.zeros(1, 3, FEATURES))
    with pytest.raises(ValueError, match=r"num_heads 8 does not divide the 12 slices that grouped heads share"):
        DeformableAttention(DeformableAttention.Config(**FORMS["released"]), FEATURES, SLICES)
    with pytest.raises(ValueError, match=r"kernel_size 5: expected attention\.downsample 4 plus an even .*; use 6"):
        DeformableAttention.Config(kernel_size=5)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_float32_stays_as_near_to_float64_as_was_seen_of_the_released_code(form):
    """methods.md, 7b: one attention about 1e-4, four layers about 5e-4."""
    torch.manual_seed(0)
    attention = DeformableAttention.Config(**FORMS[form])
    layers = nn.Sequential(*(SliceLayer(attention, 160, 64, 180, dropout=0.1) for _ in range(4))).eval()
    tokens = torch.randn(2, 64, 160)
    with torch.no_grad():
        one, four = layers[0].attention(tokens), layers(tokens)
        exact = layers.double()
        assert (exact[0].attention(tokens.double()) - one).abs().max() < 1e-4
        assert (exact(tokens.double()) - four).abs().max() < 5e-4
