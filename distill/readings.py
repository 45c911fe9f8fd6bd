"""Dense readings of CLIP image towers: what the last block must compute so that each patch says what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from projection.errors import BadInput

Reading = Literal["auto", "pure", "residual", "naclip", "proxy", "pool"]
_VIT_READINGS = ("pure", "residual", "naclip", "proxy")
_SUPPORTED = "supported are open_clip's own VisionTransformer (ViT-*) and ModifiedResNet (RN*) towers, OpenAI's included"
_SIGMA = 5.0  # of NACLIP's neighbourhood [patches]


class Dense(NamedTuple):
    """Features of each patch in the text space, not of unit length, and the last block's keys."""

    feature: Float[Tensor, "n h w d"]
    key: Float[Tensor, "n h w k"]


def choose_reading(name: str, config: Mapping[str, Any], reading: Reading) -> Reading:
    """The reading to use with a model, ``auto`` resolved: ``naclip`` for a ViT, ``pool`` for a ResNet.

    Args:
        name: the model's, for the error.
        config: open_clip's model configuration.
        reading: the one asked for.

    Raises:
        BadInput: the image tower's last block has no such reading.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    special = ("timm_model_name", "attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_attn")
    for key in (*special, "scale_heads", "scale_attn_inner", "scale_fc"):
        if vision.get(key):
            raise BadInput(name, f"its image tower ({key}: {vision[key]}) has no dense reading", _SUPPORTED)
    if "multimodal_cfg" in config or text.get("hf_model_name"):
        raise BadInput(name, "its text tower is not CLIP's own", _SUPPORTED)
    resnet = isinstance(vision["layers"], list | tuple)
    if reading == "auto":
        return "pool" if resnet else "naclip"
    if resnet != (reading == "pool"):
        choice = "pool" if resnet else ", ".join(_VIT_READINGS)
        raise BadInput("teacher.reading", f"{reading} is not a reading of {name}", f"its image tower has {choice}")
    return reading


class DenseVit(nn.Module):
    """An open_clip VisionTransformer read patch by patch.

    ``pure`` (MaskCLIP, ECCV 2022): the last attention's value path alone. ``residual``: the same within the whole
    last block, which is that block with its attention matrix set to the identity (released MaskCLIP and CLIP2Scene
    code). ``naclip`` (Hajimiri et al., 2024): key-key attention plus a Gaussian of the patches' distance, neither
    residual nor MLP. ``proxy`` (ProxyCLIP, ECCV 2024): attention given from outside, likewise without residual and MLP.
    """

    def __init__(self, visual: Any, reading: Reading) -> None:
        super().__init__()
        self.visual, self.reading = visual, reading
        self._positions: dict[tuple[int, int], Tensor] = {}

    @property
    def stride(self) -> int:
        return int(self.visual.patch_size[0])

    def forward(
        self, images: Float[Tensor, "n 3 height width"], attention: Float[Tensor, "n hw hw"] | None = None
    ) -> Dense:
        """Dense features of normalised images whose sides are multiples of the patch; class token dropped."""
        grid = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        *before, last = self.visual.transformer.resblocks
        tokens = self._embed(images, grid)
        for block in before:
            tokens = _run(block, tokens)
        normed = last.ln_1(tokens)
        key, value = self._key_value(last.attn, normed)
        mixed = self._mix(last.attn.num_heads, key, value, grid, attention)
        out = last.ls_1(F.linear(mixed, last.attn.out_proj.weight, last.attn.out_proj.bias))
        if self.reading == "residual":
            out = tokens + out
            out = out + last.ls_2(last.mlp(last.ln_2(out)))
        feature = self.visual.ln_post(out[:, 1:]) @ self.visual.proj
        return Dense(feature.unflatten(1, grid), key[:, 1:].unflatten(1, grid))

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = self.visual.conv1(images).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens: Tensor = self.visual.ln_pre(torch.cat([first, patches], 1) + self._position(grid).to(patches.dtype))
        return tokens

    def _position(self, grid: tuple[int, int]) -> Float[Tensor, "tokens width"]:
        """The position embedding for a grid of patches: bicubic and antialiased, as open_clip does while loading."""
        if grid not in self._positions:
            own, old = self.visual.positional_embedding, self.visual.grid_size
            if grid != tuple(old):
                square = own[1:].unflatten(0, tuple(old)).permute(2, 0, 1)[None]
                new = F.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
                own = torch.cat([own[:1], new[0].flatten(1).T])
            self._positions[grid] = own
        return self._positions[grid]

    @staticmethod
    def _key_value(attn: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the last attention; the queries are not needed by any reading."""
        width = normed.shape[-1]
        key_value = F.linear(normed, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
        key, value = key_value.chunk(2, -1)
        return key, value

    def _mix(
        self, heads: int, key: Tensor, value: Tensor, grid: tuple[int, int], attention: Tensor | None
    ) -> Float[Tensor, "n tokens width"]:
        if self.reading in ("pure", "residual"):
            return value
        if self.reading == "naclip":
            key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (key, value))
            near = neighbourhood(grid, key.device).to(key.dtype)
            mixed = F.scaled_dot_product_attention(key, key, value, attn_mask=near)
            return mixed.transpose(1, 2).flatten(2)
        assert attention is not None
        patches = attention.to(value.dtype) @ value[:, 1:]
        return torch.cat([value[:, :1], patches], 1)


def _run(block: Any, tokens: Tensor) -> Tensor:
    if not block.attn.batch_first:
        return block(tokens.transpose(0, 1)).transpose(0, 1)
    out: Tensor = block(tokens)
    return out


def neighbourhood(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "tokens tokens"]:
    """NACLIP's bias: ``exp(-d^2 / (2 sigma^2))`` between patches ``d`` apart, 0 from and to the class token."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij"
    )
    at = torch.stack([rows.flatten(), columns.flatten()], 1).float()
    square = (at[:, None] - at[None]).square().sum(-1)
    return F.pad(torch.exp(-square / (2 * _SIGMA**2)), (1, 0, 1, 0))


class DenseResNet(nn.Module):
    """An open_clip ModifiedResNet read cell by cell: its attention pool's value path, without position embedding."""

    stride = 32

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Float[Tensor, "n 3 height width"], attention: None = None) -> Dense:
        """Dense features of normalised images whose sides are multiples of 32."""
        visual = self.visual
        maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))).permute(0, 2, 3, 1)
        pool = visual.attnpool
        return Dense(pool.c_proj(pool.v_proj(maps)), pool.k_proj(maps))
