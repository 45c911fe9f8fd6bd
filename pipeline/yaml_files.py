"""Reads YAML that a user may have been given: safe types only, capped, no aliases, includes relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from projection.errors import BadInput

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_BYTES_MAX = 1 << 20


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses aliases (a few lines of them can expand to gigabytes)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        BadInput: no such file, larger than 1 MiB, not YAML, or not a mapping.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(path, f"cannot be read ({error.strerror})") from None
    if len(data) > _BYTES_MAX:
        raise BadInput(path, f"has {len(data)} bytes; configuration files have at most {_BYTES_MAX}")
    try:
        tree = yaml.load(data, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(path, f"is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise BadInput(path, "holds no mapping at its top level")
    return tree


def named(folder: str, name: str) -> Path:
    """The file of a short name (``nuscenes16`` is ``configs/labels/nuscenes16.yaml``) or of a path ending in .yaml.

    Raises:
        BadInput: there is no such file; the text lists the short names.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (CONFIGS / folder).glob("*.yaml")))
        raise BadInput(name, "no such file", f"give a path ending in .yaml, or one of: {known}")
    return path
