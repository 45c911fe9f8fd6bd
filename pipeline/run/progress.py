"""Progress bars: rate and remaining time of a stage, and its place among those of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm


@dataclass
class _Plan:
    """Stages of a run, in order, and how many of them have begun or are past."""

    stages: tuple[str, ...] = ()
    begun: int = 0


_plan = _Plan()


@contextmanager
def planned(stages: Sequence[str]) -> Iterator[None]:
    """Tells the bars within of which stages the run consists; an outer plan stays in force."""
    global _plan
    before = _plan
    if not before.stages:
        _plan = _Plan(tuple(stages))
    try:
        yield
    finally:
        _plan = before


def progress_bar(stage: str, total: int, done: int, unit: str, show: bool) -> tqdm:
    """Progress bar of a stage on stderr, with its place in the plan: ``3/4 points``.

    Args:
        stage: its name.
        total: steps or shards in all.
        done: those that are there already.
        unit: of the rate.
        show: draw it.
    """
    return tqdm(total=total, initial=done, desc=_titled(stage), unit=unit, disable=not show)


def _titled(stage: str) -> str:
    """Name of a stage with its place among those that are still to come."""
    if stage not in _plan.stages[_plan.begun :]:
        return stage
    place = _plan.stages.index(stage, _plan.begun)
    _plan.begun = place + 1
    return f"{place + 1}/{len(_plan.stages)} {stage}"
