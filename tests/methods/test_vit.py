"""ViT: MONAI's own classes load its weights strictly and compute the same; other sizes interpolate positions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks import nets
from monai.networks.nets.vit import ViT
from safetensors.torch import save_file

from methods.downstream.networks import segmentation_network
from methods.encoders import ViTEncoder
from methods.encoders.vit import monai_arguments, visible_tokens
from methods.parts.positions import resized_positions, sin_cos_positions
from orchestrator.runs.export import export

SMALL = {"image_size": 32, "hidden_size": 12, "mlp_dim": 16, "num_heads": 3}
SIZES = {2: (32, 48), 3: (32, 16, 48)}


def encoder_of(dims: int, **fields: object) -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(ViTEncoder.Config.model_validate({"spatial_dims": dims, **SMALL, **fields})).eval()


def images_of(size: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("fields", [{}, {"positions": "sin_cos", "qkv_bias": True}])
def test_weights_load_strictly_into_monai_s_vit_and_give_the_same_tokens(dims, fields):
    encoder = encoder_of(dims, **fields)
    network = ViT(**monai_arguments(encoder.config)).eval()
    network.load_state_dict(encoder.state_dict(), strict=True)
    images = images_of((32,) * dims)
    last, hidden = network(images)
    for found, tokens in zip(encoder.features(images), (hidden[3], hidden[6], hidden[9], last), strict=True):
        assert torch.equal(found.flatten(2).transpose(1, 2), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_loads_strictly_into_monai_s_unetr_and_predicts_the_same(dims):
    network = segmentation_network(encoder_of(dims), 3).eval()
    arguments = {name: value for name, value in SMALL.items() if name != "image_size"}
    theirs = nets.UNETR(1, 3, (32,) * dims, spatial_dims=dims, **arguments).eval()
    theirs.load_state_dict(network.state_dict(), strict=True)
    images = images_of((32,) * dims)
    with torch.no_grad():
        assert torch.equal(network(images), theirs(images))


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_of_another_size_have_the_channels_and_strides_that_are_declared(dims):
    encoder = encoder_of(dims, num_layers=5)
    maps = encoder.features(images_of(SIZES[dims]))
    assert [tuple(one.shape[1:]) for one in maps] == [(12, *(length // 16 for length in SIZES[dims]))] * 4
    assert (encoder.channels, encoder.strides) == ((12,) * 4, (16,) * dims)
    assert encoder.steps == ((16,) * dims, *[(1,) * dims] * 3)
    with torch.no_grad():
        assert tuple(segmentation_network(encoder, 3)(images_of(SIZES[dims])).shape) == (2, 3, *SIZES[dims])


@pytest.mark.parametrize("grid", [(2, 3), (3, 2, 4)])
def test_positions_between_patches_lie_linearly_between_theirs(grid):
    index = np.indices(grid).reshape(len(grid), -1).T
    positions = torch.from_numpy(index @ np.arange(1.0, len(grid) + 1))[None, :, None]
    wanted = tuple(2 * length for length in grid)
    fine = np.indices(wanted).reshape(len(grid), -1).T
    inside = (((fine + 0.5) / 2 - 0.5).clip(0, np.array(grid) - 1)) @ np.arange(1.0, len(grid) + 1)
    np.testing.assert_allclose(resized_positions(positions, grid, wanted)[0, :, 0], inside, atol=1e-12)
    assert resized_positions(positions, grid, grid) is positions


@pytest.mark.parametrize("grid", [(2, 3), (3, 2, 4)])
def test_sines_and_cosines_of_every_axis_tell_each_patch_s_place(grid):
    found = sin_cos_positions(grid, 4 * len(grid) + 1)[0].double().numpy()
    assert not found[:, -1].any()  # what cannot be shared
    for row, place in enumerate(np.ndindex(grid)):
        expected = [f(p / 10000 ** (wave / 2)) for p in place for f in (np.sin, np.cos) for wave in range(2)]
        np.testing.assert_allclose(found[row, :-1], expected, atol=1e-7)


def test_sines_and_cosines_do_not_learn_and_learnt_positions_do():
    for kind, learns in (("learnt", True), ("sin_cos", False)):
        encoder = encoder_of(2, positions=kind)
        assert ("patch_embedding.position_embeddings" in dict(encoder.named_parameters())) == learns
        assert all(p.requires_grad for p in encoder.parameters())
    found = encoder.patch_embedding.position_embeddings
    assert torch.equal(found, sin_cos_positions((2, 2), 12))


def test_visible_tokens_attend_as_those_of_an_image_without_the_others():
    encoder = encoder_of(2).double()
    tokens = encoder.embed(images_of((32, 48)).double())
    kept = torch.tensor([[4, 0, 2], [1, 5, 3]])
    found = encoder.attend(visible_tokens(tokens, kept))[-1]
    for image, places in enumerate(kept.tolist()):
        alone = encoder.attend(tokens[image : image + 1, sorted(places)])[-1][0]
        torch.testing.assert_close(found[image], alone[[sorted(places).index(place) for place in places]])


def test_images_in_chunks_give_the_maps_of_one_pass():
    encoder = encoder_of(2).double().train()
    whole = encoder.features(images_of((32, 48)).double())
    encoder.num_chunks = 2
    for found, expected in zip(encoder.features(images_of((32, 48)).double()), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_levels_hold_every_parameter_once():
    encoder = encoder_of(2)
    held = [id(p) for level in encoder.levels() for p in level.parameters()]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())
    assert len(encoder.levels()) == 5


def test_by_default_it_is_unetr_s_transformer():
    with torch.device("meta"):
        encoder = ViTEncoder(ViTEncoder.Config(spatial_dims=3))
        network = segmentation_network(encoder, 14)
        theirs = nets.UNETR(1, 14, (96, 96, 96))
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in network.state_dict().items()} == shapes
    assert sum(p.numel() for p in encoder.parameters()) == 88_340_736


@pytest.mark.parametrize(("num_layers", "kind"), [(12, "UNETR"), (4, None)])
def test_a_fine_tuned_network_is_exported_for_monai_s_unetr_where_monai_has_it(tmp_path, num_layers, kind):
    encoder = encoder_of(3, num_layers=num_layers)
    network = segmentation_network(encoder, 3)
    (tmp_path / "run" / "network").mkdir(parents=True)
    save_file(network.state_dict(), tmp_path / "run" / "network" / "network.safetensors")
    card = {
        "encoder": encoder.config.model_dump(mode="json"),
        "task": {"name": "segmentation"},
        "class_names": ["none", "liver", "kidney"],
    }
    (tmp_path / "run" / "network" / "network.json").write_text(json.dumps(card))
    if kind is None:
        with pytest.raises(ValueError, match="network for segmentation on encoder vit: MONAI has no class for it"):
            export(tmp_path / "run", tmp_path / "out")
        return
    script = Path(export(tmp_path / "run", tmp_path / "out")[-1])
    found: dict[str, torch.nn.Module] = {}
    exec(script.read_text(), {"__file__": str(script), "__name__": "load"}, found)  # what the person would run
    assert isinstance(found["network"], nets.UNETR)
    for name, value in network.state_dict().items():
        assert torch.equal(found["network"].state_dict()[name], value), name


def test_what_cannot_be_built_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r"image_size \(40, 40\): 40 is not a multiple of .* stride 16; use 32"):
        encoder_of(2, image_size=40)
    with pytest.raises(ValueError, match="num_heads 5 does not divide hidden_size 12"):
        encoder_of(2, num_heads=5)
    with pytest.raises(ValueError, match=r"patch_size 8: UNETR's decoder takes four steps up.*patch_size to 16"):
        segmentation_network(encoder_of(2, patch_size=8), 3)
