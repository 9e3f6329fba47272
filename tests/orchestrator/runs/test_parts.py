"""Parts of an encoder: the config and the modules name the same ones, and say the same of each."""

from typing import Any

import pytest

from methods.encoders import ENCODERS, Encoder
from orchestrator.config.parts import part_config
from orchestrator.runs.course import part_of
from tests.encoders import BUILDS
from tests.methods.test_contract import tiny_encoder

HOLDERS = [name for name, kind in ENCODERS.items() if "slices" in kind.Config.model_fields]


def parts_of_config(config: Any, prefix: str = "") -> set[str]:
    """Name all parts that a config holds, those inside others too."""
    found = set[str]()
    for field in type(config).model_fields:
        if hasattr(part := getattr(config, field), "spatial_dims"):
            found |= {prefix + field} | parts_of_config(part, f"{prefix}{field}.")
    return found


def parts_of_modules(encoder: Encoder) -> set[str]:
    return {name for name, module in encoder.named_modules() if name and isinstance(module, Encoder)}


@pytest.mark.parametrize(("name", "dims"), BUILDS)
def test_config_and_modules_name_the_same_parts_with_the_same_config(name: str, dims: int) -> None:
    encoder = tiny_encoder(name, dims)
    parts = parts_of_config(encoder.config)
    assert parts == parts_of_modules(encoder)
    assert bool(parts) == (name in HOLDERS)
    for part in ("", *parts):
        found = part_of(encoder, part)
        assert found.config == part_config(encoder.config, part)
        assert found.spatial_dims == found.config.spatial_dims
        assert isinstance(found, ENCODERS[found.config.name])


@pytest.mark.parametrize(("name", "dims"), BUILDS)
@pytest.mark.parametrize("part", ["volumes", "slices.slices", "layers"])
def test_both_refuse_what_is_no_part(name: str, dims: int, part: str) -> None:
    encoder = tiny_encoder(name, dims)
    with pytest.raises(ValueError, match="has no such part"):
        part_config(encoder.config, part)
    with pytest.raises(ValueError, match="has no part"):
        part_of(encoder, part)


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("slices", [name for name, dims in BUILDS if dims == 2])
def test_a_volume_encoder_holds_any_encoder_of_slices(name: str, slices: str) -> None:
    inner = tiny_encoder(slices, 2)
    fields = {"name": name, "slices": inner.config.model_dump()}
    encoder = ENCODERS[name](ENCODERS[name].Config.model_validate(fields))
    assert part_of(encoder, "slices").config == part_config(encoder.config, "slices") == inner.config
    assert part_of(encoder, "slices").state_dict().keys() == inner.state_dict().keys()
