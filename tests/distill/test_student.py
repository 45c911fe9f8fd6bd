"""The student: shapes, heads, batch norm, determinism, and the same answers by another way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clipsweep.distill.objectives import Moment
from clipsweep.distill.sparse import native_kernels as sparse_kernels
from clipsweep.distill.sparse import norm_kernels
from clipsweep.distill.sparse.norm import Norm
from clipsweep.distill.student.batch import Batch, collate
from clipsweep.distill.student.heads import Embeddings, Head
from clipsweep.distill.student.unet import SIZES, Student
from clipsweep.distill.student.voxels import Sample, voxelize
from clipsweep.distill.training.loop import Learner, TrainConfig, train

FEATURES = ("intensity", "height", "range", "offset")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_batch(*counts: int, trilinear: bool = False, spread: float = 4.0) -> Batch:
    frames = []
    for seed, count in enumerate(counts):
        random = np.random.default_rng(seed)
        xyz = (random.normal(size=(count, 3)) * (spread, spread, spread / 8)).astype(np.float32)
        sample = Sample.of_points(str(seed), xyz, xyz[:, 0] ** 2 % 1, np.zeros(count, np.float32))
        settings = {"voxel_m": 0.4, "features": FEATURES, "reduce": "mean", "sensor_height_m": 1.8}
        frames.append(voxelize(sample, trilinear=trilinear, **settings))
    return collate(frames)


def make_student(size: str = "tiny", **settings) -> Student:
    torch.manual_seed(0)
    return Student(size, 6, 16, **settings)


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes(size: str) -> None:
    student = make_student(size, classes=5)
    batch = make_batch(300, 200)
    out = student(batch, torch.arange(0, 500, 7))
    assert out.semantic.shape == out.local.shape == (72, 16)
    assert out.logits.shape == (72, 5)
    for vectors in (out.semantic, out.local):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(72))
    convolutions = sum(
        type(module).__name__ in ("SubMConv3d", "Down") for module in student.unet.modules()
    )
    assert convolutions == {"tiny": 22, "unet14": 22, "unet34": 52}[size]


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="choose from tiny, unet14, unet34"):
        make_student("huge")


@pytest.mark.parametrize("counts", [(0,), (1,), (2, 1), (0, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_next_to_nothing(counts: tuple[int, ...], training: bool) -> None:
    student = make_student().train(training)
    batch = make_batch(*counts)
    out = student(batch)
    assert out.semantic.isfinite().all()
    (out.semantic.sum() + out.local.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())
    assert len(student.eval().classify(batch, torch.randn(3, 16))) == sum(counts)


def test_only_the_heads_asked_for() -> None:
    student = make_student(classes=4)
    batch = make_batch(100)
    out = student(batch, heads=("local",))
    assert isinstance(out, Embeddings)
    assert out.semantic is None
    assert out.logits is None
    assert out.local is not None


@pytest.mark.parametrize("trilinear", [False, True])
def test_some_points_are_rows_of_all(trilinear: bool) -> None:
    student = make_student().eval()
    batch = make_batch(200, 100, trilinear=trilinear)
    points = torch.tensor([250, 3, 3, 77])
    torch.testing.assert_close(student(batch, points).semantic, student(batch).semantic[points])


def test_trilinear_features_are_weighted_means() -> None:
    student = make_student().eval()
    batch = make_batch(200, trilinear=True)
    voxel = student.voxel_features(batch)
    mean = (voxel[batch.corner] * batch.corner_weight[:, :, None]).sum(1)
    expected = functional.normalize(
        functional.linear(mean, student.local.weight, student.local.bias), dim=1
    )
    torch.testing.assert_close(student(batch).local, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("trilinear", [False, True])
def test_classify_is_the_argmax_of_the_embeddings(trilinear: bool) -> None:
    student = make_student(classes=5).eval()
    batch = make_batch(300, 200, trilinear=trilinear)
    text = functional.normalize(torch.randn(7, 16), dim=1)
    out = student(batch)
    assert torch.equal(
        student.classify(batch, text), (out.semantic @ text.t()).argmax(1).to(torch.uint8)
    )
    assert torch.equal(student.classify(batch), out.logits.argmax(1).to(torch.uint8))
    student.text_head = "local"
    assert torch.equal(
        student.classify(batch, text), (out.local @ text.t()).argmax(1).to(torch.uint8)
    )
    student.classifier = None
    with pytest.raises(ValueError, match="pass text"):
        student.classify(batch)


def test_head_is_a_linear_map() -> None:
    head = Head(20, 33)
    feats = torch.randn(50, 20, requires_grad=True)
    upstream = torch.randn(50, 33)
    leaves = [feats, head.weight, head.bias]
    plain = functional.linear(feats, head.weight, head.bias)
    for ours, theirs in (
        (head(feats), plain),
        (head(feats, unit=True), functional.normalize(plain, dim=1)),
    ):
        torch.testing.assert_close(ours, theirs)
        grads = [
            torch.autograd.grad(out, leaves, upstream, retain_graph=True) for out in (ours, theirs)
        ]
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", [True, False])
def test_cosines_are_those_of_the_embeddings(unit: bool) -> None:
    head = Head(20, 512)
    feats = torch.randn(50, 20, requires_grad=True)
    text = functional.normalize(torch.randn(7, 512), dim=1)
    plain = functional.linear(feats, head.weight, head.bias)
    expected = (functional.normalize(plain, dim=1) if unit else plain) @ text.T
    found = head.cosines(feats, text, unit)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(50, 7)
    leaves = [feats, head.weight, head.bias]
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        atol=1e-5,
        rtol=1e-4,
    )


def test_cosines_of_a_point_without_features_are_finite() -> None:
    head = Head(20, 16)
    torch.nn.init.zeros_(head.bias)
    feats = torch.zeros(3, 20, requires_grad=True)
    found = head.cosines(feats, torch.eye(16)[:4])
    found.sum().backward()
    assert found.isfinite().all()
    assert feats.grad is not None
    assert feats.grad.isfinite().all()


# --- the same from run to run, by any number of threads, with less memory -------------------------


def one_step(student: Student, batch: Batch, **autocast) -> list[Tensor]:
    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, **autocast):
        out = student(batch, torch.arange(0, len(batch.inverse), 3))
    (out.semantic[:, 0].sum() + out.local[:, 1].sum()).backward()
    grads = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    return [out.semantic.detach(), *grads, *(b.clone() for b in student.buffers())]


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("trilinear", [False, True])
def test_same_bits_for_any_number_of_threads(threads: None, enabled: bool, trilinear: bool) -> None:
    batch = make_batch(3000, 2000, trilinear=trilinear, spread=12)
    torch.set_num_threads(1)
    first = one_step(make_student(), batch, enabled=enabled)
    for count in (1, 2):
        torch.set_num_threads(count)
        for mine, other in zip(
            one_step(make_student(), batch, enabled=enabled), first, strict=True
        ):
            assert torch.equal(mine, other)


def test_checkpointing_changes_nothing_but_memory() -> None:
    batch = make_batch(500)
    whole = one_step(make_student(), batch, enabled=False)
    twice = one_step(make_student(checkpointing=True), batch, enabled=False)
    for mine, other in zip(whole, twice, strict=True):
        assert torch.equal(mine, other)


def test_bfloat16_is_near_float32() -> None:
    student = make_student().eval()
    batch = make_batch(1000)
    exact = student(batch).semantic
    with torch.autocast("cpu", torch.bfloat16):
        near = student(batch).semantic
    assert near.dtype == torch.float32
    assert (exact * near).sum(1).min() > 0.999


def test_order_of_frames_does_not_matter() -> None:
    student = make_student().eval()
    one = make_batch(300)
    both = make_batch(300, 200)
    torch.testing.assert_close(
        student(both).semantic[:300], student(one).semantic, atol=1e-5, rtol=1e-4
    )


# --- backends -------------------------------------------------------------------------------------


def embeddings(backend: str, batch: Batch, device: str = "cpu", size: str = "tiny") -> Tensor:
    student = make_student(size, backend=backend).to(device).eval()
    student.load_state_dict(make_student(size).state_dict())
    return student(batch.to(device)).semantic.cpu()


@pytest.mark.filterwarnings("ignore")
def test_state_moves_between_backends(threads: None) -> None:
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    torch.set_num_threads(1)  # with two, spconv 2.3.8 races on the CPU
    batch = make_batch(600, 300)
    torch.testing.assert_close(
        embeddings("spconv", batch), embeddings("native", batch), atol=1e-4, rtol=1e-3
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", ["tiny", "unet34"])
def test_backends_agree_on_cuda(size: str) -> None:
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    batch = make_batch(6000, 3000, spread=12)
    ours = embeddings("native", batch, size=size)
    for backend in ("spconv", "native"):
        theirs = embeddings(backend, batch, "cuda", size)
        assert ((theirs - ours).norm() / ours.norm()).item() < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")
def test_training_in_fp16_on_cuda() -> None:
    """The loss scale may overflow at first; then it is halved, and steps are taken."""
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    student = make_student(backend="spconv").cuda()
    batch = make_batch(6000, spread=12).to("cuda")

    def terms(moved: Batch, _: Moment) -> dict[str, Tensor]:
        return {"first": 1 - student(moved).semantic[:, 0].float().mean()}

    config = TrainConfig(precision="fp16", lr=1e-2)
    losses: list[float] = []
    learner = Learner(student, config)
    train(learner, terms, [batch] * 30, 30, config, lambda step: losses.append(step.loss))
    assert losses[-1] < 0.5 * losses[0]
    assert all(value.isfinite().all() for value in student.state_dict().values())


# --- batch norm -----------------------------------------------------------------------------------


def twin(norm: Norm) -> nn.BatchNorm1d:
    plain = nn.BatchNorm1d(len(norm.batch.weight))
    plain.load_state_dict(norm.batch.state_dict())
    return plain.double().train(norm.training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 600, 1300])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_add", [True, False])
def test_norm(dtype: torch.dtype, rows: int, training: bool, relu: bool, with_add: bool) -> None:
    torch.manual_seed(rows)
    norm = Norm(24).train(training)
    nn.init.normal_(norm.batch.weight)
    nn.init.uniform_(norm.batch.running_var, 0.5, 2)
    plain = twin(norm)
    x, add, upstream = (torch.randn(rows, 24).to(dtype) for _ in range(3))
    x = (3 * x + 5).requires_grad_()
    add.requires_grad_()
    ours = norm(x, relu, add if with_add else None)
    xs = x.detach().double().requires_grad_()
    adds = add.detach().double().requires_grad_()
    theirs = plain(xs) + (adds if with_add else 0)
    theirs = torch.where(ours > 0, theirs, 0.0) if relu else theirs
    tolerance = (
        {"atol": 2e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 2**-7}
    )
    torch.testing.assert_close(ours.double(), theirs, **tolerance)
    leaves = [x, norm.batch.weight, norm.batch.bias, *([add] if with_add else [])]
    others = [xs, plain.weight, plain.bias, *([adds] if with_add else [])]
    grads = torch.autograd.grad(ours, leaves, upstream)
    for mine, other in zip(
        grads, torch.autograd.grad(theirs, others, upstream.double()), strict=True
    ):
        scale = other.abs().max().clamp_min(1)
        torch.testing.assert_close(mine.double() / scale, other / scale, **tolerance)
    torch.testing.assert_close(
        norm.batch.running_mean.double(), plain.running_mean, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        norm.batch.running_var.double(), plain.running_var, atol=1e-5, rtol=1e-4
    )
    assert norm.batch.num_batches_tracked == plain.num_batches_tracked


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_add", [True, False])
def test_norm_kernels_as_plain_python(
    dtype: torch.dtype, with_add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, add, upstream = (torch.randn(20, 3).to(dtype) for _ in range(3))

    def run() -> list[Tensor]:
        norm = Norm(3)
        leaves = [x.clone().requires_grad_(), add.clone().requires_grad_()][: 1 + with_add]
        out = norm(leaves[0], True, leaves[1] if with_add else None)
        return [
            out,
            *torch.autograd.grad(out, [*leaves, norm.batch.weight, norm.batch.bias], upstream),
        ]

    compiled = run()
    for name in ("moments", "apply", "gradient_sums", "gradient"):
        monkeypatch.setattr(norm_kernels, name, getattr(norm_kernels, name).py_func)
    monkeypatch.setattr(norm_kernels, "CHUNK", 6)
    monkeypatch.setattr(norm_kernels, "round_bits", sparse_kernels.round_bits.py_func)
    for mine, other in zip(compiled, run(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=2**-7)


def test_norm_of_one_row_is_its_bias() -> None:
    torch.manual_seed(0)
    norm = Norm(3)
    nn.init.normal_(norm.batch.bias)
    torch.testing.assert_close(norm(torch.randn(1, 3)), norm.batch.bias.detach()[None])
    assert norm(torch.randn(0, 3)).shape == (0, 3)
    assert norm.batch.num_batches_tracked == 0


def test_norm_of_other_types_is_torchs() -> None:
    norm = Norm(3).double()
    x = torch.randn(10, 3, dtype=torch.float64)
    expected = torch.relu(functional.batch_norm(x, None, None, training=True) + 1)
    torch.testing.assert_close(norm(x, relu=True, add=torch.ones_like(x)), expected)
    torch.testing.assert_close(norm(x[:1]), torch.zeros_like(x[:1]))


PARTS = ((700, 1), (0, 30))


def norm_of_parts(rank: int, folder: Path) -> None:
    """One of the processes of the next test."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    for number, sizes in enumerate(PARTS):
        x, upstream = (part[rank] for part in norm_parts(sizes))
        norm = nn.SyncBatchNorm.convert_sync_batchnorm(Norm(4))
        x.requires_grad_()
        out = norm(x, relu=True)
        out.backward(upstream)
        torch.save(
            [out.detach(), x.grad, norm.batch.weight.grad, *norm.buffers()],
            folder / f"{number}-{rank}.pt",
        )
    torch.distributed.destroy_process_group()


def norm_parts(sizes: tuple[int, int]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    random = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(sum(sizes), 4, generator=random) for _ in range(2))
    return (x * 2 + 3).split(sizes), upstream.split(sizes)


def test_moments_of_all_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(norm_of_parts, (tmp_path,), nprocs=2)
    for number, sizes in enumerate(PARTS):
        parts = [torch.load(tmp_path / f"{number}-{rank}.pt") for rank in range(2)]
        x, upstream = (torch.cat(values) for values in norm_parts(sizes))
        norm = Norm(4)
        x.requires_grad_()
        out = norm(x, relu=True)
        out.backward(upstream)
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), out.detach())
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), x.grad)
        # the loop adds or averages them
        torch.testing.assert_close(parts[0][2] + parts[1][2], norm.batch.weight.grad)
        for part in parts:
            torch.testing.assert_close(part[3:], list(norm.buffers()))


def test_batch_keeps_what_it_does_not_move() -> None:
    batch = make_batch(10)
    assert replace(batch, truncated=3).to("cpu").truncated == 3
