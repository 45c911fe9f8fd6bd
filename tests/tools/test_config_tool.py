"""tools/config.py: what every key and every argument means."""

from __future__ import annotations

import importlib

import pytest

from clipsweep.pipeline.cli import is_below
from clipsweep.pipeline.config import describe
from clipsweep.pipeline.yaml_files import CONFIGS
from clipsweep.tools import arguments_of, config, tool_names
from tests.helpers import Run

OWN = {tool: arguments_of(tool) for tool in tool_names()}
ARGUMENTS = [(tool, setting) for tool, own in OWN.items() if own for setting in describe(own)]


def test_a_whole_key_a_group_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.run(["fusion.fine_weight"]) == 0
    only = capsys.readouterr().out
    text = "weight of the votes in the fine cell; the coarse cell has "
    text += "1 - fine_weight - cluster_weight"
    assert only == f"fusion.fine_weight=0.15\n    {text}\n    a number from 0 to 1\n"
    assert config.run(["fusion"]) == 0
    assert "fusion.window_s=5.0" in capsys.readouterr().out
    assert config.run([]) == 0
    everything = capsys.readouterr().out
    assert all(f"{setting.name}={setting.default}\n" in everything for setting in describe())


def test_choices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.run(["on_bad", "data.kind"]) == 0
    printed = capsys.readouterr().out
    assert "\n    fail or skip\n" in printed
    assert "\n    nuscenes, semantickitti or folder\n" in printed


def test_an_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.run(["fusion.limitz", "studnet"]) == 1
    unknown = capsys.readouterr().err
    assert "error: no key 'fusion.limitz'; did you mean fusion.limits?\n" in unknown
    assert "error: no key 'studnet'; did you mean student?\n" in unknown


def test_every_key_is_explained() -> None:
    assert [setting.name for setting in describe() if not setting.text.strip()] == []
    assert [(tool, s.name) for tool, s in ARGUMENTS if not s.text.strip()] == []


def test_every_argument_is_explained(capsys: pytest.CaptureFixture[str], tool: Run) -> None:
    assert len(ARGUMENTS) >= 12
    for name, setting in ARGUMENTS:
        assert config.run([setting.name]) == 0
        printed = capsys.readouterr().out
        assert f"\n    {setting.text}\n" in printed
        assert f"argument of {name}\n" in printed
        lines = tool(name, "--help").out.splitlines()
        assert any(f"  {setting.name}={setting.default}" in line for line in lines)


def test_every_key_that_a_tool_reads_is_explained_by_its_help(tool: Run) -> None:
    for name in (tool_name for tool_name in tool_names() if tool_name not in ("config", "submit")):
        keys = importlib.import_module(f"clipsweep.tools.{name}").KEYS
        printed = tool(name, "--help").out
        for setting in describe():
            if any(is_below(setting.name, key) for key in keys):
                assert f"  {setting.name}={setting.default}" in printed, (name, setting.name)
                assert setting.text in printed


def test_the_readme_has_a_row_for_every_group_and_key_of_the_top() -> None:
    text = (CONFIGS / "README.md").read_text()
    head = text[text.index("| keys |") : text.index("## Recipes")]
    rows = "".join(line.split("|")[1] for line in head.splitlines() if line.startswith("| `"))
    for setting in describe():
        group = setting.name.split(".")[0]
        assert f"`{setting.name}`" in rows or f"`{group}." in rows, setting.name


def test_the_readmes_tables_of_keys_are_those_of_the_code() -> None:
    page = (CONFIGS / "README.md").read_text()
    shown = page.partition("<!-- keys -->\n")[2]
    assert shown == config.tables().lstrip("\n"), "run: python tools/config.py --table"
