"""Lists the artifacts of a store: what they are, made from what, size, age, whole or not.

With clean=true it lists those that no student, no scores and no artifact named in keep= needs, and
with yes=true deletes them. Unfinished ones, pictures and exports are never deleted.

usage: python tools/status.py [DATA.yaml] [store=FOLDER]
       python tools/status.py [DATA.yaml] [store=FOLDER] clean=true [keep=ID,...] [yes=true]
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.artifacts.inventory import (
    Entry,
    inventory,
    inventory_table,
    size_text,
    unneeded,
)
from clipsweep.pipeline.artifacts.lock import store_alone
from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.terminal import say
from clipsweep.projection.errors import BadInput

KEYS = ("store",)


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/status.py: what to delete."""

    clean: Annotated[bool, Field(description="list what nothing needs any more")] = False
    keep: Annotated[
        tuple[str, ...], Field(description="ids or folders of more artifacts to keep")
    ] = ()
    yes: Annotated[bool, Field(description="delete what clean=true lists")] = False


def run(config: Config, arguments: Arguments) -> Made:
    if (arguments.yes or arguments.keep) and not arguments.clean:
        raise BadInput("clean", "is false", "yes= and keep= belong to clean=true")
    store = Path(config.store)
    if not arguments.clean:
        entries = inventory(config.store)
        say(inventory_table(entries))
        say(f"{len(entries)} artifact(s), {_size(entries)}")
    elif arguments.yes:
        inventory(config.store)  # a store that is not there is not made
        with store_alone(config.store):
            listed = unneeded(inventory(config.store), arguments.keep)
            for entry in listed:
                _delete(entry)
        say(f"deleted {len(listed)} artifact(s), {_size(listed)}")
    else:
        entries = inventory(config.store)
        listed = unneeded(entries, arguments.keep)
        say(inventory_table(listed))
        for entry in entries:
            if entry.stage == "student" and not entry.whole:
                say(f"warning: {entry.id} is unfinished; what it needs may be in this list")
        say(f"{len(listed)} artifact(s), {_size(listed)}: nothing needs them; yes=true deletes")
    return Made(store)


def _size(entries: list[Entry]) -> str:
    return size_text(sum(entry.bytes for entry in entries))


def _delete(entry: Entry) -> None:
    """Deletes an artifact; if killed midway it is unfinished, never whole with shards missing."""
    (entry.path / "manifest.json").unlink()
    shutil.rmtree(entry.path)


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments, uses_store=False))
