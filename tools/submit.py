"""Submits a tool with its settings to a Ray cluster as a job.

Follows the job's log and ends with its exit status.

usage: python tools/submit.py TOOL DATA.yaml [...] run.address=http://HEAD:8265 [key=value ...]

The address is that of the cluster's dashboard; it may stand in RAY_ADDRESS, and a token in
RAY_AUTH_TOKEN. This folder is sent, without data, artifacts and what .gitignore names; store and
data.root are full paths that all nodes see. On an interrupt the job is stopped.
"""

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from clipsweep.pipeline.cli import Made, WrongUsage, main
from clipsweep.pipeline.config import Config, recipe
from clipsweep.pipeline.run.scenes import check_shared, needs_ray
from clipsweep.pipeline.terminal import say
from clipsweep.projection.errors import BadInput
from clipsweep.tools import arguments_of, tool_names

KEYS = ("run", "store", "data")
ROOT = Path(__file__).resolve().parents[1]
_LEFT_OUT = (".git", ".venv*", "__pycache__", "*.egg-info", "/artifacts", "/demo-*/")
_RESULT = "result: "
_POLL_S = 0.5


def run(tool: str, arguments: Sequence[str], config: Config, _own: object = None) -> Made:
    address = config.run.address or os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        cure = "give run.address=http://HEAD:8265, or set RAY_ADDRESS"
        raise BadInput("run.address", f"{address!r} is no address of a cluster's dashboard", cure)
    check_shared(config)
    status, log = _follow(address, command(tool, arguments), left_out(config))
    if status:
        raise SystemExit(status)  # the log has the reason
    _, named, made = log.rpartition(_RESULT)
    if not named:
        raise BadInput(tool, "ended well, but its log has no result", "look for it in the store")
    return Made(Path(made.strip()))


def command(tool: str, arguments: Sequence[str]) -> str:
    """Shell command of the Ray job: runs the tool and marks its result in the job's log.

    Ray gives back a job's status and its log, in which stdout and stderr are mixed, and this
    machine need not see the store. So the shell takes what the tool writes to stdout, one path,
    and writes it last, after ``result:``.

    Raises:
        WrongUsage: there is no such tool.
        BadInput: a configuration file is not among what is sent.
    """
    if tool == "submit" or tool not in tool_names():
        raise WrongUsage(tool or "''", "is no tool", "name one of tools/, such as label")
    words = ["python", f"tools/{tool}.py"]
    for argument in arguments:
        if "=" not in argument and not argument.startswith("-"):
            file = recipe(argument).resolve()
            if not file.is_relative_to(ROOT):
                raise BadInput(
                    argument, f"is not below {ROOT}, which is what is sent", "copy it there"
                )
            argument = str(file.relative_to(ROOT))
        if not argument.startswith("run.address="):
            words.append(argument)
    call = shlex.join([*words, "run.executor=ray"]) + ' run.address="${RAY_ADDRESS:?}"'
    return f'made=$({call}) && printf "{_RESULT}%s\\n" "$made"'


def left_out(config: Config) -> list[str]:
    """Excludes of the Ray job: files of this folder that are not sent, as .gitignore lines."""
    folders = [Path(folder).resolve() for folder in (config.store, config.data.root)]
    return [
        *_LEFT_OUT,
        *(f"/{folder.relative_to(ROOT)}" for folder in folders if folder.is_relative_to(ROOT)),
    ]


def _follow(address: str, job: str, excludes: list[str]) -> tuple[int, str]:
    """Submits a job to Ray and follows its log; gives its exit status and log."""
    with needs_ray("tools/submit.py"):
        from ray.job_submission import JobStatus, JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
        sent = {"working_dir": str(ROOT), "excludes": excludes, "env_vars": {"PYTHONPATH": ".src"}}
        name = client.submit_job(entrypoint=job, runtime_env=sent)
    except RuntimeError as error:
        raise BadInput(
            "run.address", f"{address} does not take the job ({error})", "check RAY_AUTH_TOKEN"
        ) from None

    async def tail() -> None:
        async for text in client.tail_job_logs(name):
            sys.stderr.write(text)
            sys.stderr.flush()

    say(f"{name}: {job}")
    try:
        asyncio.run(tail())
        while not (info := client.get_job_info(name)).status.is_terminal():
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        client.stop_job(name)
        raise
    say(f"{name}: {info.status}")
    status = info.driver_exit_code or 0
    if info.status != JobStatus.SUCCEEDED and not 0 < status < 256:
        say(info.message or "")
        status = 1
    return status, client.get_job_logs(name)


if __name__ == "__main__":
    tool, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", ["--help"])
    help_wanted = ["--help"] if tool in ("-h", "--help") else rest
    own = arguments_of(tool) if tool in tool_names() and tool != "submit" else None
    sys.exit(main(__doc__, KEYS, partial(run, tool, rest), own, help_wanted))
