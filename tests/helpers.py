"""What several test files share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project's folder; tests run in another one, so that no path is relative by chance."""
LABELS_HW = (64, 128)
"""Size of the small world's label images [px]."""


def settings(root: Path, store: Path) -> list[str]:
    """Arguments that make every tool run on the small world in seconds."""
    return [
        *(
            f"data.root={root}",
            "data.nuscenes.version=v1.0-mini",
            "data.train=mini_train",
            "data.eval=mini_val",
        ),
        *(
            "teacher.kind=precomputed",
            f"teacher.precomputed.size_hw=[{LABELS_HW[0]},{LABELS_HW[1]}]",
        ),
        *("model.size=tiny", "model.voxel_m=0.4", "train.epochs=1", "train.batch_size=2"),
        *(f"store={store}", "run.progress=false", "run.loaders=0"),
    ]


@dataclass(frozen=True)
class Outcome:
    """What a tool did: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def path(self) -> Path:
        assert self.status == 0, self.err
        return Path(self.out.strip())


Run = Callable[..., Outcome]
