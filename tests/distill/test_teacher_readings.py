"""Dense readings against the models' own layers and against literal float64 re-derivations of
the papers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from clipsweep.distill.teacher.dense_features import (
    DenseResNet,
    DenseVit,
    choose_last_block,
    proxy_attention,
    stride_of,
)
from clipsweep.distill.teacher.maskclip import MaskClip, MaskClipConfig
from clipsweep.distill.teacher.text import Prompts
from clipsweep.distill.teacher.weights import build_clip, find_clip
from clipsweep.projection.errors import BadInput
from tests.distill.tiny_clip import RESNET, VIT, one_thread, write_clip

__all__ = ["one_thread"]  # a fixture for every test here

HW = (64, 96)
GRID = (4, 6)
CONFIGS = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.5},
    "norm after pooling": {"final_ln_after_pool": True, "pool_type": "avg"},
    "no first norm": {"no_ln_pre": True},
}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, *HW, generator=torch.Generator().manual_seed(1))


def ours(name: str, last_block: Any) -> DenseVit:
    return DenseVit(build_clip(find_clip(name, "")).visual, last_block)


def theirs(name: str) -> Any:
    """open_clip's own tower, its position embedding resized by open_clip while loading."""
    return open_clip.create_model(name, force_image_size=HW).eval().visual


@torch.no_grad()
def before_last(visual: Any, images: Tensor) -> Tensor:
    tokens = visual._embeds(images)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return tokens


def nothing_but_itself(tokens: Tensor) -> Tensor:
    """An attention mask under which the softmax is the identity matrix."""
    count = tokens.shape[1]
    return torch.full((count, count), -torch.inf).fill_diagonal_(0)


def finish(visual: Any, tokens: Tensor) -> Tensor:
    return (visual.ln_post(tokens) @ visual.proj)[:, 1:].unflatten(1, GRID)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_residual_is_the_last_block_with_identity_attention(
    tmp_path: Path, images: Tensor, config: Any
) -> None:
    name = write_clip(tmp_path / "clip", {**VIT, **config})
    visual = theirs(name)
    tokens = before_last(visual, images)
    last = visual.transformer.resblocks[-1]
    expected = finish(visual, last(tokens, attn_mask=nothing_but_itself(tokens)))
    torch.testing.assert_close(
        ours(name, "residual")(images).feature, expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_pure_is_the_attention_with_identity_matrix_alone(
    tmp_path: Path, images: Tensor, config: Any
) -> None:
    name = write_clip(tmp_path / "clip", {**VIT, **config})
    visual = theirs(name)
    tokens = before_last(visual, images)
    last = visual.transformer.resblocks[-1]
    own = last.ls_1(last.attention(last.ln_1(tokens), attn_mask=nothing_but_itself(tokens)))
    torch.testing.assert_close(
        ours(name, "pure")(images).feature, finish(visual, own), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_residual_equals_a_float64_derivation_from_the_weights(
    tmp_path: Path, images: Tensor
) -> None:
    name = write_clip(tmp_path / "clip", VIT)
    visual = theirs(name).double()
    tokens = before_last(visual, images.double())
    last = visual.transformer.resblocks[-1]
    normed = F.layer_norm(tokens, tokens.shape[-1:], last.ln_1.weight, last.ln_1.bias)
    value = normed @ last.attn.in_proj_weight[-64:].T + last.attn.in_proj_bias[-64:]
    out = tokens + value @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
    normed = F.layer_norm(out, out.shape[-1:], last.ln_2.weight, last.ln_2.bias)
    hidden = normed @ last.mlp.c_fc.weight.T + last.mlp.c_fc.bias
    hidden = hidden / (1 + torch.exp(-1.702 * hidden))
    out = out + hidden @ last.mlp.c_proj.weight.T + last.mlp.c_proj.bias
    feature = F.normalize(ours(name, "residual")(images).feature, dim=-1)
    expected = F.normalize(finish(visual, out), dim=-1)
    torch.testing.assert_close(feature.double(), expected, atol=1e-5, rtol=0)


def last_parts(visual: Any, tokens: Tensor, heads: int = 4) -> tuple[Tensor, Tensor]:
    """Keys and values by head, float64: (batch, head, token, 16)."""
    last = visual.transformer.resblocks[-1]
    qkv = last.ln_1(tokens) @ last.attn.in_proj_weight.T + last.attn.in_proj_bias
    _, key, value = qkv.unflatten(-1, (3, heads, 16)).permute(2, 0, 3, 1, 4)
    return key, value


@torch.no_grad()
def test_naclip_equals_a_literal_derivation(tmp_path: Path, images: Tensor) -> None:
    name = write_clip(tmp_path / "clip", VIT)
    visual = theirs(name).double()
    tokens = before_last(visual, images.double())
    key, value = last_parts(visual, tokens)
    near = torch.zeros(25, 25, dtype=torch.float64)
    for a in range(24):
        for b in range(24):
            distance = np.hypot(a // 6 - b // 6, a % 6 - b % 6)
            near[a + 1, b + 1] = np.exp(-(distance**2) / 50)
    attention = (key @ key.transpose(2, 3) / 4 + near).softmax(-1)
    last = visual.transformer.resblocks[-1]
    mixed = (attention @ value).transpose(1, 2).flatten(
        2
    ) @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
    dense = ours(name, "naclip")(images)
    torch.testing.assert_close(dense.feature.double(), finish(visual, mixed), atol=1e-4, rtol=1e-4)
    keys = key[:, :, 1:].transpose(1, 2).flatten(2).unflatten(1, GRID)
    torch.testing.assert_close(dense.key.double(), keys, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_proxy_equals_a_literal_derivation(tmp_path: Path, images: Tensor) -> None:
    name = write_clip(tmp_path / "clip", VIT)
    visual = theirs(name).double()
    proxy = torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(2)) + 0.3
    _, value = last_parts(visual, before_last(visual, images.double()))
    last = visual.transformer.resblocks[-1]
    dense = ours(name, "proxy")(images, proxy)
    assert dense.feature.shape == (2, 8, 12, 24)
    assert dense.key.shape == (2, 8, 12, 64)
    for i in range(2):
        unit = proxy[i].double().flatten(0, 1)
        unit = unit / unit.norm(dim=1, keepdim=True)
        cosine = unit @ unit.T
        logit = 3.0 * (cosine - 1.2 * cosine.mean())
        logit[logit < 0] = -np.inf
        attention = torch.exp(logit) / torch.exp(logit).sum(1, keepdim=True)
        patches = value[i, :, 1:].transpose(1, 2).unflatten(2, GRID)
        stretched = F.interpolate(patches, (8, 12), mode="bilinear", align_corners=False).flatten(2)
        mixed = torch.einsum("ab,hcb->ahc", attention, stretched).flatten(1)
        mixed = mixed @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
        expected = (visual.ln_post(mixed) @ visual.proj).unflatten(0, (8, 12))
        torch.testing.assert_close(dense.feature[i].double(), expected, atol=1e-4, rtol=1e-4)


def test_proxy_attention_is_defined_for_an_image_without_contrast() -> None:
    attention = proxy_attention(torch.ones(1, 2, 3, 5))
    torch.testing.assert_close(attention, torch.eye(6)[None])


@torch.no_grad()
def test_token_first_blocks_give_the_same(tmp_path: Path, images: Tensor) -> None:
    name = write_clip(tmp_path / "clip", VIT)
    tower = ours(name, "naclip")
    expected = tower(images).feature
    for block in tower.visual.transformer.resblocks:
        block.attn.batch_first = False
    torch.testing.assert_close(tower(images).feature, expected)


@torch.no_grad()
def test_pool_is_the_value_path_of_the_attention_pool(tmp_path: Path, images: Tensor) -> None:
    name = write_clip(tmp_path / "clip", RESNET)
    visual = open_clip.create_model(name).eval().visual
    maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    pool = visual.attnpool
    dense = DenseResNet(build_clip(find_clip(name, "")).visual)(images)
    assert dense.feature.shape == (2, 2, 3, 24)
    for row in range(2):
        for column in range(3):
            value = maps[:, :, row, column] @ pool.v_proj.weight.T + pool.v_proj.bias
            expected = value @ pool.c_proj.weight.T + pool.c_proj.bias
            torch.testing.assert_close(
                dense.feature[:, row, column], expected, atol=1e-4, rtol=1e-4
            )


def test_activation_and_weights_show(tmp_path: Path, images: Tensor) -> None:
    quick = ours(write_clip(tmp_path / "a", VIT), "residual")(images).feature
    gelu = ours(write_clip(tmp_path / "b", VIT, quick_gelu=False), "residual")(images).feature
    assert (F.normalize(quick, dim=-1) - F.normalize(gelu, dim=-1)).abs().max() > 1e-3


@pytest.mark.parametrize("last_block", ["pure", "residual", "naclip", "proxy"])
@torch.no_grad()
def test_readings_hold_in_half_precision(tmp_path: Path, images: Tensor, last_block: Any) -> None:
    tower = ours(write_clip(tmp_path / "clip", VIT), last_block)
    proxy = (
        torch.randn(2, *GRID, 8, generator=torch.Generator().manual_seed(3))
        if last_block == "proxy"
        else None
    )
    whole = tower(images, proxy).feature
    with torch.autocast("cpu", torch.bfloat16):
        half = tower(images, proxy).feature
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(whole, half.float(), dim=-1).min() > 0.99


def test_width_and_stride_come_from_the_model() -> None:
    for name, width, stride in (("RN50", 1024, 32), ("ViT-B-16", 512, 16), ("ViT-L-14", 768, 14)):
        config = open_clip.get_model_config(name)
        assert (config["embed_dim"], stride_of(config)) == (width, stride)


@pytest.mark.parametrize(
    ("model", "last_block", "says"),
    [
        ("ViT-B-16-SigLIP", "auto", "timm_model_name"),
        ("coca_ViT-B-32", "auto", "attentional_pool"),
        ("ViT-M-16-alt", "pool", "pure, residual, naclip, proxy"),
        ("RN50", "residual", "its image tower takes pool"),
        ("RN50", "proxy", "its image tower takes pool"),
        ("roberta-ViT-B-32", "auto", "its text tower"),
    ],
)
def test_towers_that_lack_the_last_block_are_refused_before_any_download(
    model: str, last_block: Any, says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        MaskClip(MaskClipConfig(model, "openai", last_block), Prompts([["car"]]))


@pytest.mark.parametrize("key", ["qk_norm", "scale_heads", "block_type"])
def test_special_attention_is_refused(key: str) -> None:
    vision = {**VIT, key: "custom" if key == "block_type" else True}
    with pytest.raises(BadInput, match="no dense reading; supported are"):
        choose_last_block("x", {"vision_cfg": vision, "text_cfg": {}}, "auto")


def test_auto_takes_the_towers_own() -> None:
    assert choose_last_block("x", {"vision_cfg": VIT, "text_cfg": {}}, "auto") == "naclip"
    assert choose_last_block("x", {"vision_cfg": RESNET, "text_cfg": {}}, "auto") == "pool"


def test_proxy_reads_through_a_timm_vit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    name = write_clip(tmp_path / "clip", VIT)
    config = MaskClipConfig(
        name,
        last_block="proxy",
        proxy="test_vit",
        proxy_weights=str(tmp_path / "vit.safetensors"),
        size_hw=HW,
        templates="plain",
    )
    teacher = MaskClip(config, Prompts([["car"]]))
    pixels = np.random.default_rng(0).integers(0, 256, (1, *HW, 3), dtype=np.uint8)
    features = teacher.features(pixels)
    assert features.shape == (1, *GRID, 24)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(1, *GRID))
