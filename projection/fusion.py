"""Turns pixel votes of cameras, sweeps and neighbouring key frames into one label per point, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8, UInt64

from projection import kernels
from projection.cameras import look_up, project, visible
from projection.frames import NONE, Frame, PixelLabels, PointLabels
from projection.grid import cell_keys, index_cells
from projection.sweeps import merge

_ONE = 1 << 16  # fixed point: integer sums do not depend on the order of the votes


@dataclass(frozen=True, eq=False, slots=True)
class Votes:
    """What the pixels of one key frame say, as weighted votes in global cells.

    Attributes:
        cell: packed key of the global cell that the voting point lies in.
        label: class voted for; never 255.
        weight: how much the vote counts, > 0.
        score: the teacher's confidence, 0..1.
    """

    cell: UInt64[np.ndarray, " m"]
    label: UInt8[np.ndarray, " m"]
    weight: Float32[np.ndarray, " m"]
    score: Float32[np.ndarray, " m"]


@dataclass(frozen=True, eq=False, slots=True)
class Opinions:
    """The outcome of a vote, for each cell asked about.

    Attributes:
        label: class with the most weight, 255 where fewer than the minimum of votes support it.
        score: mean confidence of the votes for it.
        agreement: its share of the weight of all votes in the cell.
        support: number of votes for it.
    """

    label: UInt8[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    agreement: Float32[np.ndarray, " n"]
    support: Int32[np.ndarray, " n"]


@dataclass(frozen=True)
class FusionConfig:
    """How pixel labels become point labels.

    Attributes:
        min_depth_m: points nearer to a camera than this are not looked up [m]
        occlusion_px: side of a z-buffer cell [px]
        occlusion_relative: depth behind the nearest point of its cell that a point may have, as a share of that depth
        occlusion_m: and this much more [m]
        cell_m: side of the global cells that votes are gathered in [m]
        min_support: votes for the winner that an opinion needs
        min_agreement: share of a cell's vote weight that an opinion needs, 0..1
    """

    min_depth_m: float = 1.0
    occlusion_px: float = 16.0
    occlusion_relative: float = 0.1
    occlusion_m: float = 0.5
    cell_m: float = 0.2
    min_support: int = 1
    min_agreement: float = 0.0


def _fixed(values: Float32[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    return np.rint(values * _ONE).astype(np.int64)


def fuse(
    votes: Sequence[Votes],
    cell: UInt64[np.ndarray, " n"],
    classes: int,
    min_support: int = 1,
    min_agreement: float = 0.0,
) -> Opinions:
    """Lets all votes in a cell decide on the cell's label (method.md section 5, "consolidated point labels").

    Args:
        votes: of as many key frames, cameras and sweeps as shall be heard, cells cut in one global grid.
        cell: the cells to be labelled, one for each point.
        classes: number of classes; every vote's label is below it.
        min_support: votes for the winner that an opinion needs.
        min_agreement: share of the weight that an opinion needs.
    """
    index, of_vote = index_cells(np.concatenate([v.cell for v in votes]) if votes else np.empty(0, np.uint64))
    label = np.full(len(cell), 255, np.uint8)
    score, agreement = np.zeros(len(cell), np.float32), np.zeros(len(cell), np.float32)
    support = np.zeros(len(cell), np.int32)
    if not len(index):
        return Opinions(label, score, agreement, support)

    voted = np.concatenate([v.label for v in votes])
    sums = np.zeros((len(index), classes), np.int64)
    kernels.tally(of_vote, voted, _fixed(np.concatenate([v.weight for v in votes])), sums)
    winner, share = np.empty(len(index), np.uint8), np.empty(len(index), np.float32)
    kernels.winners(sums, winner, share)
    backers, score_sum = np.zeros(len(index), np.int32), np.zeros(len(index), np.int64)
    kernels.back(of_vote, voted, _fixed(np.concatenate([v.score for v in votes])), winner, backers, score_sum)

    found = index.find(cell)
    heard = found >= 0
    at = found[heard]
    support[heard], agreement[heard] = backers[at], share[at]
    score[heard] = score_sum[at] / (np.maximum(backers[at], 1) * np.float32(_ONE))
    sure = heard & (support >= min_support) & (agreement >= min_agreement)
    label[sure] = winner[found[sure]]
    score[~sure], agreement[~sure] = 0, 0
    return Opinions(label, score, agreement, support)


def label_scene(
    frames: Sequence[Frame],
    read_pixels: Callable[[Frame], Sequence[PixelLabels]],
    config: FusionConfig,
    classes: int,
    columns: int,
    ego_box_m: float = 0.0,
    bad_share: float = 0.0,
) -> Iterator[tuple[Frame, PointLabels]]:
    """Labels every raw row of each key sweep of a scene by the votes of all its key frames.

    Args:
        frames: all key frames of one scene, in order of time.
        read_pixels: gives a frame's pixel labels, one for each of its cameras.
        config: how to fuse.
        classes: number of classes.
        columns, ego_box_m, bad_share: see ``projection.sweeps.merge``; rows in the car's own box get no opinion.

    Raises:
        BadInput: a sweep cannot be used.
    """
    votes, rows, cells = [], [], []
    for frame in frames:
        pose = frame.sweeps[0].global_from_lidar
        cloud = merge(frame, 1, columns, 1.0, ego_box_m, bad_share)
        cell = cell_keys(cloud.xyz, config.cell_m, pose)
        pairs = project(cloud.xyz, pose, frame.cameras, config.min_depth_m)
        seen = visible(
            pairs, frame.cameras, config.occlusion_px, config.occlusion_relative, config.occlusion_m
        )
        pairs = pairs[seen]
        label, score = look_up(pairs, frame.cameras, read_pixels(frame))
        range_m = np.linalg.norm(cloud.xyz[pairs.point], axis=1)
        named = label != NONE
        weight = (score / np.maximum(range_m, 1.0)).astype(np.float32)
        votes.append(Votes(cell[pairs.point][named], label[named], weight[named], score[named]))
        rows.append(cloud.source)
        cells.append(cell)
    for frame, row, cell in zip(frames, rows, cells, strict=True):
        opinions = fuse(votes, cell, classes, config.min_support, config.min_agreement)
        n = frame.sweeps[0].points.bytes // (4 * columns)
        label = np.full(n, NONE, np.uint8)
        score, agreement = np.zeros(n, np.float16), np.zeros(n, np.float16)
        label[row], score[row], agreement[row] = opinions.label, opinions.score, opinions.agreement
        yield frame, PointLabels(label, score, agreement)
