"""The images and cluster files agree with each other, with setup.cfg and with Ray's and
KubeRay's schemas.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("cpu", "gpu")


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def pins() -> dict[str, str]:
    lines = (ROOT / "docker/constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def tag(name: str) -> str:
    return f"clipsweep-{name}:{setup()['metadata']['version']}"


def instructions(name: str) -> list[str]:
    text = (ROOT / f"docker/{name}.Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker" / name).read_text())


def test_every_requirement_is_pinned_to_a_version_that_setup_allows() -> None:
    wanted = setup()["options"]["install_requires"] + setup()["options.extras_require"]["ray"]
    for line in wanted.strip().splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
            assert requirement.specifier.contains(pins()[requirement.name]), requirement


def test_the_test_extra_brings_all_others() -> None:
    assert "clipsweep[logs,ray,view]" in setup()["options.extras_require"]["test"].split()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_pinned_and_needs_no_root(name: str) -> None:
    lines = instructions(name)
    text = "\n".join(lines)
    assert re.fullmatch(r"FROM python:3\.11\.\d+-slim-\w+", lines[0])
    assert "latest" not in text
    assert not re.search(r"(curl|wget)[^&]*\|\s*(ba|z)?sh", text)
    assert not re.search(r"(?i)password|passwd|secret|auth_token", text)
    assert not [line for line in lines if line.startswith("ADD")]
    assert [line for line in lines if line.startswith("USER")][-1] == lines[-1] == "USER ray"
    for command in re.findall(r"pip install [^&]*", text):
        assert "-c docker/constraints.txt" in command
    for command in re.findall(r"apt-get install [^&]*", text):
        assert "--no-install-recommends" in command
    assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= set(text.split())
    assert f"-t {tag(name)} ." in (ROOT / f"docker/{name}.Dockerfile").read_text()


def test_images_have_the_same_python() -> None:
    """Ray refuses a node with another one."""
    assert instructions("cpu")[0] == instructions("gpu")[0]


def test_the_cluster_file_is_what_ray_takes() -> None:
    cluster = load("cluster.yaml")
    validate_config(prepare_config(cluster))
    assert (cluster["docker"]["head_image"], cluster["docker"]["worker_image"]) == (
        tag("cpu"),
        tag("gpu"),
    )
    (head,) = [command for command in cluster["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    mounts = [
        option for option in cluster["docker"]["run_options"] if option.startswith("--volume")
    ]
    assert mounts == ["--volume /mnt/clipsweep:/mnt/clipsweep"]


JOB = {
    "submissionMode",
    "entrypoint",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
}
CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}


def test_the_rayjob_has_the_fields_of_its_kind() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    assert spec.keys() == {*JOB, "rayClusterSpec"}
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == CLUSTER
    assert cluster["rayVersion"] == pins()["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    (worker,) = cluster["workerGroupSpecs"]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    assert f"run.workers={worker['replicas']}" in spec["entrypoint"]
    for group, image in ((cluster["headGroupSpec"], "cpu"), (worker, "gpu")):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert container["image"] == tag(image)
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }


def test_the_rayjob_runs_a_tool_that_is_in_the_image_with_paths_that_nodes_share() -> None:
    words = shlex.split(shlex.split(load("rayjob.yaml")["spec"]["entrypoint"])[-1])
    folder = next(line.split()[1] for line in instructions("gpu") if line.startswith("WORKDIR"))
    files = [word for word in words if word.startswith(folder)]
    assert len(files) == 3
    assert all((ROOT / Path(file).relative_to(folder)).is_file() for file in files)
    given = dict(word.split("=") for word in words if "=" in word)
    (mount,) = {m["mountPath"] for m in _mounts() if m["name"] == "clipsweep"}
    assert all(given[key].startswith(f"{mount}/") for key in ("store", "data.root"))


def test_the_rayjob_joins_its_own_cluster() -> None:
    """The pod that submits has a shell read the line, Ray quotes the words anew, and the job's
    shell reads them.
    """
    given = load("rayjob.yaml")["spec"]["entrypoint"]
    knows = {"PATH": os.environ["PATH"]}
    words = run_shell(f"printf '%s\\0' {given}", knows).split("\0")[:-1]
    assert words[:2] == ["sh", "-c"]
    shown = words[2].replace("exec python", "printf '%s\\n'")
    output = run_shell(shlex.join([*words[:2], shown]), {**knows, "RAY_ADDRESS": "10.0.0.1:6379"})
    assert "run.address=10.0.0.1:6379" in output.splitlines()


def run_shell(line: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def _mounts() -> list[dict[str, str]]:
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [
        mount
        for group in groups
        for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
    ]
