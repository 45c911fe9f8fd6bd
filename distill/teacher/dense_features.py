"""Dense features from CLIP image encoders (MaskCLIP, NACLIP, ProxyCLIP).

What the last block must compute so that each patch keeps its own content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipsweep.projection.errors import BadInput

LastBlock = Literal["auto", "pure", "residual", "naclip", "proxy", "pool"]
_OF_VIT = ("pure", "residual", "naclip", "proxy")
_SUPPORTED = (
    "supported are open_clip's VisionTransformer (ViT-*) and ModifiedResNet (RN*) with "
    "CLIP's own text tower"
)
_SIGMA = 5.0  # of NACLIP's neighbourhood [patches]
# of ProxyCLIP
_BETA = 1.2
_GAMMA = 3.0
_OTHER_TOWERS = (
    "timm_model_name",
    "attentional_pool",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)


class Dense(NamedTuple):
    """Dense CLIP features of each output cell in the text space, and the last block's keys.

    Features and keys are not of unit length.
    """

    feature: Float[Tensor, "n h w d"]
    key: Float[Tensor, "n h w k"]


def choose_last_block(name: str, config: Mapping[str, Any], last_block: LastBlock) -> LastBlock:
    """Chooses what a CLIP model's last block computes for dense features, ``auto`` resolved.

    ``naclip`` for a ViT, ``pool`` for a ResNet.

    Args:
        name: the model's, for the error.
        config: open_clip's model configuration.
        last_block: what was asked for.

    Raises:
        BadInput: the image tower's last block is not used so, or the text tower is not CLIP's.
    """
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    for key in _OTHER_TOWERS:
        if vision.get(key):
            raise BadInput(
                name, f"its image tower ({key}: {vision[key]}) has no dense reading", _SUPPORTED
            )
    if vision.get("block_type", "default") not in (None, "default"):
        raise BadInput(
            name,
            f"its image tower (block_type: {vision['block_type']}) has no dense reading",
            _SUPPORTED,
        )
    if "multimodal_cfg" in config or text.get("hf_model_name"):
        raise BadInput(name, "its text tower is another one", _SUPPORTED)
    resnet = is_resnet(config)
    if last_block == "auto":
        return "pool" if resnet else "naclip"
    if resnet != (last_block == "pool"):
        choice = "pool" if resnet else ", ".join(_OF_VIT)
        raise BadInput(
            "teacher.maskclip.last_block",
            f"{last_block} is not for {name}",
            f"its image tower takes {choice}",
        )
    return last_block


def is_resnet(config: Mapping[str, Any]) -> bool:
    """Whether a configuration's image encoder is a ModifiedResNet."""
    return isinstance(config["vision_cfg"].get("layers", 12), list | tuple)


def stride_of(config: Mapping[str, Any]) -> int:
    """Output stride of the image encoder: patch size of a ViT, 32 for a ResNet [px]."""
    return (
        DenseResNet.stride if is_resnet(config) else int(config["vision_cfg"].get("patch_size", 16))
    )


class DenseVit(nn.Module):
    """CLIP ViT with dense patch features (open_clip); the class token is dropped.

    ``pure``: the last attention's value path alone (MaskCLIP, ECCV 2022).
    ``residual``: the same within the whole last block, which is that block with its attention
    matrix set to the identity (what the released MaskCLIP and CLIP2Scene code computes).
    ``naclip``: key-key attention plus a Gaussian of the patches' distance, no residual and MLP
    (NACLIP, WACV 2025). ``proxy``: attention from another network, likewise without residual and
    MLP (ProxyCLIP, ECCV 2024).
    """

    def __init__(self, visual: Any, last_block: LastBlock) -> None:
        super().__init__()
        self.visual = visual
        self.last_block = last_block
        self._positions: dict[tuple[int, int], Tensor] = {}

    def forward(
        self,
        images: Float[Tensor, "n 3 height width"],
        proxy: Float[Tensor, "n h w c"] | None = None,
    ) -> Dense:
        """Dense features of normalised images whose sides are multiples of the patch.

        Args:
            images: the model's input.
            proxy: other network's features of the same images; their grid becomes the output's
                (``proxy`` only).
        """
        patch = self.visual.patch_size
        grid = (images.shape[2] // patch[0], images.shape[3] // patch[1])
        *before, last = self.visual.transformer.resblocks
        tokens = self._embed(images, grid)
        for block in before:
            tokens = _run(block, tokens)
        key, value = _key_value(last.attn, last.ln_1(tokens))
        mixed = value[:, 1:].unflatten(1, grid)
        if self.last_block == "naclip":
            mixed = _near(last.attn.num_heads, key, value, grid)
        key = key[:, 1:].unflatten(1, grid)
        if proxy is not None:
            key = _resized(key, proxy)
            mixed = _by_proxy(mixed, proxy)
        out = last.ls_1(F.linear(mixed, last.attn.out_proj.weight, last.attn.out_proj.bias))
        if self.last_block == "residual":
            out = tokens[:, 1:].unflatten(1, grid) + out
            out = out + last.ls_2(last.mlp(last.ln_2(out)))
        return Dense(self.visual.ln_post(out) @ self.visual.proj, key)

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Float[Tensor, "n tokens width"]:
        patches = self.visual.conv1(images).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens: Tensor = self.visual.ln_pre(
            torch.cat([first, patches], 1) + self._position(grid).to(patches.dtype)
        )
        return tokens

    def _position(self, grid: tuple[int, int]) -> Float[Tensor, "tokens width"]:
        """Position embedding, interpolated to a grid of patches.

        Bicubic and antialiased, as open_clip does while loading.
        """
        if grid not in self._positions:
            own = self.visual.positional_embedding
            old = tuple(self.visual.grid_size)
            if grid != old:
                square = own[1:].unflatten(0, old).permute(2, 0, 1)[None]
                new = F.interpolate(
                    square, grid, mode="bicubic", antialias=True, align_corners=False
                )
                own = torch.cat([own[:1], new[0].flatten(1).T])
            self._positions[grid] = own
        return self._positions[grid]


def _run(block: Any, tokens: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
    if block.attn.batch_first:
        out: Tensor = block(tokens)
        return out
    return _run_token_first(block, tokens)


def _run_token_first(block: Any, tokens: Tensor) -> Tensor:
    out: Tensor = block(tokens.transpose(0, 1).contiguous())
    return out.transpose(0, 1)


def _key_value(attn: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of an attention layer; its queries are never needed."""
    width = normed.shape[-1]
    key, value = F.linear(normed, attn.in_proj_weight[width:], attn.in_proj_bias[width:]).chunk(
        2, -1
    )
    return key, value


def _near(
    heads: int, key: Tensor, value: Tensor, grid: tuple[int, int]
) -> Float[Tensor, "n h w width"]:
    """NACLIP's neighbourhood attention of the patches to all tokens.

    ``softmax(k k^T / sqrt(head's width) + neighbourhood) v``.
    """
    key, value = (tokens.unflatten(-1, (heads, -1)).transpose(1, 2) for tokens in (key, value))
    bias = neighbourhood(grid, key.device).to(key.dtype)
    mixed = F.scaled_dot_product_attention(key[:, :, 1:], key, value, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2).unflatten(1, grid)


def neighbourhood(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "patches tokens"]:
    """NACLIP's attention bias: ``exp(-d^2 / (2 sigma^2))`` between patches ``d`` apart.

    It is 0 to the class token (first column).
    """
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    square = (rows[:, None] - rows).square()[:, None, :, None] + (
        columns[:, None] - columns
    ).square()[None, :, None]
    return F.pad(torch.exp(-square / (2 * _SIGMA**2)).flatten(2).flatten(0, 1), (1, 0))


def _by_proxy(
    value: Float[Tensor, "n a b width"], proxy: Float[Tensor, "n h w c"]
) -> Float[Tensor, "n h w width"]:
    """ProxyCLIP: values resized to the proxy's grid and averaged by its attention."""
    mixed = proxy_attention(proxy).to(value.dtype) @ _resized(value, proxy).flatten(1, 2)
    return mixed.unflatten(1, proxy.shape[1:3])


def proxy_attention(proxy: Float[Tensor, "n h w c"]) -> Float[Tensor, "n hw hw"]:
    """ProxyCLIP's attention from the features of another network.

    Softmax over ``gamma (cos - beta mean(cos))`` where that is not negative.

    A patch always attends to itself: in an image without contrast the mean is so high that the
    published formula leaves some patches nothing, and gives NaN.
    """
    unit = F.normalize(proxy.flatten(1, 2).float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    logit = _GAMMA * (cosine - _BETA * cosine.mean((1, 2), keepdim=True))
    itself = torch.eye(logit.shape[1], dtype=torch.bool, device=logit.device)
    return logit.masked_fill((logit < 0) & ~itself, -torch.inf).softmax(-1)


def _resized(
    maps: Float[Tensor, "n a b d"], like: Float[Tensor, "n h w c"]
) -> Float[Tensor, "n h w d"]:
    """Resizes feature maps bilinearly to another map's grid."""
    if maps.shape[1:3] == like.shape[1:3]:
        return maps
    channels_first = maps.permute(0, 3, 1, 2)
    stretched = F.interpolate(
        channels_first, tuple(like.shape[1:3]), mode="bilinear", align_corners=False
    )
    return stretched.permute(0, 2, 3, 1)


class DenseResNet(nn.Module):
    """CLIP ResNet with dense features (open_clip's ModifiedResNet), cell by cell.

    Its attention pool's value path, without position embedding.
    """

    stride = 32

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Float[Tensor, "n 3 height width"], proxy: None = None) -> Dense:
        """Dense features of normalised images whose sides are multiples of 32.

        ``proxy`` is not used.
        """
        visual = self.visual
        maps = visual.layer4(
            visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))
        ).permute(0, 2, 3, 1)
        pool = visual.attnpool
        return Dense(pool.c_proj(pool.v_proj(maps)), pool.k_proj(maps))
