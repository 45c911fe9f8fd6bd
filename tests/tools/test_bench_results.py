"""Published rows: nothing is measured twice, and tools/RESULTS.md shows what the rows hold."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipsweep.pipeline.config import load_config
from clipsweep.projection.errors import BadInput
from clipsweep.tools import bench
from clipsweep.tools.benchmarks import experiments, results, tables
from clipsweep.tools.benchmarks.experiments import Line
from clipsweep.tools.benchmarks.results import Job, Results, code_digest, config_digest, read_rows


class Measuring:
    """Jobs that count how often they were measured."""

    def __init__(self) -> None:
        self.measured: list[str] = []

    def jobs(self, *settings: str, stop_at: str = "") -> Iterator[Job]:
        for name in ("one", "two"):

            def make(name: str = name) -> Line:
                if name == stop_at:
                    raise KeyboardInterrupt
                self.measured.append(name)
                return Line(name, [0.5, 0.7], [0.9], {"car": 0.25, "bus": None})

            yield Job(name, ["make_demo=true", "data.root=here/world", *settings], make)


def test_a_stopped_run_goes_on_with_the_rows_that_are_missing(tmp_path: Path) -> None:
    measuring = Measuring()
    with pytest.raises(KeyboardInterrupt):
        list(Results(tmp_path, "made").rows(measuring.jobs(stop_at="two")))
    assert measuring.measured == ["one"]
    rows = list(Results(tmp_path, "made").rows(measuring.jobs()))
    assert measuring.measured == ["one", "two"]
    assert rows == read_rows(tmp_path / "made.jsonl")
    assert [(row["name"], row["data"], row["miou"]) for row in rows] == [
        ("one", "world", [0.5, 0.7]),
        ("two", "world", [0.5, 0.7]),
    ]


def test_other_settings_or_other_code_take_a_rows_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = Measuring()
    list(Results(tmp_path, "made").rows(measuring.jobs()))
    list(Results(tmp_path, "made").rows(measuring.jobs("store=elsewhere", "run.workers=1")))
    assert measuring.measured == ["one", "two"]
    list(Results(tmp_path, "made").rows(measuring.jobs("seed=3")))
    assert measuring.measured == ["one", "two"] * 2
    monkeypatch.setattr(results, "code_digest", lambda: "another")
    list(Results(tmp_path, "made").rows(measuring.jobs("seed=3")))
    assert measuring.measured == ["one", "two"] * 3
    rows = read_rows(tmp_path / "made.jsonl")
    assert [(row["name"], row["code"]) for row in rows] == [("one", "another"), ("two", "another")]


def test_the_same_row_of_two_data_sets_are_two_rows(tmp_path: Path) -> None:
    measuring = Measuring()
    list(Results(tmp_path, "made").rows(measuring.jobs()))
    list(Results(tmp_path, "made").rows(measuring.jobs("data.root=there/town")))
    assert [row["data"] for row in read_rows(tmp_path / "made.jsonl")] == ["world"] * 2 + [
        "town"
    ] * 2


def test_where_data_lie_does_not_name_a_row() -> None:
    demo = "make_demo=true"
    assert config_digest([demo, "data.root=a/world"]) == config_digest([demo, "data.root=b/world"])
    assert config_digest([demo, "data.root=a/world"]) != config_digest([demo, "data.root=a/town"])
    assert config_digest([demo, "seed=1"]) != config_digest([demo, "seed=2"])


def test_other_data_of_the_same_name_name_another_row(tmp_path: Path, small_world: Path) -> None:
    other = tmp_path / small_world.name
    shutil.copytree(small_world / "v1.0-mini", other / "v1.0-mini")
    given = ["data.nuscenes.version=v1.0-mini"]
    ours = config_digest([*given, f"data.root={small_world}"])
    scenes = other / "v1.0-mini" / "scene.json"
    scenes.write_text(scenes.read_text() + " ")
    assert config_digest([*given, f"data.root={other}"]) != ours
    with pytest.raises(BadInput, match="no such folder"):
        config_digest([*given, f"data.root={tmp_path / 'gone' / small_world.name}"])


def test_docstrings_do_not_change_the_digest_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("projection", "distill", "pipeline", "tools/benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "tools/benchmarks/results.py"))
    file = tmp_path / "distill" / "one.py"
    digests = []
    for text in ('def f():\n    """A."""\n    return 1', "def f():\n    return 1  # b"):
        file.write_text(text)
        digests.append(code_digest())
    file.write_text("def f():\n    return 2")
    assert digests[0] == digests[1] != code_digest()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    list(Results(tmp_path, "made").rows(Measuring().jobs()))
    good = path.read_text().splitlines()[0]
    for bad in ('{"name"', '{"name": "one"}', "[]", good.replace("[0.5, 0.7]", "[]"), "\xff"):
        path.write_bytes(f"{good}\n{bad}\n".encode("latin-1"))
        with pytest.raises(BadInput, match="line 2 is no row"):
            read_rows(path)


def test_two_runs_into_one_folder_keep_each_others_rows(tmp_path: Path) -> None:
    first = Results(tmp_path, "made")
    second = Results(tmp_path, "made")
    list(first.rows(Measuring().jobs()))
    list(second.rows(Measuring().jobs("data.root=there/town")))
    assert len(read_rows(tmp_path / "made.jsonl")) == 4


def test_ratios_are_measured_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"unit": "ms", "ours": 1.0, "peer_name": "p", "peer": 2.0, "ratio": 2.0, "bar": None}
    turns: list[int] = []

    def measure(stop: bool = False) -> Iterator[dict]:
        turns.append(1)
        yield {"name": "one", **row}
        if stop:
            raise KeyboardInterrupt
        yield {"name": "two", **row}

    with pytest.raises(KeyboardInterrupt):
        list(Results(tmp_path, "made").ratios(lambda: measure(stop=True)))
    assert not (tmp_path / "made.jsonl").exists()
    for _ in range(2):
        found = list(Results(tmp_path, "made").ratios(measure))
        assert [each["name"] for each in found] == ["one", "two"]
    assert len(turns) == 2
    monkeypatch.setattr(results, "machine", lambda: "another")
    list(Results(tmp_path, "made").ratios(measure))
    assert len(turns) == 3


def test_a_folder_that_cannot_be_is_refused_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is no folder"):
        Results(tmp_path / "file", "made")


def test_the_page_shows_the_published_rows() -> None:
    text = tables.PAGE.read_text()
    assert tables.filled(text) == text, "run: python tools/bench.py tables"


def test_every_published_file_has_a_table_on_the_page() -> None:
    shown = {
        bench for name, (bench, _) in tables.TABLES.items() if f"<!-- table: {name} -->" in _page()
    }
    assert {path.stem for path in tables.PUBLISHED.glob("*.jsonl")} == shown


def _page() -> str:
    return tables.PAGE.read_text()


def test_a_table_is_made_from_rows(tmp_path: Path) -> None:
    list(Results(tmp_path, "demo").rows(Measuring().jobs()))
    text = "before\n<!-- table: demo -->\nold\n<!-- end -->\nafter"
    filled = tables.filled(text, tmp_path)
    assert filled.startswith("before\n<!-- table: demo -->\n")
    assert "| one | 60.0 (50.0-70.0) | 90.0 |  |" in filled
    assert "old" not in filled
    assert tables.filled(filled, tmp_path) == filled
    with pytest.raises(BadInput, match="has no table x"):
        tables.filled(text.replace("table: demo", "table: x"), tmp_path)
    with pytest.raises(BadInput, match="holds no rows"):
        tables.filled(text, tmp_path / "empty")


@pytest.mark.slow
def test_a_smoke_run_measures_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["demo.key_frames=1", "demo.azimuths=240"]
    made = bench.run("fusion", small, load_config([]), bench.Arguments(smoke=True))
    rows = read_rows(made.path)
    assert len(rows) == len(experiments.FUSION) + 3
    assert {row["data"] for row in rows} == {"demo-data-smoke"}


def test_what_a_benchmark_cannot_do_is_said(tmp_path: Path) -> None:
    out = str(tmp_path)
    with pytest.raises(BadInput, match="choose from projection"):
        bench.run("fussion", [], load_config([]), bench.Arguments())
    with pytest.raises(BadInput, match="transfer"):
        bench.run("transfer", [], load_config([]), bench.Arguments(out, smoke=True))
    with pytest.raises(BadInput, match="teacher does not offer"):
        bench.run("teacher", [], load_config([]), bench.Arguments(out, smoke=True))
    with pytest.raises(BadInput, match="recipes of its own"):
        bench.run("transfer", ["demo"], load_config([]), bench.Arguments(out))
    with pytest.raises(BadInput, match="every frame"):
        bench.run("fusion", [], load_config(["on_bad=skip"]), bench.Arguments(out))
