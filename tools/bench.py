"""Measures what the design promises, as ratios to peers in one run, and writes bench.json.

usage: python tools/bench.py projection|sparse|teacher [out=bench.json]

projection and sparse need the sample data (CLIPSWEEP_DATA, default ../shared/data).
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.bench import projection, samples, sparse, teacher
from pipeline.bench.row import Row
from pipeline.command import Made, main, say
from pipeline.config import Config
from projection.errors import BadInput
from projection.sweeps import merge

KEYS = ("out",)


def run(name: str, config: Config) -> Made:
    if name not in BENCHES:
        raise BadInput(name, "is no benchmark", f"choose from {', '.join(BENCHES)}")
    say(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    rows: list[Row] = []
    for row in BENCHES[name]():
        bar = "" if row["bar"] is None else f", bar {row['bar']:g}"
        peer = f"{row['peer_name']} {row['peer']:.4g}"
        say(f"{row['name']}: {row['ours']:.4g} {row['unit']}, {peer}: ratio {row['ratio']:.3g}{bar}")
        rows.append(row)
    out = Path(config.out or "bench.json")
    out.write_text(json.dumps(rows, indent=1))
    return Made(out)


def _data() -> Path:
    folder = Path(os.environ.get("CLIPSWEEP_DATA", "../shared/data"))
    if not folder.is_dir():
        raise BadInput(folder, "holds no sample data", "set CLIPSWEEP_DATA")
    return folder


def _sparse() -> Iterable[Row]:
    """One, four and ten merged sweeps of a real nuScenes frame."""
    frames = samples.frames(samples.open_devkit(_data() / "nuscenes-0523"))
    frame = max(frames, key=lambda frame: len(frame.sweeps))
    clouds = [merge(frame, sweeps, 5, 255.0, 1.0) for sweeps in (1, 4, 10)]
    return sparse.rows([np.column_stack([c.xyz, c.intensity, c.age_s]).astype(np.float32) for c in clouds])


BENCHES: dict[str, Callable[[], Iterable[Row]]] = {
    "projection": lambda: projection.rows(_data()),
    "sparse": _sparse,
    "teacher": teacher.rows,
}

if __name__ == "__main__":
    name = next((argument for argument in sys.argv[1:] if "=" not in argument and not argument.startswith("-")), "")
    rest = [argument for argument in sys.argv[1:] if argument != name]
    sys.exit(main(__doc__, KEYS, partial(run, name), rest))
