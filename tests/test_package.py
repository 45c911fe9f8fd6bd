"""The package as its users get it.

Cheap to import, whole in a wheel, one command for every tool.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import clipsweep
from clipsweep.__main__ import TOOLS
from clipsweep.pipeline.config import load_config, recipe
from clipsweep.pipeline.yaml_files import CONFIGS
from clipsweep.projection.errors import BadInput
from tests.helpers import ROOT

HEAVY = {"torch", "numba", "ray", "matplotlib", "open_clip", "nuscenes"}


def loaded_by(code: str) -> set[str]:
    """Names of the heavy packages that a new interpreter has loaded after running some code."""
    watch = f"import sys\n{code}\nprint(*({HEAVY!r} & sys.modules.keys()), file=sys.stderr)"
    command = [sys.executable, "-c", watch]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_the_package_is_cheap() -> None:
    assert loaded_by("import clipsweep") == set()
    assert loaded_by("import clipsweep; clipsweep.Pose") <= {"numba"}


def test_help_is_cheap_and_lists_every_tool() -> None:
    run = "from clipsweep.__main__ import main\nsys.argv = ['clipsweep', '--help']\nmain()"
    assert loaded_by(run) == set()
    done = subprocess.run(
        [sys.executable, "-m", "clipsweep"], capture_output=True, text=True, check=True
    )
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"__init__"}
    assert {tool for group in TOOLS.values() for tool in group} == tools
    for tool in tools:
        purpose = ast.get_docstring(ast.parse((ROOT / f"tools/{tool}.py").read_text()))
        assert purpose is not None
        assert purpose.split("\n")[0] in done.stdout


def test_every_public_name_can_be_had() -> None:
    for name in clipsweep.__all__:
        assert getattr(clipsweep, name).__module__.startswith("clipsweep.")
    assert not hasattr(clipsweep, "nonsense")


def test_a_tool_run_by_name_is_the_same_tool() -> None:
    by_name = [sys.executable, "-m", "clipsweep", "index", "--help"]
    by_path = [sys.executable, f"{ROOT}/tools/index.py", "--help"]
    one, other = (
        subprocess.run(c, capture_output=True, text=True, check=True) for c in (by_name, by_path)
    )
    assert one.stdout == other.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "clipsweep", "lable"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr == "error: 'lable' is no tool; did you mean label?\n"


def test_recipes_come_by_name_or_by_path() -> None:
    by_name = load_config(["data/nuscenes", "pretrain/quick"])
    by_path = load_config(
        [str(CONFIGS / "data/nuscenes.yaml"), str(CONFIGS / "pretrain/quick.yaml")]
    )
    assert by_name == by_path
    with pytest.raises(BadInput, match=r"dmeo: is no file and no recipe of the package; see demo"):
        recipe("dmeo")


@pytest.mark.parametrize("name", ["projection", "distill", "pipeline", "tools"])
def test_no_folder_can_be_imported_as_a_second_module(name: str) -> None:
    """Its classes would be other classes than the package's."""
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"clipsweep"}
    for folder in ("projection", "distill", "pipeline", "tools"):
        files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")]
        code = {f"clipsweep/{path}" for path in files if path.parts[1] != "examples"}
        assert code <= names
    recipes = {f"clipsweep/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    teacher = {
        f"clipsweep/{path.relative_to(ROOT)}" for path in (ROOT / "pipeline/demo/teacher").iterdir()
    }
    assert recipes | teacher | {"clipsweep/py.typed"} <= names
