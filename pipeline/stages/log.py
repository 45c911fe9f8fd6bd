"""Training log: progress bar, metrics.jsonl and TensorBoard scalars."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from clipsweep.distill.training.loop import Step
from clipsweep.pipeline.run.progress import progress_bar


def had_targets(folder: Path) -> bool:
    """Whether any logged training step had a point with a target."""
    return any(
        json.loads(line)["points"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    )


class TrainingLog:
    """Training log: writes each step beside the student.

    On resuming, what was logged after the checkpoint is forgotten.

    Args:
        folder: the student's.
        done: steps that the checkpoint holds, those left out included.
        steps: steps in all.
        progress: draw a progress bar on stderr.
    """

    def __init__(self, folder: Path, done: int, steps: int, progress: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= done]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done)
        self._bar = progress_bar("train", steps, done, "step", progress)

    def __call__(self, step: Step) -> None:
        """Logs a training step."""
        self._file.write(json.dumps(asdict(step)) + "\n")
        self._file.flush()
        for name, value in {"loss": step.loss, "lr": step.lr, **step.terms}.items():
            self._board.add_scalar(f"train/{name}", value, step.step)
        self._bar.set_postfix(loss=f"{step.loss:.3f}", points=step.points)
        self._bar.update(step.step - self._bar.n)

    def close(self) -> None:
        """Flushes and closes the training log."""
        self._file.close()
        self._board.close()
        self._bar.close()
