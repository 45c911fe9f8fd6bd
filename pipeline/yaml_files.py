"""Safe YAML loading: plain types, a size limit, no aliases, no key given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clipsweep.projection.errors import BadInput

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_BYTES_MAX = 1 << 20


class _Loader(yaml.SafeLoader):
    """Safe YAML loader: no arbitrary objects, aliases or duplicate keys.

    A few lines of aliases can expand to gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise yaml.YAMLError(f"the key {twice!r} is given twice")
        return mapping


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Raises:
        BadInput: no such file, larger than 1 MiB, not YAML, a key given twice, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise BadInput(path, f"cannot be read ({error.strerror})") from None
    if len(data) > _BYTES_MAX:
        raise BadInput(
            path, f"is larger than {_BYTES_MAX} bytes, the most that a configuration has"
        )
    try:
        tree = yaml.load(data, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: no UTF-8, or a date such as 2020-13-45
        raise BadInput(path, f"is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise BadInput(path, "holds no mapping at its top level")
    return tree


def split_texts(text: str) -> list[str]:
    """Splits a comma-separated text, which may stand in [ ] and each part in quotes.

    Empty ones are left out.
    """
    text = text.strip()
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    parts = (part.strip() for part in inside.split(","))
    bare = (
        part[1:-1].strip()
        if part[:1] in "'\"" and part[:1] == part[-1:] and len(part) > 1
        else part
        for part in parts
    )
    return [part for part in bare if part]


def resolve_name(folder: str, name: str) -> Path:
    """Path of a configuration file that is given by its short name or as a path.

    ``nuscenes16`` is ``configs/labels/nuscenes16.yaml``; a path ends in .yaml.

    Raises:
        BadInput: there is no such file; the text lists the short names.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (CONFIGS / folder).glob("*.yaml")))
        raise BadInput(name, "no such file", f"give a path ending in .yaml, or one of: {known}")
    return path
