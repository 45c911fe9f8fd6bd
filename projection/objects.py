"""Object-level labels: one class for all points of a vehicle, by majority."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32

from clipsweep.projection.clusters import connect_cells
from clipsweep.projection.grid import cell_keys
from clipsweep.projection.votes import FusedLabels

_CELL_M = 0.3  # points closer than about this are of one object
_LONGEST_M = 20.0  # what is longer is a row of vehicles, or one that drove on between key frames
_LABELS = 256


def unify_vehicles(
    xyz: Float32[np.ndarray, "n 3"], fused: FusedLabels, vehicle: Bool[np.ndarray, " c"]
) -> FusedLabels:
    """Gives each vehicle the class that most of its points have.

    A vehicle is a cluster of points with labels of any vehicle: parts of a bus that are called
    truck touch the rest of it. Clusters of more than 20 m are left as they are. A point that gets
    another class has the mean score of its vehicle's points of that class, and their share as its
    agreement.

    Args:
        xyz: points of several key frames in one frame [m].
        fused: their fused labels.
        vehicle: which classes are vehicles.
    """
    of_vehicle = np.zeros(_LABELS, np.bool_)
    of_vehicle[: len(vehicle)] = vehicle
    rows = np.flatnonzero(of_vehicle[fused.label])
    if not len(rows):
        return fused
    own = fused.label[rows]
    _, cluster = np.unique(connect_cells(cell_keys(xyz[rows], _CELL_M)), return_inverse=True)
    place = cluster * _LABELS + own
    size = (int(cluster.max()) + 1, _LABELS)
    points = np.bincount(place, minlength=size[0] * size[1]).reshape(size)
    scores = np.bincount(place, fused.score[rows], size[0] * size[1]).reshape(size)
    most = points.argmax(axis=1)
    every = np.arange(len(most))
    share = points[every, most] / points.sum(axis=1)
    mean_score = scores[every, most] / points[every, most]

    changed = (own != most[cluster]) & (_lengths(xyz[rows], cluster)[cluster] <= _LONGEST_M)
    to = cluster[changed]
    label = fused.label.copy()
    score = fused.score.copy()
    agreement = fused.agreement.copy()
    label[rows[changed]] = most[to]
    score[rows[changed]] = mean_score[to]
    agreement[rows[changed]] = share[to]
    return FusedLabels(label, score, agreement, fused.support)


def _lengths(xyz: Float32[np.ndarray, "n 3"], cluster: np.ndarray) -> Float32[np.ndarray, " v"]:
    """Length of each cluster on the ground: diagonal of the box around it [m]."""
    low = np.full((int(cluster.max()) + 1, 2), np.inf, np.float32)
    high = -low
    np.minimum.at(low, cluster, xyz[:, :2])
    np.maximum.at(high, cluster, xyz[:, :2])
    return np.hypot(*(high - low).T)
