"""tools/config.py: what every key means."""

from __future__ import annotations

import pytest

from clipsweep.pipeline.config import Config, describe
from clipsweep.tools import config


def test_a_whole_key_a_group_and_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.run(["fusion.limits"]) == 0
    only = capsys.readouterr().out
    assert only.startswith("fusion.limits=true\n    use what the label space tells")
    assert only.count("\n") == 2
    assert config.run(["fusion"]) == 0
    assert "fusion.window_s=5.0" in capsys.readouterr().out
    assert config.run([]) == 0
    everything = capsys.readouterr().out
    assert all(f"{key}={default}\n" in everything for key, default, _ in describe(Config))


def test_an_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.run(["fusion.limitz"]) == 1
    assert capsys.readouterr().err == "error: no key 'fusion.limitz'; did you mean fusion.limits?\n"


def test_every_key_is_explained() -> None:
    assert [key for key, _, text in describe(Config) if not text.strip()] == []
