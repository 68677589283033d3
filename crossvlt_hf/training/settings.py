"""Settings from YAML files and the command line, typed by dataclasses; text stays text."""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from ..system import read_number


T = TypeVar("T")

# Arguments of `load_data` and its readers that are text, even if they look like numbers
TEXT_OPTIONS = ("name", "split", "root", "images", "path", "family", "merge", "text", "split_by")
NULL = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")  # in a field that is a bool


class Plain(str):
    """A YAML scalar without quotes, as written; its field determines its type."""


class _Loader(yaml.SafeLoader):
    """Load YAML without converting scalars: `no`, `007`, `12:30`, `1e-3` and dates stay as written."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Raise for a repeated key, of which YAML would silently use the last."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"`{key.value}` is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Construct text that remembers whether it had quotes."""
        return Plain(node.value) if node.style is None else node.value


_Loader.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # merged mappings alone
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


class _Dumper(yaml.SafeDumper):
    """Write YAML that `_Loader` reads back unchanged."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quote text that looks like another type."""
        plain = isinstance(guess(Plain(text)), str)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _Dumper.represent_text)


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML to mappings, lists and scalars; scalars without quotes are `Plain`.

    Raises:
        ValueError: if it is not YAML; the message begins with `source`.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"{error.problem} (line {error.problem_mark.line + 1})"
        raise ValueError(f"{source} cannot be read as YAML: {reason}") from error


def write_yaml(values: Any) -> str:
    """Write values as YAML, in their order, so that `read_yaml` and `read_settings` read them back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def guess(value: Any) -> Any:
    """Convert a value without a field: to null, true, false, or a number in decimal digits; otherwise to text.

    Text in quotes stays text; so do `007`, `1_000`, `12:30`, `0x1F`, `no` and `2024-01-01`.
    """
    if isinstance(value, Plain):
        return _guess_scalar(str(value))
    if isinstance(value, Mapping):
        return {str(name): guess(entry) for name, entry in value.items()}
    return [guess(entry) for entry in value] if isinstance(value, list) else value


def _guess_scalar(text: str) -> Any:
    if text in NULL:
        return None
    if text.lower() in ("true", "false") and text in (text.lower(), text.title(), text.upper()):
        return text.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            number = read_number(kind, text)
            return number if math.isfinite(number) else text
    return text


def _number(kind: type[int] | type[float], value: Any) -> Any:
    if isinstance(value, str):
        return read_number(kind, value)
    if isinstance(value, bool) or not isinstance(value, int | kind):
        raise ValueError
    return kind(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, Plain) or value.lower() not in (*TRUE, *FALSE):
        raise ValueError
    return value.lower() in TRUE


def _text(value: Any) -> str:
    if not isinstance(value, str) or (isinstance(value, Plain) and value in NULL):
        raise ValueError
    return str(value)


SCALARS: dict[Any, tuple[Callable[[Any], Any], str, str]] = {
    int: (partial(_number, int), "an integer", "integers"),
    float: (partial(_number, float), "a number", "numbers"),
    bool: (_truth, "true or false", "true or false"),
    str: (_text, "text", "text"),
}


def _alternatives(kind: Any) -> tuple[Any, bool]:
    """The type without None, and whether None is allowed; for int | float it is float."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    kinds = [entry for entry in get_args(kind) if entry is not types.NoneType]
    return float if float in kinds else kinds[0], types.NoneType in get_args(kind)


def _words(kind: Any, plural: bool = False) -> str:
    """A type in words, for an error."""
    kind, optional = _alternatives(kind)
    end = " or null" if optional else ""
    if kind in SCALARS:
        _, one, many = SCALARS[kind]
        return (many if plural else one) + end
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}{end}"
    if get_origin(kind) is list:
        return f"a list of {_words(get_args(kind)[0], plural=True)}{end}"
    return "tables of names and values" if plural else f"a table of names and values{end}"


def convert(value: Any, kind: Any, name: str, text: Sequence[str] = ()) -> Any:
    """Convert a value to the type of its annotation.

    Args:
        value: from `read_yaml`.
        kind: int, float, bool, str, a Literal of text, list[...], dict[str, Any], Any, or one of them or None.
        name: of the setting, for the error.
        text: keys in a dict[str, Any] whose values are text, even if they look like numbers.

    Raises:
        ValueError: if it is not of that kind.
    """
    inner, optional = _alternatives(kind)
    if optional and (value is None or (isinstance(value, Plain) and value in NULL)):
        return None
    origin = get_origin(inner)
    if inner is Any:
        return guess(value)
    if origin is list and isinstance(value, list):
        return [convert(entry, get_args(inner)[0], f"{name}[{number}]", text) for number, entry in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        kinds = {key: str | None if key in text else Any for key in value}
        return {str(key): convert(entry, kinds[key], f"{name}.{key}") for key, entry in value.items()}
    try:
        if origin is Literal and _text(value) in get_args(inner):
            return _text(value)
        if inner in SCALARS:
            return SCALARS[inner][0](value)
    except ValueError:
        pass
    got = "null" if isinstance(value, Plain) and value in NULL else repr(value)
    raise ValueError(f"`{name}` must be {_words(kind)}, got {got}.")


def setting_names(kind: Any, prefix: str = "") -> list[str]:
    """The names of all settings of a dataclass and its nested dataclasses, such as "optimization.epochs"."""
    names = []
    for entry in fields(kind):
        inner: Any = entry.type
        names += setting_names(inner, f"{prefix}{entry.name}.") if is_dataclass(inner) else [prefix + entry.name]
    return names


def _unknown(name: str, known: Sequence[str], every: Sequence[str]) -> ValueError:
    """An error for an unknown setting, with a similar one from any section, or all known ones."""
    ends = {entry.rpartition(".")[2]: entry for entry in every}
    near = get_close_matches(name, [*every, *(known if "." not in name else ())], 1, cutoff=0.75)
    near = near or [ends[end] for end in get_close_matches(name.rpartition(".")[2], ends, 1, cutoff=0.75)]
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}."
    return ValueError(f"There is no setting `{name}`; {hint}")


def read_settings(kind: type[T], values: Any, prefix: str = "", every: Sequence[str] = ()) -> T:
    """Make a dataclass, and nested ones, of what `read_yaml` returned.

    Args:
        kind: the dataclass; runs the validators of its fields (`validated_field`), and passes `text` in the metadata
            of a field to `convert`.
        values: names and values; missing ones have their default.
        prefix: of the names, for errors.
        every: the names of all settings, for hints.

    Raises:
        ValueError: if a setting does not exist or has a wrong value; names it.
    """
    every = every or setting_names(kind)
    if values is None or (isinstance(values, Plain) and values in NULL):
        values = {}
    if not isinstance(values, Mapping):
        name = f"`{prefix.rstrip('.')}`" if prefix else "The configuration"
        raise ValueError(f"{name} must be a table of names and values, got {values!r}.")
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise _unknown(f"{prefix}{name}", list(known), every)
    return kind(**{name: _read_field(known[name], value, prefix, every) for name, value in values.items()})


def _read_field(entry: Field, value: Any, prefix: str, every: Sequence[str]) -> Any:
    name, kind = f"{prefix}{entry.name}", entry.type
    if is_dataclass(kind):
        return read_settings(kind, value, f"{name}.", every)  # type: ignore[arg-type]
    found = convert(value, kind, name, entry.metadata.get("text", ()))
    for validator in entry.metadata.get("validator", ()):
        try:
            validator(found)
        except ValueError as error:
            raise ValueError(f"`{name}` {error}") from error
    return found


def _kind_at(kind: Any, names: Sequence[str]) -> Any:
    """The annotation of a setting; Any if it has none."""
    for name in names:
        kind = next((entry.type for entry in fields(kind) if entry.name == name), Any) if is_dataclass(kind) else Any
    return kind


def parse_value(text: str, kind: Any, source: str) -> Any:
    """Parse a value of the command line for `convert`: as YAML, unless the setting is text.

    Args:
        text: the part after the "=".
        kind: see `convert`.
        source: the complete setting, for the error.
    """
    inner, _ = _alternatives(kind)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if (inner is str or get_origin(inner) is Literal) and not quoted:
        return Plain(text)
    return read_yaml(text, source)


def override(kind: Any, values: Any, setting: str) -> dict[str, Any]:
    """Apply a setting such as "optimization.batch_size=8" to what `read_yaml` returned; return the result.

    Raises:
        ValueError: if it has no value, or there is no such setting.
    """
    name, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"The setting {setting!r} must be name=value.")
    *path, last = name.split(".")
    values = {} if isinstance(values, Plain | None) and values in (*NULL, None) else values
    place = values
    for step in path:
        if isinstance(place, dict):
            below = place.get(step)
            if below is None or (isinstance(below, Plain) and below in NULL):
                place[step] = {}
            place = place[step]
    if not isinstance(place, dict):
        raise ValueError(f"There is no setting `{name}`.")
    place[last] = parse_value(text, _kind_at(kind, [*path, last]), f"The setting {setting!r}")
    return values
