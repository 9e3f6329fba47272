"""Names and shapes of Models Genesis, TransVW, RadImageNet, Swin UNETR's SSL, VoCo and UniMiSS, as they are saved.

Read in the files that methods/encoders/layouts.py names. In what is released, ``width`` is 32 for Models Genesis and
TransVW, 64 for RadImageNet and 48 for the Swin transformers, whose windows are 7.
"""

from typing import Any

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


MIT_WIDTHS, MIT_SIZES = (32, 48, 128, 256, 512), {"2D": (224, 224), "3D": (16, 96, 96)}


def mit_shapes(widths: tuple[int, ...] = MIT_WIDTHS, kinds: tuple[str, ...] = ("2D", "3D")) -> Shapes:
    """Return the encoder of UniMiSS' MiT-tiny, of one block a stage."""
    found: Shapes = {"cls_tokens1": (1, 1, widths[1])}
    for kind in kinds:
        dims = int(kind[0])
        found |= _mit_embedding(f"patch_embed{kind}0", widths[0], 3 if dims == 2 else 1, 7, dims)
    for stage, (into, own, side) in enumerate(zip(widths, widths[1:], (6, 4, 2, 1), strict=False), start=1):
        block = f"block{stage}.0"
        for kind in kinds:
            dims, places = int(kind[0]), 1
            for length, step in zip(MIT_SIZES[kind], (1, 2, 2)[-dims:], strict=True):
                places *= length // (step * 2**stage)
            found |= _mit_embedding(f"patch_embed{kind}{stage}.proj", own, into, 3, dims)
            found[f"pos_embed{kind}{stage}"] = (1, places + 1, own)
            if side > 1:
                found |= {f"{block}.attn.sr{kind}.weight": (own, own, *(side,) * dims)}
                found |= {f"{block}.attn.sr{kind}.bias": (own,)}
        for norm in ("norm1", "norm2", *(["attn.norm"] if side > 1 else [])):
            found |= {f"{block}.{norm}.{key}": (own,) for key in ("weight", "bias")}
        layers = {"attn.q": (own, own), "attn.kv": (2 * own, own), "attn.proj": (own, own)}
        layers |= {"mlp.fc1": (4 * own, own), "mlp.fc2": (own, 4 * own)}
        for name, shape in layers.items():
            found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        if stage > 1:
            found |= {f"cls_tokens{stage}.weight": (own, into), f"cls_tokens{stage}.bias": (own,)}
    return found


def _mit_embedding(name: str, out: int, into: int, side: int, dims: int) -> Shapes:
    norm: Shapes = {f"{name}.norm.{key}": (out,) for key in ("weight", "bias")}
    return {f"{name}.conv.weight": (out, into, *(side,) * dims), **norm}


def unimiss_shapes(prefix: str = "module.backbone.", **fields: Any) -> Shapes:
    """Return a student's: the encoder under ``transformer.``, stages that decode, and DINO's head."""
    own = mit_shapes(**fields)
    decoder: Shapes = {"DecPosEmbed3D0": (1, 73, 256), "DecEmbed3D0.proj.weight": (512, 256, 2, 2, 2)}
    decoder |= {"Decblock1.0.attn.kv.weight": (256, 128), "cls_tokens1.weight": (128, 256), "norm.weight": (48,)}
    head: Shapes = {f"{prefix.removesuffix('backbone.')}head.last_layer.weight_v": (12, 256)}
    return {**prefixed(f"{prefix}transformer.", own), **prefixed(prefix, decoder), **head}
