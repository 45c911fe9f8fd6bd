"""tools/demo.py: the same world in the same place as the recipes that the other tools are given."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.yaml_files import CONFIGS
from clipsweep.tools import demo, submit
from tests.helpers import Run

RECIPES = [str(path) for path in sorted(CONFIGS.glob("demo*.yaml"))]
SMALL = [
    "demo.train_scenes=1",
    "demo.val_scenes=0",
    "demo.key_frames=1",
    "demo.width_px=64",
    "demo.height_px=36",
    "demo.azimuths=64",
]


def test_without_a_recipe_it_takes_that_of_the_demo() -> None:
    assert load_config(demo.with_recipe([])) == load_config(["demo"])
    kitti = ["seed=1", "configs/demo_kitti.yaml"]
    assert demo.with_recipe(kitti) == kitti


def test_it_writes_where_the_recipe_says(tmp_path: Path, tool: Run) -> None:
    made = tool("demo", *SMALL, f"data.root={tmp_path / 'data'}").path
    assert made == tmp_path / "data"
    assert (made / "v1.0-mini/scene.json").is_file()


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_folder_is_neither_kept_nor_packed_nor_sent(recipe: str) -> None:
    folder = load_config([recipe]).data.root
    ignored = [
        (submit.ROOT / name).read_text().splitlines() for name in (".gitignore", ".dockerignore")
    ]
    for lines in [*ignored, submit._LEFT_OUT]:
        assert any(fnmatch(folder, line.strip("/")) for line in lines)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(
            (name, key)
            for name in ("index", "label", "pretrain")
            for key in ("make_demo=", "demo.seed=")
        ),
        ("view", "run."),
    ],
)
def test_every_key_that_a_tool_reads_is_in_its_help(tool: Run, name: str, key: str) -> None:
    assert f"\n  {key}" in tool(name, "--help").out


def test_a_demo_that_its_own_run_would_not_find_is_refused(tmp_path: Path, tool: Run) -> None:
    root = tmp_path / "world"
    given = ["demo", "demo.train_scenes=1", "demo.val_scenes=1", f"data.root={root}"]
    refused = tool("pretrain", *given, f"store={tmp_path / 'store'}")
    assert refused.status == 1
    assert "set data.nuscenes.version=v1.0-mini data.train=mini_train" in refused.err
    assert not root.exists()
