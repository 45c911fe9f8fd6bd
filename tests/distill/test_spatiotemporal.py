"""Spatio-temporal consistency against literal float64 loops, voxel by voxel."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig, spatiotemporal

M = 60
D = 6
VOXELS = 9


@pytest.fixture
def case() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    vectors = {
        name: torch.randn(M, D, generator=g).double() for name in ("local", "semantic", "pixel")
    }
    text = F.normalize(torch.randn(4, D, generator=g).double(), dim=1)[
        torch.randint(0, 4, (M,), generator=g)
    ]
    # voxel 0 has one pair, voxel 1 more than eight
    voxel = torch.cat(
        [
            torch.tensor([0]),
            torch.ones(12, dtype=torch.int64),
            torch.randint(2, VOXELS, (M - 13,), generator=g),
        ]
    )
    return {
        **{name: F.normalize(value, dim=1) for name, value in vectors.items()},
        "text": text,
        "voxel": voxel,
    }


def inner(a: list, b: list) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def weighted(parts: list[tuple[float, list]]) -> list:
    return [sum(weight * vector[k] for weight, vector in parts) for k in range(D)]


def members(case: dict) -> list[list[int]]:
    voxel = case["voxel"].tolist()
    return [[i for i in range(M) if voxel[i] == n] for n in range(VOXELS)]


def loop(case: dict, config: SpatioTemporalConfig) -> float:
    """Equations of the docstring, one voxel after the other."""
    local, semantic, pixel, text = (
        case[name].tolist() for name in ("local", "semantic", "pixel", "text")
    )
    paper = config.kind == "paper"
    temperature = 1.0 if paper else config.temperature
    sums = []
    pairs = 0
    for own in members(case):
        alone = len(own) == 1 and not paper
        a = [math.exp(inner(pixel[i], text[i]) / temperature) for i in own]
        query = local if paper else semantic
        b = [0.0 if alone else math.exp(inner(query[i], text[i]) / temperature) for i in own]
        z = sum(a) + sum(b)
        fused = weighted(
            [
                *((w / z, pixel[i]) for w, i in zip(a, own, strict=True)),
                *((w / z, local[i]) for w, i in zip(b, own, strict=True)),
            ]
        )
        if paper:
            sums.append(sum(1 - 1 / (1 + math.exp(-inner(local[i], fused))) for i in own))
        else:
            length = math.sqrt(inner(fused, fused))
            cosines = [inner(local[i], fused) / length for i in own]
            sums.append(
                sum(1 - value for value in cosines) / (len(own) if config.mean == "cubes" else 1)
            )
        pairs += len(own)
    return sum(sums) / (pairs if not paper and config.mean == "pairs" else VOXELS)


def loop_reference(case: dict) -> float:
    """The published code with its dense packing of 8 slots, zeros where a voxel has fewer."""
    local = case["local"].tolist()
    text = case["text"].tolist()
    total = 0.0
    for own in members(case):
        slots = [local[i] for i in own[:8]] + [[0.0] * D] * (8 - len(own[:8]))
        scores = [inner(slot, text[own[0]]) for slot in slots]
        # a sparse softmax skips zeros
        weights = [math.exp(score) if score != 0 else 0.0 for score in scores]
        fused = weighted([(w / sum(weights), slot) for w, slot in zip(weights, slots, strict=True)])
        total += sum(1 - 1 / (1 + math.exp(-inner(slot, fused))) for slot in slots)
    return total / (8 * VOXELS)


@pytest.mark.parametrize(
    "config",
    [
        SpatioTemporalConfig(),
        SpatioTemporalConfig(mean="cubes", temperature=0.3),
        SpatioTemporalConfig(kind="paper"),
    ],
    ids=["ours", "ours over cubes", "paper"],
)
def test_equals_the_loop(case: dict, config: SpatioTemporalConfig) -> None:
    assert spatiotemporal(**case, config=config).item() == pytest.approx(
        loop(case, config), rel=1e-5
    )


def test_reference_equals_the_published_packing(case: dict) -> None:
    config = SpatioTemporalConfig(kind="reference")
    scaled = {**case, "local": 2.0 * case["local"]}
    assert spatiotemporal(**scaled, config=config).item() == pytest.approx(
        loop_reference(scaled), rel=1e-6
    )


def test_ours_sends_gradients_to_the_local_head_alone(case: dict) -> None:
    leaves = {
        name: value.clone().requires_grad_() for name, value in case.items() if name != "voxel"
    }
    spatiotemporal(**leaves, voxel=case["voxel"], config=SpatioTemporalConfig()).backward()
    assert leaves["local"].grad is not None
    assert leaves["local"].grad.abs().sum() > 0
    assert leaves["semantic"].grad is None


def test_a_voxel_with_one_pair_is_compared_with_its_pixel(case: dict) -> None:
    one = {name: value[:1] for name, value in case.items()}
    wanted = 1 - inner(one["local"][0].tolist(), one["pixel"][0].tolist())
    assert spatiotemporal(**one, config=SpatioTemporalConfig()).item() == pytest.approx(
        wanted, rel=1e-5
    )


@pytest.mark.parametrize("kind", ["ours", "paper", "reference"])
def test_without_pairs_it_is_zero_with_a_gradient(case: dict, kind: str) -> None:
    empty = {name: value[:0] for name, value in case.items()}
    empty["local"] = empty["local"].requires_grad_()
    loss = spatiotemporal(**empty, config=replace(SpatioTemporalConfig(), kind=kind))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("kind", ["ours", "paper", "reference"])
def test_parts_add_up(case: dict, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SpatioTemporalConfig(kind=kind)

    def value_and_slope() -> tuple[torch.Tensor, torch.Tensor]:
        local = case["local"].clone().requires_grad_()
        value = spatiotemporal(**{**case, "local": local}, config=config)
        value.backward()
        return value.detach(), local.grad

    whole = value_and_slope()
    module = sys.modules[spatiotemporal.__module__]
    monkeypatch.setattr(module, "_PART", 7)
    assert len(list(module._parts(case["voxel"]))) > 3
    for parts, one in zip(value_and_slope(), whole, strict=True):
        torch.testing.assert_close(parts, one, atol=1e-6, rtol=1e-5)
    step = 1e-3 * torch.randn(M, D, generator=torch.Generator().manual_seed(1)).double()
    if kind != "ours":  # whose gradient is stopped where finite differences are not
        ahead, behind = (
            spatiotemporal(**{**case, "local": case["local"] + s}, config=config)
            for s in (step, -step)
        )
        torch.testing.assert_close(
            (ahead - behind) / 2, (whole[1] * step).sum().float(), rtol=1e-2, atol=1e-6
        )
