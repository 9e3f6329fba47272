"""Names and shapes of Models Genesis, TransVW, RadImageNet, Swin UNETR's SSL and VoCo, as their projects save them.

Read in the files that methods/encoders/layouts.py names. In what is released, ``width`` is 32 for Models Genesis and
TransVW, 64 for RadImageNet and 48 for the Swin transformers, whose windows are 7.
"""

from tests.released_weights import Shapes, norm_shapes, prefixed, torchvision_shapes

CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
HEADS = (3, 6, 12, 24)


def genesis_shapes(width: int, channels: int = 1, prefix: str = "module.") -> Shapes:
    """Return the whole 3D U-Net: four steps down, three up, and the last convolution."""
    found, taken = Shapes(), channels
    for stage in range(4):
        own = width * 2**stage
        found |= _two(f"down_tr{width_name(stage)}", taken, own, 2 * own)
        taken = 2 * own
    for stage in (2, 1, 0):
        own, name = width * 2 ** (stage + 1), f"up_tr{width_name(stage)}"
        found |= {f"{name}.up_conv.weight": (taken, taken, 2, 2, 2), f"{name}.up_conv.bias": (taken,)}
        found |= _two(name, taken + own, own, own)
        taken = own
    return prefixed(
        prefix, {**found, "out_tr.final_conv.weight": (1, taken, 1, 1, 1), "out_tr.final_conv.bias": (1,)}
    )


def width_name(stage: int) -> int:
    return 64 * 2**stage


def _two(name: str, taken: int, first: int, second: int) -> Shapes:
    found = Shapes()
    for number, (out, into) in enumerate([(first, taken), (second, first)]):
        found[f"{name}.ops.{number}.conv1.weight"] = (out, into, 3, 3, 3)
        found[f"{name}.ops.{number}.conv1.bias"] = (out,)
        found |= dict(norm_shapes(f"{name}.ops.{number}.bn1", out))
    return found


def transvw_shapes(width: int) -> Shapes:
    """Return TransVW's: the encoder inside its classifier, with that one's head, and the decoder beside it."""
    whole = genesis_shapes(width, prefix="")
    down = {key: shape for key, shape in whole.items() if key.startswith("down_tr")}
    up = {key: shape for key, shape in whole.items() if not key.startswith("down_tr")}
    classifier = {**down, "projection_head.weight": (44, 16 * width), "projection_head.bias": (44,)}
    return prefixed("module.", {**prefixed("classficationNet.", classifier), **up})


def radimagenet_shapes(width: int) -> Shapes:
    """Return ResNet-50's children but the classifier, by number."""
    found = Shapes()
    for key, shape in torchvision_shapes(50, width).items():
        child, _, rest = key.partition(".")
        if child in CHILDREN:
            found[f"backbone.{CHILDREN[child]}.{rest}"] = shape
    return found


def swin_shapes(width: int, window: int, channels: int, layers: str = "fc", v2: bool = False) -> Shapes:
    """Return MONAI's Swin transformer in 3D, two blocks a stage; its layers were called fc before MONAI's linear."""
    found: Shapes = {"patch_embed.proj.weight": (width, channels, 2, 2, 2), "patch_embed.proj.bias": (width,)}
    for stage, heads in enumerate(HEADS, start=1):
        own = width * 2 ** (stage - 1)
        for block in range(2):
            found |= prefixed(f"layers{stage}.0.blocks.{block}.", _swin_block(own, heads, window, layers))
        found[f"layers{stage}.0.downsample.reduction.weight"] = (2 * own, 8 * own)
        found |= {f"layers{stage}.0.downsample.norm.{key}": (8 * own,) for key in ("weight", "bias")}
        if v2:
            for number in (1, 2):
                found[f"layers{stage}c.0.layer.conv{number}.conv.weight"] = (own, own, 3, 3, 3)
    return found


def _swin_block(own: int, heads: int, window: int, layers: str) -> Shapes:
    return {
        **{f"norm{number}.{key}": (own,) for number in (1, 2) for key in ("weight", "bias")},
        "attn.relative_position_bias_table": ((2 * window - 1) ** 3, heads),
        "attn.relative_position_index": (window**3, window**3),
        "attn.qkv.weight": (3 * own, own),
        "attn.qkv.bias": (3 * own,),
        "attn.proj.weight": (own, own),
        "attn.proj.bias": (own,),
        f"mlp.{layers}1.weight": (4 * own, own),
        f"mlp.{layers}1.bias": (4 * own,),
        f"mlp.{layers}2.weight": (own, 4 * own),
        f"mlp.{layers}2.bias": (own,),
    }


def swin_ssl_shapes(width: int, window: int, prefix: str, channels: int = 1, layers: str = "fc") -> Shapes:
    """Return Swin UNETR's SSL: ``module.`` in the released file, ``module.swin_vit.`` in a training's own."""
    top = "module." if prefix.startswith("module.") else ""
    heads: Shapes = {"rotation_head.weight": (4, 16 * width), "contrastive_head.weight": (512, 16 * width)}
    heads |= {"conv.0.weight": (8 * width, 16 * width, 3, 3, 3), "conv.0.bias": (8 * width,)}
    return {**prefixed(prefix, swin_shapes(width, window, channels, layers)), **prefixed(top, heads)}


def voco_shapes(width: int, window: int, prefix: str = "swinViT.") -> Shapes:
    """Return VoCo's: a Swin UNETR V2 under ``swinViT.``, its blocks of convolutions, and a projector."""
    top = prefix.removesuffix("swinViT.")
    others: Shapes = {"encoder1.layer.conv1.conv.weight": (width, 1, 3, 3, 3), "proj_head.layer3.0.bias": (2048,)}
    return {**prefixed(prefix, swin_shapes(width, window, 1, "linear", v2=True)), **prefixed(top, others)}
