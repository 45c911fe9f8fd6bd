"""Sensor rig of the synthetic car: extrinsics, firing times, ego-motion, and pose errors."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clipsweep.pipeline.demo.ground import FLAT, Hills
from clipsweep.pipeline.demo.parts import Angles, rotation

SPIN_S = 0.05
"""Time of one turn of the LiDAR; a sweep is stamped when its turn is complete."""
SEAM_RAD = np.deg2rad(105.0)
"""Azimuth in the car's frame (x forward, y left) where a turn starts.

It goes clockwise seen from above.
"""

LEVEL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""The car's axes from those of a camera that looks straight ahead."""


@dataclass(frozen=True, eq=False, slots=True)
class RigCamera:
    """Pinhole camera of the rig: extrinsics, intrinsics, image size, firing time.

    `ego_from_cam` [m], `K` [px]; it fires `delay_s` (<= 0) from the sweep's stamp.
    """

    channel: str
    ego_from_cam: Float[np.ndarray, "4 4"]
    K: Float[np.ndarray, "3 3"]
    size_hw: tuple[int, int]
    delay_s: float


@dataclass(frozen=True, eq=False, slots=True)
class RigLidar:
    """Spinning LiDAR of the rig: extrinsics, and ray directions in its own frame.

    `ego_from_lidar` [m]; directions are unit vectors.

    That frame is x right, y forward, z up; columns are in firing order, rings from the lowest.
    `delay_s` (<= 0) is a column's firing time from the sweep's stamp.
    """

    ego_from_lidar: Float[np.ndarray, "4 4"]
    ray: Float[np.ndarray, "columns rings 3"]
    delay_s: Float[np.ndarray, "columns"]


@dataclass(frozen=True, eq=False, slots=True)
class Drive:
    """Ego-motion along the street: varying speed, weaving, small pitch and roll.

    The car stands on the road of the `hills`.
    """

    lane_y_m: float
    speed_mps: float
    surge_mps: float
    weave_m: float
    phase_rad: float
    global_from_street: Float[np.ndarray, "4 4"]
    hills: Hills = FLAT

    def street_from_ego(self, time_s: Angles) -> Float[np.ndarray, "*t 4 4"]:
        """Ego pose in the street frame at times [s].

        The car's frame is x forward, y left, z up; its origin lies on the ground at the rear axle.
        """
        t = np.asarray(time_s, dtype=float)
        turn = 2 * np.pi / 5.0
        x = self.speed_mps * t - self.surge_mps / turn * (
            np.cos(turn * t + self.phase_rad) - np.cos(self.phase_rad)
        )
        y = self.lane_y_m + self.weave_m * np.sin(turn * t + self.phase_rad)
        slope = self.weave_m * turn * np.cos(turn * t + self.phase_rad) / self.speed_mps
        pitch = 0.004 * np.sin(4.3 * t + self.phase_rad)
        roll = 0.003 * np.sin(5.9 * t)
        yaw = np.arctan(slope)
        pitch_there, roll_there = self.hills.tilt_rad(x, yaw)
        turned = rotation(yaw, pitch + pitch_there, roll + roll_there)
        return pose(turned, np.stack([x, y, self.hills.height_m(x)], -1))


@dataclass(frozen=True, eq=False, slots=True)
class FlatPoses:
    """Ego pose errors as in nuScenes: z is 0, pitch and roll drift like those of an IMU.

    The error of each angle is a sum of waves, near a Gaussian process with the covariance
    std^2 exp(-(t / 1 s)^2 / 2): `size_rad` of a wave, `rate_rad_s` and `phase_rad` of (pitch,
    roll).
    """

    size_rad: float
    rate_rad_s: Float[np.ndarray, "2 waves"]
    phase_rad: Float[np.ndarray, "2 waves"]

    def error_rad(self, time_s: float) -> Float[np.ndarray, "2"]:
        """Error of pitch and roll at a time."""
        return self.size_rad * np.sin(self.rate_rad_s * time_s + self.phase_rad).sum(1)

    def written(
        self, global_from_ego: Float[np.ndarray, "4 4"], time_s: float
    ) -> Float[np.ndarray, "4 4"]:
        """Ego pose with errors, as written for the car's true one at a time [s]."""
        turned = global_from_ego[:3, :3]
        (x, y, _) = global_from_ego[:3, 3]
        yaw = np.arctan2(turned[1, 0], turned[0, 0])
        pitch = -np.arcsin(turned[2, 0])
        roll = np.arctan2(turned[2, 1], turned[2, 2])
        error = self.error_rad(time_s)
        return pose(rotation(yaw, pitch + error[0], roll + error[1]), np.array([x, y, 0.0]))


def draw_flat_poses(rng: np.random.Generator) -> FlatPoses:
    """Draws random pose errors: 0.2 degrees of pitch and roll that change over about a second."""
    std_rad = np.deg2rad(0.2)
    memory_s = 1.0
    waves = 12
    rate_rad_s = rng.normal(0.0, 1.0 / memory_s, (2, waves))
    phase_rad = rng.uniform(0, 2 * np.pi, (2, waves))
    return FlatPoses(float(std_rad * np.sqrt(2.0 / waves)), rate_rad_s, phase_rad)


def pose(
    turned: Float[np.ndarray, "*n 3 3"], at_m: Float[np.ndarray, "*n 3"]
) -> Float[np.ndarray, "*n 4 4"]:
    """Rigid transforms (4x4) from rotations and translations, of many times or objects.

    Unlike ``projection.pose.Pose``, which holds one.
    """
    out = np.zeros((*turned.shape[:-2], 4, 4))
    out[..., :3, :3] = turned
    out[..., :3, 3] = at_m
    out[..., 3, 3] = 1.0
    return out


def inverse(transform: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Inverse of a rigid transform."""
    turned = transform[:3, :3].T
    return pose(turned, -turned @ transform[:3, 3])


def cameras(width_px: int, height_px: int) -> tuple[RigCamera, ...]:
    """Six surround-view cameras, in the order in which they fire.

    The one at the back has a wider field of view.
    """
    mounts = (  # channel, yaw [deg], position in the car's frame [m], focal length / image width
        ("CAM_FRONT_LEFT", 55.0, (1.52, 0.49, 1.51), 0.79),
        ("CAM_FRONT", 0.0, (1.70, 0.02, 1.51), 0.79),
        ("CAM_FRONT_RIGHT", -55.0, (1.55, -0.49, 1.50), 0.79),
        ("CAM_BACK_RIGHT", -110.0, (1.02, -0.48, 1.56), 0.79),
        ("CAM_BACK", 180.0, (0.03, 0.00, 1.58), 0.50),
        ("CAM_BACK_LEFT", 110.0, (1.04, 0.48, 1.59), 0.79),
    )
    out = []
    for i, (channel, yaw_deg, at_m, focal) in enumerate(mounts):
        yaw = np.deg2rad(yaw_deg + 0.3 * (-1) ** i)
        turned = rotation(yaw, 0.01, 0.004 * (-1) ** i) @ LEVEL
        f_px = focal * width_px
        K = np.array(
            [[f_px, 0.0, 0.505 * width_px], [0.0, f_px, 0.49 * height_px], [0.0, 0.0, 1.0]]
        )
        share = (SEAM_RAD - yaw) % (2 * np.pi) / (2 * np.pi)
        out.append(
            RigCamera(
                channel,
                pose(turned, np.array(at_m)),
                K,
                (height_px, width_px),
                SPIN_S * (share - 1.0),
            )
        )
    return tuple(out)


def lidar(beams: int, azimuths: int) -> RigLidar:
    """Roof LiDAR: `beams` rings from -30.67 to +10.67 degrees, `azimuths` columns."""
    share = (np.arange(azimuths) + 0.5) / azimuths
    yaw = SEAM_RAD - 2 * np.pi * share  # in the car's frame
    turned = rotation(-np.pi / 2 + 0.006, 0.004, -0.003)
    around, up = np.meshgrid(
        yaw + np.pi / 2 - 0.006, np.deg2rad(np.linspace(-30.67, 10.67, beams)), indexing="ij"
    )
    return RigLidar(
        ego_from_lidar=pose(turned, np.array([0.94, 0.0, 1.84])),
        ray=np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], -1),
        delay_s=SPIN_S * (share - 1.0),
    )


def draw_drive(rng: np.random.Generator, lane_y_m: float) -> Drive:
    """Draws a random ego trajectory in a lane, about a kilometre from its map's origin."""
    heading = rng.uniform(-np.pi, np.pi)
    (x, y) = rng.uniform(700.0, 1500.0, 2)
    return Drive(
        lane_y_m=lane_y_m,
        speed_mps=float(rng.uniform(5.0, 8.0)),
        surge_mps=float(rng.uniform(0.2, 1.0)),
        weave_m=float(rng.uniform(0.1, 0.35)),
        phase_rad=float(rng.uniform(0, 2 * np.pi)),
        global_from_street=pose(rotation(heading), np.array([x, y, 0.0])),
    )
