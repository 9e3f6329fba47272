"""Transfer: an encoder takes the tensors of saved weights, as they are or turned into its own shapes.

Reference: layouts.py says which files there are, kernels.py how a kernel is turned into another shape.
Variants:  what the released code does with ``strict=False`` (left and missing keys pass in silence) is a report here,
           and an error wherever more differs than a head, a stem or shortcuts without weights.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from methods.encoders.kernels import COLOURS, Inflation, colours_as_depth, for_channels, in_the_middle, repeated
from methods.encoders.layouts import LAYOUTS, OWN, LayoutName, trunk_of

COUNTER = "num_batches_tracked"  # of batch norms; files of before torch 0.4.1 lack it, and nothing reads it here
STATISTICS = (COUNTER, "running_mean", "running_var")
SHORTCUT = ".downsample."
MOST_NAMED = 4


@dataclass(frozen=True)
class Transfer:
    """What saved weights gave an encoder, tensor by tensor.

    taken     tensors of the encoder that came from the file
    initial   tensors of the encoder that keep their initial values
    changed   those of the taken whose values are not the file's, and how they were changed
    left      keys of the file that nothing came from
    """

    taken: tuple[str, ...]
    initial: tuple[str, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Count what was taken; name the rest, a few of each kind."""
        said = f"{len(self.taken)} of {len(self.taken) + len(self.initial)} tensors taken"
        if self.changed:
            ways: dict[str, list[str]] = defaultdict(list)
            for name, way in self.changed.items():
                ways[way].append(name)
            told = "; ".join(f"{few(names)} {way}" for way, names in ways.items())
            said += f", {len(self.changed)} of them changed ({told})"
        said += f"; left in the file: {few(self.left)}" if self.left else ""
        return said + (f"; with initial values: {few(self.initial)}" if self.initial else "")

    def every_key(self) -> str:
        """Return a line for each tensor of the encoder, and for each key that was left in the file."""
        taken = [f"taken    {name}" for name in self.taken if name not in self.changed]
        changed = [f"changed  {name}: {way}" for name, way in self.changed.items()]
        initial = [f"initial  {name}" for name in self.initial]
        return "\n".join([*taken, *changed, *initial, *(f"left     {key}" for key in self.left)])


@dataclass(frozen=True)
class FittedWeights:
    """Tensors in the shapes of an encoder's, by its names, and how they came about."""

    tensors: dict[str, Tensor]
    transfer: Transfer


def fitted(
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    layout: LayoutName = OWN,
    inflate: Inflation | None = None,
) -> FittedWeights:
    """Turn saved weights into those of an encoder whose state is ``own``; only its names, shapes and types are read.

    ``inflate`` turns 2D kernels into 3D ones: i3d repeats them along the depth; vdt puts them in the middle, and the
    colours of the first kernel along the depth; acs leaves them 2D, for an encoder of ACS convolutions. Where the
    first kernel has other input channels, it is summed over its own and divided among the new. The bias of a
    convolution in a shortcut is taken off the running mean of the norm behind it, which is the same.

    A head is left in the file, and so is what is for images where an encoder sees volumes alone, or the other way
    round. A stem that is named otherwise is left, and the encoder's keeps its initial values:
    its norm too, since the file's statistics are of another convolution. Shortcuts without weights (type A) leave the
    encoder's at their initial values. Raises ValueError for anything else that differs. Weights in this project's own
    layout differ in nothing, but for what ``inflate`` changes.
    """
    if layout == OWN:
        named, keys, left = dict(weights), {key: key for key in weights}, list[str]()
    else:
        trunk = trunk_of(weights, layout)
        named, keys, left = trunk.tensors, trunk.keys, list(trunk.left)
    changed: dict[str, str] = {}
    if layout != OWN:
        absent = [kind for kind in LAYOUTS[layout].kinds if not any(kind in name for name in own)]
        left += [keys[name] for name in named if any(kind in name for kind in absent)]
        named = {name: value for name, value in named.items() if not any(kind in name for kind in absent)}
        changed = _fold_biases(named, own)
        if ("conv1.weight" in named) != ("conv1.weight" in own):
            stem = [name for name in named if _in_stem(name)]
            left += [keys[name] for name in stem]
            named = {name: value for name, value in named.items() if name not in stem}
    initial = [name for name in own if name not in named]
    _refuse_unlike(named, own, set() if layout == OWN else _may_be_initial(initial, named))
    tensors: dict[str, Tensor] = {}
    for name, value in named.items():
        tensors[name], ways = _converted(name, value, own, inflate, adapts=(layout, inflate) != (OWN, None))
        if ways:
            changed[name] = ", ".join(ways)
    _refuse_other_shapes(tensors, named, own)
    taken = tuple(name for name in own if name in tensors)
    return FittedWeights(tensors, Transfer(taken, tuple(initial), changed, tuple(left)))


def fitting_layouts(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], inflate: Inflation | None = None
) -> list[LayoutName]:
    """Return the layouts in which weights fit an encoder."""
    found: list[LayoutName] = []
    for layout in (OWN, *LAYOUTS):
        try:
            fitted(weights, own, layout, inflate)
        except ValueError:
            continue
        found.append(layout)
    return found


def few(names: Iterable[str], between: str = ", ") -> str:
    """List a few names, and how many more there are."""
    listed = list(names)
    more = len(listed) - MOST_NAMED
    shown = listed if more <= 1 else listed[:MOST_NAMED]
    return between.join(shown) + (f" and {more} more" if more > 1 else "")


def _in_stem(name: str) -> bool:
    return name.startswith(("conv1.", "bn1."))


def _fold_biases(named: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Take the biases that an encoder's shortcuts do not have off the means of their norms; return what changed."""
    changed: dict[str, str] = {}
    for bias in [name for name in named if name.endswith(f"{SHORTCUT}0.bias") and name not in own]:
        mean = bias.replace(f"{SHORTCUT}0.bias", f"{SHORTCUT}1.running_mean")
        if mean in named:
            named[mean] = named[mean] - named.pop(bias)
            changed[mean] = "less the bias of the convolution before it"
    return changed


def _may_be_initial(initial: list[str], named: Mapping[str, Tensor]) -> set[str]:
    """Return those of an encoder's tensors without a counterpart that may keep their initial values."""
    shortcuts, stem = any(SHORTCUT in name for name in named), any(map(_in_stem, named))
    return {
        name
        for name in initial
        if name.endswith(COUNTER) or (SHORTCUT in name and not shortcuts) or (_in_stem(name) and not stem)
    }


def _refuse_unlike(named: Mapping[str, Tensor], own: Mapping[str, Tensor], may_be_initial: set[str]) -> None:
    """Raise ValueError for keys without a place in the encoder, and for tensors of it that need a counterpart."""
    extra = [name for name in named if name not in own]
    missing = [name for name in own if name not in named and name not in may_be_initial]
    if not extra and not missing:
        return
    said = [f"{len(extra)} keys have no place in the encoder ({few(extra)})"] if extra else []
    said += [f"{len(missing)} tensors of the encoder are not in the file ({few(missing)})"] if missing else []
    if not missing and all(name.endswith(STATISTICS) for name in extra):
        raise ValueError(f"{said[0]}: its norms are batch norms; set encoder.norm=batch")
    both = _blocks(named), _blocks(own)
    unlike = f"; the file has {both[0]}, the encoder {both[1]}" if all(both) and both[0] != both[1] else ""
    raise ValueError(f"{' and '.join(said)}{unlike}; take an encoder of the same network")


def _blocks(names: Iterable[str]) -> str:
    """Describe a residual network by its names: how many blocks each stage has, and how many convolutions a block."""
    found = [match for name in names if (match := re.match(r"layer(\d+)\.(\d+)\.conv(\d)\.weight$", name))]
    blocks = {(int(match[1]), int(match[2])) for match in found}
    stages = [sum(stage == one for stage, _ in blocks) for one in sorted({stage for stage, _ in blocks})]
    most = max((int(match[3]) for match in found), default=0)
    return f"{', '.join(map(str, stages))} blocks of {most} convolutions" if found else ""


def _refuse_other_shapes(
    tensors: Mapping[str, Tensor], named: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    unlike = [
        f"{name} {tuple(named[name].shape)}, the encoder's {tuple(own[name].shape)}"
        for name, value in tensors.items()
        if value.shape != own[name].shape
    ]
    if unlike:
        raise ValueError(
            f"{len(unlike)} of {len(own)} tensors have other shapes ({few(unlike, '; ')}); take an encoder of the "
            "same network and width (init_features), or name another layout"
        )


def _converted(
    name: str, value: Tensor, own: Mapping[str, Tensor], inflate: Inflation | None, adapts: bool
) -> tuple[Tensor, list[str]]:
    """Return a tensor in the encoder's type and, if ``adapts``, in its shape as far as the rules go; and the ways."""
    target, ways = own[name], list[str]()
    value = value.to(target.dtype)
    if not adapts or value.ndim < 4:
        return value, ways
    _check_dims(name, value, target, inflate)
    if name == next(name for name, other in own.items() if other.ndim > 3):
        value, ways = _first_kernel(name, value, target, inflate)
    if value.ndim < target.ndim:
        value, way = _inflated(value, target.shape[2], inflate)
        ways.append(way)
    return value, ways


def _inflated(value: Tensor, depth: int, inflate: Inflation | None) -> tuple[Tensor, str]:
    """Turn a 2D kernel into one that is ``depth`` planes deep."""
    if depth == 1:
        return value.unsqueeze(2), "as one plane"
    if inflate == "i3d":
        return repeated(value, depth), f"repeated over {depth} planes and divided by {depth}"
    return in_the_middle(value, depth), f"in the middle of {depth} planes"


def _check_dims(name: str, value: Tensor, target: Tensor, inflate: Inflation | None) -> None:
    """Raise ValueError where a kernel cannot come to the dimensions of the encoder's, or need not."""
    given, wanted = value.ndim - 2, target.ndim - 2
    if given > wanted:
        raise ValueError(f"{name} is {given}D, the encoder's {wanted}D; take a 3D encoder with full convolutions")
    if given == wanted and inflate in ("i3d", "vdt"):
        raise ValueError(f"inflate {inflate} turns 2D kernels into 3D ones; {name} is {given}D; leave inflate out")
    if given < wanted and inflate not in ("i3d", "vdt"):
        raise ValueError(
            f"{name} is {given}D, the encoder's {wanted}D; set inflate: i3d or vdt, or take an encoder resnet3d of "
            "convolutions: acs with inflate: acs"
        )


def _first_kernel(name: str, value: Tensor, target: Tensor, inflate: Inflation | None) -> tuple[Tensor, list[str]]:
    """Fit the first kernel to the encoder's input channels, or turn its colours into depth."""
    given, wanted = value.shape[1], target.shape[1]
    if inflate == "vdt":
        if (given, wanted) != (COLOURS, 1) or target.shape[2] < COLOURS:
            raise ValueError(
                f"inflate vdt turns a kernel of {COLOURS} colours into one of 1 channel, {COLOURS} planes deep; "
                f"{name} is {tuple(value.shape)}, the encoder's {tuple(target.shape)}; set inflate: i3d"
            )
        depth = target.shape[2]
        return colours_as_depth(value, depth), [f"with its {COLOURS} colours as the middle of {depth} planes"]
    if given == wanted:
        return value, []
    way = f"summed over {given} input channels" if given > 1 else "of 1 input channel"
    return for_channels(value, wanted), [way + (f", divided among {wanted}" if wanted > 1 else "")]
