"""What commands share: parsing of options, types of options, and checks before the work starts."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from tyro.conf import Positional, UseAppendAction, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..system import check_least, check_workers, install_command, read_number, say_known
from ..weights.names import check_source


if TYPE_CHECKING:
    from accelerate import PartialState

    from ..modeling_crossvlt import CrossVLTModel
    from ..processing_crossvlt import CrossVLTProcessor


class Command:
    """Options of a command. A subclass is a frozen dataclass, whose `Args:` are the help of the options."""

    RENAMED: ClassVar[Mapping[str, str]] = {}  # names of arguments that are options of other names

    def check(self) -> None:
        """Check values before anything heavy is imported.

        Raises:
            ValueError: if an option has an invalid value.
        """


def check_options(options: Command) -> None:
    """Check values; errors name arguments as the command line has them.

    Raises:
        ValueError: if a value is invalid, or a text empty.
    """
    names = {field.name: field.name for field in fields(cast(Any, options))}
    for name in names:
        value = getattr(options, name)
        if "" in (text.strip() for text in (value if isinstance(value, tuple) else (value,)) if isinstance(text, str)):
            raise ValueError(f"`{_as_written(options, name)}` must not be empty.")
    names |= options.RENAMED

    def as_written(match: re.Match[str]) -> str:
        return f"`{_as_written(options, names[match[1]])}`" if match[1] in names else match[0]

    try:
        options.check()
    except ValueError as error:
        raise ValueError(re.sub(r"`(\w+)`", as_written, str(error))) from error


def _as_written(options: Command, name: str) -> str:
    """An argument as the command line has it: `--batch-size`, or the name of a positional one in the help."""
    notes = getattr(get_type_hints(type(options), include_extras=True)[name], "__metadata__", ())
    metavar = next((note.metavar for note in notes if getattr(note, "metavar", None)), name)
    return metavar.split()[0] if str(Positional) in map(str, notes) else f"--{name.replace('_', '-')}"


def as_options(options: Command, message: str) -> str:
    """The arguments and settings that a message of the library names, as the command line has them.

    "`tokens` must be" becomes "`--tokens` must be", and "set `root`" becomes "set `--root`", or in training "set
    `data.root`". Settings of readers are options: "set `images`" becomes "set `--option images=...`", or in training
    "set `images` of the data set". Other words in backticks are names in files.
    """
    names = {field.name: field.name for field in fields(cast(Any, options))} | dict(options.RENAMED)
    written = {name: _as_written(options, own) for name, own in names.items()}
    written = {name: option for name, option in written.items() if option.startswith("--")}  # others are paths

    def named(match: re.Match[str]) -> str:
        return f"{match[1]}`{written.get(match[2], match[2])}`"

    def assigned(match: re.Match[str]) -> str:
        name, value = match[1], "null" if match[2] == "None" else match[2]
        if name in written:
            return f"`{written[name]} {value}`"
        return f"`--option {name}={value}`" if "option" in names else match[0]

    def advised(match: re.Match[str]) -> str:
        verb, name = match[1], match[2]
        if name in written:
            return f"{verb} `{written[name]}`"
        if "option" in names:
            return f"{verb} `--option {name}=...`"
        if "settings" in names:
            return f"{verb} `data.root`" if name == "root" else f"{verb} `{name}` of the data set"
        return match[0]

    message = re.sub(r"(^|; )`(\w+)`(?= must )", named, message)
    message = re.sub(r"`(\w+)=(\w+)`", assigned, message)
    return re.sub(r"\b([Ss]et|needs|another) `(\w+)`", advised, message)


# ---- parsing of option values


def _choice(names: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(say_known(text, names))
        return text

    return read


def _number(kind: type[int] | type[float], meaning: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            return read_number(kind, text)
        except ValueError as error:
            raise ValueError(f"must be {meaning}, got {text!r}.") from error

    return read


def _reader(kind: Any) -> tuple[str, Callable[[str], Any]] | None:
    """The name of a type in the help, and the function that reads a value; None for other types."""
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}", _choice(get_args(kind))
    readers: dict[Any, tuple[str, Callable[[str], Any]]] = {
        str: ("TEXT", str),
        int: ("N", _number(int, "an integer")),
        float: ("X", _number(float, "a number")),
    }
    return readers.get(kind)


def _texts(value: Any) -> list[str]:
    """A default value, as the help shows it."""
    values = value if isinstance(value, tuple) else (value,)
    return [str(one) for one in values if one is not None]


def _read_all(read: Callable[[str], Any], single: bool, texts: list[str]) -> Any:
    """Read the value, or the tuple of values, of an option."""
    if not texts:
        raise ValueError("must have one or more values, got none.")
    values = tuple(map(read, texts))
    return values[0] if single else values


REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read texts, numbers and choices, optional ones, and tuples of them, with errors in our words."""
    kind: Any = info.type
    if get_origin(kind) in (Union, UnionType):
        (kind, *others) = [one for one in get_args(kind) if one is not NoneType]
        if others:
            return None
    if UseAppendAction in info.markers:
        return None
    kinds = get_args(kind) if get_origin(kind) is tuple else (kind,)
    reader = _reader(kinds[0])
    if reader is None or set(kinds[1:]) - {kinds[0], ...}:
        return None
    metavar, read = reader
    return PrimitiveConstructorSpec(
        nargs="*" if ... in kinds else len(kinds),
        metavar=f"{metavar} ..." if ... in kinds else metavar,
        instance_from_str=partial(_read_all, read, kinds == (kind,)),
        is_instance=lambda value: True,
        str_from_instance=_texts,
    )


# ---- types of options


def _presence_threshold(texts: list[str]) -> float | Literal["auto"] | None:
    (text,) = texts
    if text == "none":
        return None
    if text == "auto":
        return "auto"
    try:
        return read_number(float, text)
    except ValueError as error:
        raise ValueError(f"must be auto, none or a number between 0 and 1, got {text!r}.") from error


PresenceThreshold = Annotated[
    float | Literal["auto"] | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="P",
        instance_from_str=_presence_threshold,
        is_instance=lambda value: value is None or isinstance(value, float | str),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    ),
]
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "ipu", "maia", "xla", "vulkan", "meta", "privateuseone")
DType = Literal["auto", "float32", "bfloat16", "float16"]
Png = Annotated[str | None, arg(metavar="PNG")]
Pixels = Annotated[int | None, arg(metavar="PIXELS")]
Settings = UseAppendAction[Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")]]


def checked_settings(texts: Sequence[str], option: str = "") -> tuple[str, ...]:
    """Check that all values of an option are `name=value`.

    Args:
        texts: the values.
        option: what the message begins with; tyro adds the option itself to errors of its readers.

    Raises:
        ValueError: if one is not.
    """
    for text in texts:
        if "=" not in text:
            raise ValueError(f"{option}must be name=value, got {text!r}.")
    return tuple(texts)


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Parse `name=value` settings; values are read as YAML, except those that are text."""
    from ..training.settings import TEXT_OPTIONS, convert, parse_value

    options = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        kind = str | None if name in TEXT_OPTIONS else Any
        options[name] = convert(parse_value(value, kind, f"--option {setting!r}"), kind, name)
    return options


@dataclass(frozen=True, kw_only=True)
class DataCommand(Command):
    """Options of a command that runs a model over a data set, in one process or several.

    Args:
        model: Checkpoint: a folder, a Hub id, or built-in, which is the default.
        option: Setting of the data set; may be repeated.
        batch_size: Expressions per forward pass.
        workers: Processes that load data.
        device: cpu, cuda, ... By default chosen by Accelerate.
        dtype: Floating-point type of the model; auto is that of the file.
        presence_threshold: Lowest probability that the image has a target; below it the mask is empty. auto: 0.5 for
            models with a presence head. none: no mask is emptied.
        largest_part: Keep only the largest connected part of each mask, and write how many parts there were.
    """

    model: str | None = None
    option: Settings = ()
    batch_size: int = 8
    workers: int = 0
    device: str | None = None
    dtype: DType = "auto"
    presence_threshold: PresenceThreshold = "auto"
    largest_part: bool = False

    def check(self) -> None:
        """Check that settings are name=value and numbers in range."""
        checked_settings(self.option, "`--option` ")
        check_least("batch_size", self.batch_size, 1)
        check_workers("workers", self.workers)
        check_probability("presence_threshold", self.presence_threshold)
        check_device(self.device)
        check_source(self.model)

    def load(self) -> tuple["PartialState", "CrossVLTModel", "CrossVLTProcessor"]:
        """Load the model in this process; each of several processes has its own GPU."""
        from accelerate import PartialState

        state = PartialState(cpu=self.device == "cpu")
        alone = state.num_processes == 1 and self.device is not None
        device = self.device if alone and self.device is not None else str(state.device)
        return state, *load_or_built_in(self.model, device=device, dtype=self.dtype, tell=state.is_main_process)


def load_or_built_in(
    model: str | None, *, device: str = "cpu", dtype: str = "auto", tell: bool = True
) -> tuple["CrossVLTModel", "CrossVLTProcessor"]:
    """Load a checkpoint; if none is named, say on stderr that the built-in one is used, unless `tell` is False."""
    from ..weights.checkpoint import BUILT_IN_NOTE, load_checkpoint

    loaded = load_checkpoint(model, device=device, dtype=dtype)
    if model is None and tell:
        print(f"No --model was given: {BUILT_IN_NOTE}", file=sys.stderr)
    return loaded


@contextmanager
def warnings_in_one_line(options: Command) -> Iterator[None]:
    """Print warnings at the end, without the line of code that raised them."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in found:
        print(f"Warning: {as_options(options, str(warning.message))}", file=sys.stderr)


# ---- checks before the work starts


def check_probability(name: str, value: float | str | None) -> None:
    """Raise ValueError unless a threshold is None, "auto" or a probability."""
    if value not in (None, "auto") and not 0 < float(value) < 1:
        raise ValueError(f"`{name}` must be a probability above 0 and below 1, got {value!r}.")


def check_device(value: str | None) -> None:
    """Raise ValueError unless a device is None or has a name that PyTorch knows; whether it works shows later."""
    if value is not None and not re.fullmatch(rf"({'|'.join(DEVICES)})(:[0-9]+)?", value):
        raise ValueError(f"`device` must be one such as cpu, cuda, cuda:1, mps or xpu, got {value!r}.")


def check_png(name: str, path: str | None) -> None:
    """Raise ValueError unless a path is None or that of a PNG file."""
    if path is not None and Path(path).suffix.lower() != ".png":
        raise ValueError(f"`{name}` must be a file name that ends in .png, got {path!r}.")


def check_distinct(options: Command, *names: str) -> None:
    """Raise ValueError if two of the options are the same file, which would be written twice."""
    paths: dict[str, str] = {}
    for name in names:
        if (path := getattr(options, name)) is not None:
            other = paths.setdefault(os.path.realpath(path), name)
            if other != name:
                raise ValueError(f"`{other}` and `{name}` must be two files, got {path!r} for both.")


def refuse_without_effect(options: Command, names: Iterable[str], where: str) -> None:
    """Raise ValueError if an option has another value than its default, although nothing reads it."""
    for name in names:
        if getattr(options, name) != getattr(type(options), name):
            raise ValueError(f"`{name}` has no effect {where}; leave it out.")


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a failed import into an error that says how to install the extra.

    Raises:
        ValueError: if a module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"This needs {error.name}: {install_command(extra)}") from error


def need_matplotlib() -> None:
    """Check that figures can be drawn, before the work starts."""
    with needs_extra("plot"):
        import_module("matplotlib")
