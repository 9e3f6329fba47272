"""The contract that every entry of METHODS must pass; a new method is tested by being registered."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from data.boxes import Boxes
from data.views.batch import Batch
from methods import METHODS as REGISTERED
from methods.base import FrozenConfig, Losses, Method, Progress, Views
from methods.downstream import TASKS, Task
from methods.downstream.class_losses import Kind
from methods.downstream.networks import segmentation_network
from methods.encoders import ENCODERS, Encoder
from methods.parts.sync_batch_norm import convert_sync_batch_norm
from tests.batches import eight_bit_batch, facts_of
from tests.encoders import BUILDS, DIMS, EACH_BUILD
from tests.toys import ToyClusters


def variants_of(name: str) -> list[str]:
    """List a method's variants as "name variant"; each has to pass on its own."""
    field = METHODS[name].Config.model_fields.get("variant")
    return [f"{name} {variant}" for variant in get_args(field.annotation)] if field else [name]


# A toy stands for methods to come: a bank over all samples, clusters at each epoch's end, parts of a state on ranks.
METHODS = REGISTERED | {"toy_clusters": ToyClusters}
TRAINED = [case for name, method in METHODS.items() if method.trains for case in variants_of(name)]
# The fast tests see one variant of a method: variants share most of their code.
FIRST = {variants_of(name)[0] for name in METHODS}
# Those that ask what others ask of encoder, views and contract; a method of its own kind belongs here.
STAND_FOR_OTHERS = ("simsiam", "voco", "cpc", "simmim", "models_genesis", "spark", "vicregl", "swav", "rotation")


def encoder_for(case: str) -> str:
    """Return the encoder that a method is tested on where all serve alike."""
    return (METHODS[case.split()[0]].encoders or ("unet",))[0]


def takes(case: str, encoder: str) -> bool:
    """Tell whether a method can train an encoder."""
    return encoder in (METHODS[case.split()[0]].encoders or ENCODERS)


def slow_unless_first(case: str) -> list[pytest.MarkDecorator]:
    return [] if case in FIRST | set(METHODS) else [pytest.mark.slow]


def slow_unless_it_stands(case: str) -> list[pytest.MarkDecorator]:
    """Leave a method out of the fast tests where another stands for it, or the method's own tests tell enough."""
    return [] if case in FIRST and case.split()[0] in (*STAND_FOR_OTHERS, "toy_clusters") else [pytest.mark.slow]


def pairs(cases: Iterable[str]) -> list[Any]:
    """List each method with each encoder that it can train, in 2D and 3D; further variants with one encoder.

    Methods that ask the same of an encoder are stood for by one: of means, of all maps, of a decoder, of masks.
    """
    return [
        pytest.param(case, *build.values, marks=marks_of(case, build))
        for case in cases
        for build in EACH_BUILD
        if takes(case, name := str(build.values[0])) and (with_each_encoder(case) or name == encoder_for(case))
    ]


def marks_of(case: str, build: Any) -> list[Any]:
    """Leave to the slow tests what another encoder, variant or method, or fewer dimensions, stand for."""
    name, dims = build.values
    fewest = dims == min(DIMS[name])
    return [
        *slow_unless_first(case),
        *(build.marks if takes(case, "unet") else ()),
        *(() if fewest else slow_unless_it_stands(case)),
    ]


def with_each_encoder(case: str) -> bool:
    """Tell whether a case is tested with each encoder, and not with one alone."""
    name = case.split()[0]
    return not slow_unless_first(case) and (name in STAND_FOR_OTHERS or bool(METHODS[name].encoders))


IN_DIMS = [(case, dims) for case in TRAINED for dims in DIMS[encoder_for(case)]]
EACH_IN_DIMS = [pytest.param(*one, marks=slow_unless_it_stands(one[0])) for one in IN_DIMS]
EACH_IN_FEWEST = [
    pytest.param(case, min(DIMS[encoder_for(case)]), marks=slow_unless_it_stands(case)) for case in TRAINED
]
# Two ranks compute what stands for others in each dimension, and all else in the fewest.
ON_RANKS = [
    (case, dims) for case, dims in IN_DIMS if dims == min(DIMS[encoder_for(case)]) or not slow_unless_it_stands(case)
]
EACH_ON_UNET = [pytest.param(case, marks=slow_unless_it_stands(case)) for case in TRAINED if takes(case, "unet")]
FACTS = facts_of({0: "none", 1: "some", 2: "many"})
TINY_ENCODERS = {
    "swin_unetr": {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 3},
    "unet": {"features": (4, 6, 8, 12, 16, 4), "norm": "instance"},
    "pooled_unet": {"features": (4, 6, 8, 12, 16), "dropout": 0.0},
    "densenet": {"growth_rate": 4, "block_config": (1, 1, 1, 1), "init_features": 4},
    "resnet": {"depth": 18, "init_features": 2},
    "resnet3d": {"init_features": 2, "depth_strides": "vanilla"},
    "vnet": {"init_features": 2, "dropout": 0.0},
    "vit": {"image_size": 32, "hidden_size": 24, "mlp_dim": 32, "num_layers": 4, "num_heads": 2},
    "pyramid_transformer": {
        "stem_dim": 4,
        "stage_dims": (4, 6, 8, 12),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 2),
        "image_size": 32,
        "volume_size": (16, 32, 32),
        "norm": "batch",
    },
    "genesis_unet": {"init_features": 2},
    "plain_conv_unet": {
        "features": (4, 6, 8, 12, 16),
        "stage_strides": (1, 2, 2, 2, 2),
        "blocks": (1, 1, 2, 1, 1),
        "norm": "batch",
    },
    "residual_encoder_unet": {
        "features": (4, 6, 8, 12, 16),
        "stage_strides": (1, 2, 2, 2, 2),
        "blocks": (1, 1, 2, 1, 1),
        "norm": "batch",
        "zero_init_residual": False,
    },
}
FROZEN = [(name, min(dims)) for name, dims in DIMS.items()]
TINY_ENCODERS["slices"] = {"slices": {"name": "unet", "spatial_dims": 2, **TINY_ENCODERS["unet"]}}
TINY_ENCODERS["slice_transformer"] = {
    "slices": {"name": "resnet", "spatial_dims": 2, **TINY_ENCODERS["resnet"]},
    "dim": 16,
    "attention": {"num_heads": 2, "head_dim": 4},
    "num_layers": 1,
    "hidden_dim": 12,
    "dropout": 0.0,
}
# What makes any method small: its fields by the names that all methods give them; a number is an upper bound.
TINY_FIELDS: dict[str, Any] = {
    "crops": {"size": 32, "iou": [0.3, 0.6]},
    "*_dim": 16,
    "projector_dim": 32,
    "*_dims": (16, 8),
    "*_length": 32,
    "num_*": 6,
    "num_crops": 2,
    "grid": (1, 2, 2),
    "block": 16,
    "side": 32,
    "resize_to": 40,
    "scales": tuple(range(20, 33)),
    "pyramid_channels": 8,
    "norm_groups": 2,
    "sampled_*": 16,
    "size": (32, 32, 32),
    "clusters": {"num_prototypes": 6},
    "dropout": 0.0,  # ranks draw masks of their own, and then they could not equal one rank
}
# Grids of patches along D, H and W, of images along D and W, and their jitter: the first that a task takes.
TINY_PATCHES = (((1, 1, 3), 8), ((4, 1, 2), 5))
EXTENTS = {2: [(40, 72), (52, 66)], 3: [(36, 40, 66), (33, 38, 70)]}


@cache
def tiny_config(case: str, dims: int, encoder: str = "") -> FrozenConfig:
    """Return a small config of any method, on samples of ``EXTENTS``."""
    (name, *variant), network = case.split(), tiny_encoder(encoder or encoder_for(case), dims)
    fields = {"variant": variant[0]} if variant else {}
    # Instance norm cannot take a coarsest map of a single voxel.
    size = (*[32] * (dims - 1), max(32, 2 * network.stride))
    patterns = {
        **TINY_FIELDS,
        "crop_size": size,
        "large_crops": {"size": size},
        "small_crops": {"num": 1, "size": size},
        "slice_crops": {"size": size[-2:]},
    }
    for field, about in METHODS[name].Config.model_fields.items():
        for pattern, value in patterns.items():
            if fnmatch(field, pattern) and not (isinstance(value, int) and about.default <= value):
                fields[field] = cut_for(about.annotation, value, fed(name, dims)[0])
    configs = [fields]
    if "patches" in METHODS[name].Config.model_fields:
        size = (32, 32) if dims == 2 else (network.stride, 32, 32)
        configs = [
            {**fields, "patches": {"grid": (grid[0], *grid[-dims + 1 :]), "size": size, "jitter": jitter}}
            for grid, jitter in TINY_PATCHES
        ]
    return next(filter(None, (taken(name, config, dims, network) for config in configs)))


def cut_for(annotation: Any, value: Any, dims: int) -> Any:
    """Return a tiny size of three axes as a field takes it: one number, or one for each axis of the samples."""
    if value != TINY_FIELDS["size"]:
        return value
    return value[0] if annotation is int else value[:dims]


def taken(name: str, fields: dict[str, Any], dims: int, encoder: Encoder) -> FrozenConfig | None:
    """Return a config with which a method can be built for the samples; None if there is none."""
    try:
        config = METHODS[name].Config.model_validate(fields)
        method = METHODS[name](config, encoder, FACTS)
        for extent in EXTENTS[fed(name, dims)[0]]:
            method.check_extent(extent)
    except ValueError:
        return None
    return config


@cache
def fed(name: str, dims: int) -> tuple[int, int]:
    """Return spatial dimensions and channels of the samples that a method is fed on an encoder of ``dims``."""
    return METHODS[name].takes(tiny_encoder(encoder_for(name), dims))


def tiny_encoder(encoder: str, dims: int) -> Encoder:
    return ENCODERS[encoder](ENCODERS[encoder].Config(spatial_dims=dims, **TINY_ENCODERS[encoder]))


def tiny_method(case: str, dims: int, encoder: str = "", seed: int = 0) -> Method:
    config = tiny_config(case, dims, encoder)
    torch.manual_seed(seed)
    return METHODS[case.split()[0]](config, tiny_encoder(encoder or encoder_for(case), dims), FACTS).train()


def phantom(extent: tuple[int, ...], number: int) -> np.ndarray:
    """Draw a body with a few organs of their own place, size and brightness, as uint8."""
    generator = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, s) for s in extent), indexing="ij"))
    image = 60.0 * ((grid / 0.9) ** 2 < 1).all(axis=0)
    for _ in range(4):
        centre, radius = generator.uniform(-0.6, 0.6, len(extent)), generator.uniform(0.15, 0.5, len(extent))
        inside = (((grid.T - centre) / radius) ** 2).sum(axis=-1).T < 1
        image[inside] = generator.uniform(80, 255)
    return (image + generator.normal(0, 4, extent)).clip(0, 255).astype(np.uint8)


def batch_of(dims: int, count: int, first: int = 0, channels: int = 1) -> Batch:
    extents = [EXTENTS[dims][i % 2] for i in range(first, first + count)]
    voxels = np.zeros((count, channels, *np.max(EXTENTS[dims], axis=0)), np.uint8)
    for i, extent in enumerate(extents):
        for channel in range(channels):
            voxels[(i, channel, *(slice(s) for s in extent))] = phantom(extent, first + i + 100 * channel)
    ids = tuple(f"sample-{i}" for i in range(first, first + count))
    return eight_bit_batch(torch.from_numpy(voxels), extents, ids, first)


def samples_of(case: str, dims: int, count: int, first: int = 0) -> Batch:
    """Return samples as a method is fed them on an encoder of ``dims``; each has a class of ``FACTS``, and boxes."""
    own, channels = fed(case.split()[0], dims)
    batch = batch_of(own, count, first, channels)
    boxes = Boxes(np.array([[[2] * own, [33] * own], [[8] * own, [38] * own]]), np.array([0, 2]))
    classes = torch.arange(first, first + count)[:, None] % len(FACTS.names)
    return replace(batch, classes=classes, boxes=(boxes,) * count)


def part_of(batch: Batch, rows: slice) -> Batch:
    return Batch(
        voxels=batch.voxels[rows],
        extents=batch.extents[rows],
        scale=batch.scale[rows],
        offset=batch.offset[rows],
        spacing_mm=batch.spacing_mm[rows],
        sample_ids=batch.sample_ids[rows],
        volumes=batch.volumes[rows],
        numbers=batch.numbers[rows],
        rows=batch.rows[rows],
        epochs=batch.epochs[rows],
        classes=None if batch.classes is None else batch.classes[rows],
        boxes=None if batch.boxes is None else batch.boxes[rows],
    )


def tensors(views: Views) -> Iterator[Tensor]:
    yield from views.images
    yield from (views.targets[key] for key in sorted(views.targets))


def take_steps(method: Method, optimiser: torch.optim.Optimizer, batch: Batch, steps: range) -> list[float]:
    losses = []
    for step in steps:
        # The run's seed stands in for the epoch: every step sees other views of the same samples.
        views = method.drawn(batch, batch.rng(step))
        torch.manual_seed(step)
        loss = method.loss(views).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        method.after_step(Progress(step, 100, 0))
        losses.append(loss.item())
    return losses


def sgd(method: Method, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": group.params} for group in method.param_groups()], lr=lr, momentum=0.9)


@pytest.mark.parametrize("name", METHODS)
def test_config_carries_its_registry_name_and_refuses_unknown_fields(name):
    config = METHODS[name].Config()
    assert config.name == name
    assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        METHODS[name].Config(no_such_field=1)


@pytest.mark.parametrize(("name", "encoder", "dims"), pairs(TRAINED))
def test_loss_is_finite_and_its_gradient_reaches_every_trainable_parameter_and_no_frozen_one(name, encoder, dims):
    method, batch = tiny_method(name, dims, encoder), samples_of(name, dims, 3)
    frozen = next(method.encoder.parameters()).requires_grad_(False)
    losses = method.loss(method.drawn(batch, batch.rng(0)))
    losses.total.backward()

    assert losses.total.shape == ()
    assert all(torch.isfinite(value).all() for value in (losses.total, *losses.parts.values()))
    assert not any(value.requires_grad for value in losses.parts.values())
    grouped = [id(p) for group in method.param_groups() for p in group.params]
    trainable = {key: p for key, p in method.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(id(p) for p in trainable.values())
    assert frozen.grad is None
    unreached = [key for key, p in trainable.items() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert unreached == []
    assert [key for key, p in trainable.items() if p.ndim > 1 and p.grad.abs().sum() == 0] == []


def assert_states_the_loss_of_a_constant(method: Method, losses: Losses) -> None:
    """Assert that a loss comes with that of the best constant prediction, or the method with why there is none."""
    if method.why_no_constant:
        assert losses.of_constant is None
        assert len(method.why_no_constant.split()) > 5
        return
    assert losses.of_constant is not None
    assert losses.of_constant.shape == ()
    assert torch.isfinite(losses.of_constant)
    assert not losses.of_constant.requires_grad


@pytest.mark.parametrize(("name", "dims"), EACH_IN_FEWEST)
def test_a_method_states_the_loss_of_the_best_constant_prediction_or_why_it_has_none(name, dims):
    method, batch = tiny_method(name, dims), samples_of(name, dims, 3)
    assert_states_the_loss_of_a_constant(method, method.loss(method.drawn(batch, batch.rng(0))))


@pytest.mark.parametrize(("name", "dims"), EACH_IN_DIMS)
def test_same_seed_gives_the_same_views_on_any_batch_split(name, dims):
    method, batch = tiny_method(name, dims), samples_of(name, dims, 4)
    whole = list(tensors(method.drawn(batch, batch.rng(7))))
    again = list(tensors(method.drawn(batch, batch.rng(7))))
    parts = [part_of(batch, rows) for rows in (slice(0, 1), slice(1, 4))]
    split = [list(tensors(method.drawn(part, part.rng(7)))) for part in parts]
    for one, same, *pieces in zip(whole, again, *split, strict=True):
        assert torch.equal(one, same)
        torch.testing.assert_close(torch.cat(pieces), one, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "dims"), EACH_IN_FEWEST)
def test_another_seed_and_another_epoch_give_other_views(name, dims):
    method, batch = tiny_method(name, dims), samples_of(name, dims, 3)
    later = Batch(**{**vars(batch), "epochs": batch.epochs + 1})
    first = next(tensors(method.drawn(batch, batch.rng(0))))
    for rng in (batch.rng(1), later.rng(0)):
        other = next(tensors(method.drawn(batch, rng)))
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("name", "dims"), EACH_IN_FEWEST)
def test_training_goes_on_bit_for_bit_after_a_checkpoint_round_trip(name, dims):
    batch = samples_of(name, dims, 4)
    method = tiny_method(name, dims)
    optimiser = sgd(method)
    take_steps(method, optimiser, batch, range(2))
    saved = io.BytesIO()
    torch.save({"method": method.state_dict(), "optimiser": optimiser.state_dict()}, saved)
    undisturbed = take_steps(method, optimiser, batch, range(2, 4))

    resumed = tiny_method(name, dims, seed=1)
    resumed_optimiser = sgd(resumed)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    resumed.load_state_dict(state["method"])
    resumed_optimiser.load_state_dict(state["optimiser"])
    assert take_steps(resumed, resumed_optimiser, batch, range(2, 4)) == undisturbed
    for key, value in method.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def effective_rank(features: Tensor) -> float:
    """Return RankMe: the exponential of the entropy of the centred features' singular values."""
    values = torch.linalg.svdvals(features - features.mean(0))
    share = values / values.sum()
    return torch.exp(-(share * share.log()).sum()).item()


SHORT_RATES = {"barlow_twins": 0.002}  # whose loss is a sum over dimensions


# Default variants only: whether VoCo's equations as printed collapse in so short a run depends on seed and width.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trains])
def test_features_of_different_phantoms_stay_apart_through_a_short_run(name):
    dims = min(DIMS[encoder_for(name)])
    method, batch = tiny_method(name, dims), samples_of(name, dims, 16)
    take_steps(method, sgd(method, lr=SHORT_RATES.get(name, 0.01)), batch, range(20))
    views = method.drawn(batch, batch.rng(99))
    with torch.no_grad():
        losses = method.loss(views)
        features = method.encoder.features(views.images[0])[-1].flatten(2).mean(2)
    assert effective_rank(features) > 4
    assert F.normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5 > 0.005
    assert losses.parts.get("collapse", torch.zeros(())) < 0.9


@pytest.mark.parametrize(("name", "encoder", "dims"), pairs(METHODS))
def test_encoder_loads_downstream_with_no_unmatched_key(name, encoder, dims):
    trained = tiny_method(name, dims, encoder).encoder.state_dict()
    downstream = tiny_encoder(encoder, dims)
    network = segmentation_network(downstream, num_classes=3)
    unmatched = downstream.load_state_dict(trained)
    assert (unmatched.missing_keys, unmatched.unexpected_keys) == ([], [])
    values = {value.data_ptr(): value for value in network.state_dict().values()}
    for key, value in downstream.state_dict().items():
        assert torch.equal(values[value.data_ptr()], trained[key])


@pytest.mark.parametrize("name", EACH_ON_UNET)
def test_images_that_pass_the_encoder_in_chunks_change_neither_loss_nor_gradient(name):
    whole, chunked = (tiny_method(name, 2).double() for _ in range(2))
    chunked.pass_in_chunks(3)
    batch = samples_of(name, 2, BATCH[2])
    for found, expected in zip(
        losses_and_gradients(chunked, chunked, batch), losses_and_gradients(whole, whole, batch), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


# Samples over two ranks. Of the volumes each rank has one, of which neither spread nor batch statistics exist.
BATCH = {2: 4, 3: 2}


def losses_and_gradients(
    model: nn.Module, method: Method, batch: Batch, rank: int = 0, ranks: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take loss and parts, and gradients, over a rank's rows of one batch's views, in float64."""
    views = method.drawn(batch, batch.rng(5))
    share = len(batch) // ranks
    rows = slice(rank * share, (rank + 1) * share)
    images = tuple(image[rows].double() for image in views.images)
    targets = {key: target[rows] for key, target in views.targets.items()}
    assert views.rows is not None
    losses = model(Views(images, tuple(box[rows] for box in views.boxes), targets, views.rows[rows]))
    losses.total.backward()
    gradients = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return {**losses.logged, "loss": losses.total.detach()}, gradients


TASK_CASES = (
    "segmentation classes",
    "segmentation regions",
    *(f"classification {kind}" for kind in get_args(Kind)),
    "detection boxes",
)
TINY_DETECTOR = {
    "size": 64,
    "pyramid_channels": 8,
    "head_dims": (16,),
    "region_size": 3,
    "sampled_anchors": 32,
    "sampled_regions": 24,
}


def tiny_task(case: str, dims: int, encoder: str, dropout: float = 0.5) -> Task:
    torch.manual_seed(0)
    name, kind = case.split()
    network, size = tiny_encoder(encoder, dims), TINY_FIELDS["side"]
    if name == "detection":
        return TASKS[name](TASKS[name].Config.model_validate(TINY_DETECTOR), network, facts_of({3: "a", 5: "b"}))
    if name == "classification":
        fields = {"kind": kind, "size": size, "hidden_dims": (8,), "dropout": dropout}
        return TASKS[name](
            TASKS[name].Config.model_validate(fields), network, facts_of({0: "none", 1: "some", 2: "many"})
        )
    fields = {"crop_size": (*[size] * (dims - 1), 2 * size)}
    if kind == "regions":
        fields["regions"] = {"organs": (1, 2), "liver": (1,)}
    return TASKS[name](TASKS[name].Config.model_validate(fields), network, facts_of({1: "liver", 2: "kidney"}))


def labelled_batch(dims: int, first: int = 0) -> Batch:
    batch = batch_of(dims, 2, first)
    low, high = [[2] * dims, [10] * dims], [[20] * dims, [31] * dims]
    found = Boxes(np.stack([low, high], axis=1), np.array([3, 5]))
    none = Boxes(np.zeros((0, 2, dims), np.int64), np.zeros(0, np.int64))
    return replace(
        batch,
        labels=(batch.voxels[:, 0] // 80).clamp(max=2),
        classes=torch.tensor([[0], [2]]),
        boxes=(found, none),
    )


@pytest.mark.parametrize("case", TASK_CASES)
def test_a_task_states_the_loss_of_the_best_constant_prediction_or_why_it_has_none(case):
    task, batch = tiny_task(case, 2, "unet").train(), labelled_batch(2)
    assert_states_the_loss_of_a_constant(task, task.loss(task.drawn(batch, batch.rng(0))))


# With labels of a sample each, whole or none, so that a rank can have its own.
SHARED_TASKS = [
    *((f"classification {kind}", "unet", dims) for kind in get_args(Kind) for dims in (2, 3)),
    ("detection boxes", "resnet", 2),
    ("detection boxes", "resnet3d", 3),
]


@pytest.mark.parametrize("case", TASK_CASES)
def test_samples_that_pass_a_task_s_network_in_chunks_change_neither_loss_nor_gradient(case):
    found = []
    for num_chunks in (1, 2):
        task = tiny_task(case, 2, "unet").train().double()
        task.pass_in_chunks(num_chunks)
        batch = labelled_batch(2)
        views = task.drawn(batch, batch.rng(0))
        torch.manual_seed(0)  # of the head's dropout
        task.loss(replace(views, images=tuple(image.double() for image in views.images))).total.backward()
        found.append({name: p.grad for name, p in task.named_parameters()})
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-11)


def train_frozen(encoder: str, dims: int, rank: int) -> list[str]:
    """Take a step with the whole encoder frozen, on two ranks; return which of its buffers and weights moved."""
    task = tiny_task("segmentation classes", dims, encoder)
    task.freeze(None)
    convert_sync_batch_norm(task)
    model = DistributedDataParallel(task)
    model.train()
    task.train()
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    batch = labelled_batch(dims, first=2 * rank)
    optimiser = sgd(task)
    model(task.drawn(batch, batch.rng(0))).total.backward()
    optimiser.step()
    return [name for name, value in task.encoder.state_dict().items() if not torch.equal(value, before[name])]


def broadcast(module: nn.Module) -> list[str]:
    """Broadcast each buffer, as data-parallel training does; return what cannot be."""
    failed = []
    for name, buffer in module.named_buffers():
        try:
            dist.broadcast(buffer.clone(), 0)
        except RuntimeError as error:
            failed.append(f"{name}, {buffer.dtype}: {error}")
    return failed


def every_module() -> dict[str, nn.Module]:
    """Every method in each variant, every encoder and every kind of task."""
    methods = {f"{name}-{dims}": tiny_method(name, dims) for name, dims in IN_DIMS}
    encoders = {f"{name}-{dims}": tiny_encoder(name, dims) for name, dims in BUILDS}
    return methods | encoders | {case: tiny_task(case, 2, "unet") for case in TASK_CASES}


def run_rank(rank: int, folder: str) -> None:
    """Compute loss and gradients of every method on this rank's half of the batch; broadcast; train frozen."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, dims in ON_RANKS:
        method = tiny_method(name, dims).double()
        convert_sync_batch_norm(method)
        found = losses_and_gradients(
            DistributedDataParallel(method), method, samples_of(name, dims, BATCH[dims]), rank, 2
        )
        torch.save(found, Path(folder, f"{name}-{dims}-{rank}.pt"))
    for case, encoder, dims in SHARED_TASKS:
        task = tiny_task(case, dims, encoder, dropout=0.0).train().double()
        convert_sync_batch_norm(task)
        found = losses_and_gradients(DistributedDataParallel(task), task, labelled_batch(dims), rank, 2)
        torch.save(found, Path(folder, f"{case}-{encoder}-{dims}-{rank}.pt"))
    unsent = {name: failed for name, module in every_module().items() if (failed := broadcast(module))}
    Path(folder, f"unsent-{rank}.json").write_text(json.dumps(unsent))
    moved = {f"{encoder}-{dims}": train_frozen(encoder, dims, rank) for encoder, dims in FROZEN}
    Path(folder, f"moved-{rank}.json").write_text(json.dumps(moved))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=2)
    return folder


def assert_equal_to_one(logged: dict[str, Tensor], gradients: dict[str, Tensor], ranks: list[Any]) -> None:
    """Assert that two ranks found what one rank logs, as means, and its gradients."""
    # As the loop logs them: means over the ranks.
    means = {key: (ranks[0][0][key] + ranks[1][0][key]) / 2 for key in ranks[0][0]}
    torch.testing.assert_close(means, logged, rtol=0, atol=1e-10)
    for key, gradient in gradients.items():
        for _, found in ranks:
            torch.testing.assert_close(
                found[key], gradient, rtol=1e-7, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dims"), ON_RANKS)
def test_two_ranks_equal_one_rank_in_loss_and_gradient(name, dims, two_ranks):
    method = tiny_method(name, dims).double()
    ranks = [torch.load(two_ranks / f"{name}-{dims}-{rank}.pt") for rank in range(2)]
    assert_equal_to_one(*losses_and_gradients(method, method, samples_of(name, dims, BATCH[dims])), ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "encoder", "dims"), SHARED_TASKS)
def test_two_ranks_equal_one_rank_in_a_task_s_loss_and_gradient(case, encoder, dims, two_ranks):
    task = tiny_task(case, dims, encoder, dropout=0.0).train().double()
    ranks = [torch.load(two_ranks / f"{case}-{encoder}-{dims}-{rank}.pt") for rank in range(2)]
    assert_equal_to_one(*losses_and_gradients(task, task, labelled_batch(dims)), ranks)


@pytest.mark.slow
def test_every_buffer_of_methods_encoders_and_tasks_can_be_broadcast(two_ranks):
    assert [json.loads((two_ranks / f"unsent-{rank}.json").read_text()) for rank in range(2)] == [{}, {}]


@pytest.mark.slow
def test_every_buffer_has_a_type_that_both_gloo_and_nccl_broadcast():
    both = {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
    held = {str(buffer.dtype) for module in every_module().values() for buffer in module.buffers()}
    assert held <= {str(dtype) for dtype in both}


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "dims"), FROZEN)
def test_a_frozen_encoder_keeps_weights_and_statistics_on_two_ranks(encoder, dims, two_ranks):
    for rank in range(2):
        assert json.loads((two_ranks / f"moved-{rank}.json").read_text())[f"{encoder}-{dims}"] == []
