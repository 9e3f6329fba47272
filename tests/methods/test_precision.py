"""Under bf16 autocast, encoders and decoders compute in bf16; heads, losses and health metrics compute in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from methods.base import Method, Views
from methods.downstream import Task
from methods.downstream.classification import Classification
from methods.downstream.detection import Detection
from methods.downstream.segmentation import Segmentation
from methods.parts.collapse import collapse_coefficient
from methods.parts.health import alignment, effective_rank, uniformity
from methods.parts.precision import InFloat32
from tests.batches import facts_of
from tests.encoders import BUILDS
from tests.methods.test_contract import (
    EACH_ON_UNET,
    labelled_batch,
    samples_of,
    tiny_encoder,
    tiny_method,
    tiny_task,
)

# How far from float32's loss the loss may be, as a share of it or, where it is below 1, in all: the encoder's doing.
BOUND = 0.05
MOVES = ("aten::_to_copy", "aten::detach", "aten::view", "aten::alias", "aten::permute", "aten::transpose")


class Computed(TorchDispatchMode):
    """Notes which operations compute in bf16 while ``follows``, which may, and which do while it is off.

    ``outputs`` are those of what follows autocast, in the order of the calls; given to ``replay``, they are returned
    in place of computing them again.
    """

    def __init__(self, replay: list[Any] | None = None) -> None:
        super().__init__()
        self.follows = False
        self.in_bf16: dict[bool, set[str]] = {True: set(), False: set()}
        self.outputs: list[Any] = []
        self.replay = replay

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        touched = {leaf.dtype for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor)}
        if torch.bfloat16 in touched and func.name().split(".")[0] not in MOVES:
            self.in_bf16[self.follows].add(func.name())
        return out

    def around(self, call: Callable[..., Any], follows: bool) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            if follows and self.replay:
                return self.replay.pop(0)
            before, self.follows = self.follows, follows
            try:
                out = call(*args, **kwargs)
            finally:
                self.follows = before
            if follows:
                self.outputs.append(out)
            return out

        return noting

    def watch(self, followers: list[nn.Module], patch: pytest.MonkeyPatch) -> None:
        """Take these modules, but for heads inside them, as what follows autocast."""
        for follower in followers:
            name = next(name for name in ("features", "decoded", "forward") if hasattr(follower, name))
            patch.setattr(follower, name, self.around(getattr(follower, name), follows=True))
            for module in follower.modules():
                if isinstance(module, InFloat32):
                    patch.setattr(module, "forward", self.around(module.forward, follows=False))


def loss_of(
    method: Method, views: Views, followers: list[nn.Module], autocast: bool, replay: list[Any] | None = None
) -> tuple[Tensor, Computed]:
    computed = Computed(replay)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        computed.watch(followers, patch)
        with computed:
            losses = method(views)
    assert {value.dtype for value in (losses.total, *losses.parts.values())} <= {torch.float32, torch.float64}
    return losses.total, computed


def hold(method: Method, views: Views, followers: list[nn.Module]) -> Computed:
    """Assert that these modules compute in bf16, that nothing else does, and that the loss is near float32's."""
    expected, _ = loss_of(method, views, followers, autocast=False)
    loss, computed = loss_of(method, views, followers, autocast=True)
    assert computed.in_bf16[False] == set()
    assert any("convolution" in name for name in computed.in_bf16[True])
    assert abs(loss.item() - expected.item()) < BOUND * max(1, abs(expected.item()))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    return computed


def followers_in(method: Method) -> list[nn.Module]:
    """Return a method's encoder and its teacher's, the skip blocks of both, and what else computes on maps."""
    modules = dict(method.named_modules())
    names = ("encoder", "teacher.encoder", "head.skips", "teacher.head.skips", "decoder", "discriminator")
    found = [modules[name] for name in names if name in modules]
    return [*found, *modules["densifiers"].children()] if "densifiers" in modules else found


@pytest.mark.parametrize("name", EACH_ON_UNET)
def test_heads_and_losses_of_a_method_compute_in_float32_under_autocast(name):
    method, batch = tiny_method(name, 2), samples_of(name, 2, 12)
    views, followers = method.drawn(batch, batch.rng(0)), followers_in(method)
    computed = hold(method, views, followers)
    loss, _ = loss_of(method, views, followers, autocast=True, replay=[*computed.outputs])
    in_float32, _ = loss_of(method, views, followers, autocast=False, replay=[*computed.outputs])
    assert loss.item() == in_float32.item()


def segmentation(encoder: str, **fields: Any) -> Task:
    torch.manual_seed(0)
    config = Segmentation.Config.model_validate({"crop_size": (32, 64), **fields})
    return Segmentation(config, tiny_encoder(encoder, 2), facts_of({1: "liver", 2: "spleen"})).train()


@pytest.mark.parametrize("fields", [{}, {"regions": {"both": (1, 2), "liver": (1,)}}], ids=["classes", "regions"])
@pytest.mark.parametrize("encoder", [name for name, dims in BUILDS if dims == 2])
def test_the_last_layer_and_the_loss_of_a_segmentation_compute_in_float32_under_autocast(encoder, fields):
    task = segmentation(encoder, **fields)
    last = [module for module in task.network.modules() if isinstance(module, InFloat32)]
    assert [layer.weight.shape[0] for layer in last[0].modules() if isinstance(layer, nn.Conv2d)] == [
        task.target.num_outputs
    ]
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 3, (1, 4, 32, 64), generator=generator)
    images = torch.rand((4, 1, 32, 64), generator=generator) + classes[0, :, None]
    hold(task, Views((images,), (), {"classes": classes}), [task.network])


@pytest.mark.parametrize("feature", ["pooled", "flattened"])
@pytest.mark.parametrize("kind", ["single", "ordinal", "multi_label"])
def test_head_and_loss_of_a_classification_compute_in_float32_under_autocast(kind, feature):
    torch.manual_seed(0)
    config = Classification.Config(kind=kind, feature=feature, size=32, hidden_dims=(8,), dropout=0)
    task = Classification(config, tiny_encoder("unet", 2), facts_of({0: "a", 1: "b", 2: "c"})).train()
    views = Views((torch.rand(12, 1, 32, 32),), (), {"classes": torch.eye(3).bool().repeat(4, 1)})
    hold(task, views, [task.encoder])


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_heads_and_losses_of_a_detection_compute_in_float32_under_autocast(dims):
    task, batch = tiny_task("detection boxes", dims, "unet").train(), labelled_batch(dims)
    assert isinstance(task, Detection)
    views = task.drawn(batch, batch.rng(0))
    followers = [task.encoder, *task.network.transforms, task.network.pyramid]
    computed = hold(task, views, followers)
    loss, in_float32 = (
        loss_of(task, views, followers, autocast, [*computed.outputs])[0].item() for autocast in (True, False)
    )
    assert loss == in_float32


def test_health_metrics_do_not_change_under_autocast():
    first, second = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0))

    def measured() -> list[float]:
        one = [metric(first).item() for metric in (effective_rank, uniformity, collapse_coefficient)]
        return [*one, alignment(first, second).item()]

    with torch.autocast("cpu", torch.bfloat16):
        found = measured()
    assert found == measured()
