"""Validation of settings against dataclass fields: bounds, choices, help, error messages."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from clipsweep.projection.errors import BadInput

T = TypeVar("T")
OWN = "own"
"""The field of a group that holds the settings of the chosen kind."""
_NOWHERE: Mapping[str, str] = MappingProxyType({})
_UNBOUNDED = (bool, str)
_NAMES = {bool: "true or false", str: "a text", int: "a whole number", float: "a number"}
_BOUNDS = {
    Ge: "from {0.ge:g}",
    Gt: "above {0.gt:g}",
    Le: "to {0.le:g}",
    Lt: "below {0.lt:g}",
    MinLen: "of at least {0.min_length} character(s)",
}


def bare(annotation: Any) -> Any:
    """Type of a dataclass field without its annotations."""
    if typing.get_origin(annotation) is Annotated:
        return typing.get_args(annotation)[0]
    return annotation


def _markers(annotation: Any) -> list[FieldInfo]:
    extras = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()
    return [extra for extra in extras if isinstance(extra, FieldInfo)]


def explained(annotation: Any) -> str:
    """Help text of a dataclass field."""
    return "; ".join(marker.description for marker in _markers(annotation) if marker.description)


_HUGE = 1e9
"""An upper bound that only keeps numbers finite: help does not mention it."""


def allowed(annotation: Any, every_bound: bool = True) -> str:
    """Allowed values of a field as text: "a whole number from 1 to 128", "fail or skip".

    Without ``every_bound`` upper bounds that nobody meets (1e9) are left out, as in help.
    """
    kind = bare(annotation)
    items = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return one_of([str(item) or "empty" for item in items])
    if typing.get_origin(kind) is tuple and items[-1] is Ellipsis:
        return f"a list with commas, each {allowed(items[0], every_bound)}"
    if typing.get_origin(kind) is tuple:
        return f"{len(items)} values with commas, each {allowed(items[0], every_bound)}"
    found = [bound for marker in _markers(annotation) for bound in marker.metadata]
    if not every_bound:
        found = [bound for bound in found if float(getattr(bound, "le", 0)) < _HUGE]
    bounds = [_BOUNDS[type(bound)].format(bound) for bound in found if type(bound) in _BOUNDS]
    return " ".join([_NAMES.get(kind, "a value"), *bounds])


def is_restricted(annotation: Any) -> bool:
    """Whether a field allows fewer values than its type."""
    return bare(annotation) not in _UNBOUNDED and bare(annotation) != tuple[str, ...]


def one_of(choices: Sequence[str]) -> str:
    """Joins choices to text: ``fail or skip``."""
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))


def shown(value: Any) -> str:
    """Formats a value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def given_in(key: str, sources: Mapping[str, str]) -> str:
    """Source of a key's value, for the end of a phrase; empty where that is not known."""
    return f" ({sources[key]})" if key in sources else ""


def validated(
    kind: type[T],
    tree: Mapping[str, Any],
    prefix: str = "",
    sources: Mapping[str, str] = _NOWHERE,
) -> T:
    """Validates plain values into a dataclass: each against what its field declares.

    Args:
        kind: the dataclass.
        tree: a value for each field; fields without one keep their default.
        prefix: what comes before the keys in messages: ``data.nuscenes.``.
        sources: file, or command line, that gave a key, by its whole name.

    Raises:
        BadInput: a value is not allowed; names the key, the value, its source and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":  # from a class that looks at several fields
        raise BadInput("configuration", str(first.get("ctx", {})["error"]))
    path = [part for part in first["loc"] if isinstance(part, str)]
    value: Any = tree
    annotation: Any = kind
    for part in path:
        value = value[part]
        annotation = typing.get_type_hints(bare(annotation), include_extras=True)[part]
    key = prefix + ".".join(path)
    text = repr(value) if isinstance(value, str) else shown(value)
    problem = f"is {text}{given_in(key, sources)}"
    raise BadInput(key, problem, f"it must be {allowed(annotation)}")


def plain(settings: Any) -> dict[str, Any]:
    """Converts settings to plain values, named as in a recipe.

    A kind's own settings stand below that kind.
    """
    tree = dataclasses.asdict(settings)
    for group in tree.values():
        if isinstance(group, dict) and OWN in group:
            group[group["kind"]] = group.pop(OWN)
    return tree
