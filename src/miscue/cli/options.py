"""Options that several commands share, and options read from a method's own signature."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import torch
import typer

from miscue.cli import console
from miscue.errors import InputError
from miscue.room import LARGE, Room


def fraction(text: str | float) -> float:
    """A number or a fraction of whole numbers: 0.3, 8/255."""
    try:
        return float(Fraction(text)) if isinstance(text, str) else float(text)
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"{text!r} is neither a number nor a fraction such as 8/255") from None


DATA = Annotated[str, typer.Argument(help="A named set (digits, mnist, ...) or the path of one.", show_default=False)]
MODEL = Annotated[
    str,
    typer.Argument(
        help="A model saved by miscue train, or FILE.py:NAME for a function of yours that makes one of any library.",
        show_default=False,
    ),
]
SEED = Annotated[int, typer.Option(help="Seed of all random choices.", min=0)]
DEVICE = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto: CUDA where present.")]
JSON = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
HELD = LARGE // 2**20
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RESIZE = Annotated[int | None, typer.Option(help="Make all images N x N pixels.", metavar="N")]
MEMORY = Annotated[
    int,
    typer.Option(
        help="Images of a folder or of npz files that take more are unpacked into a file, and read from it as they are "
        "needed.",
        metavar="MIB",
        min=0,
    ),
]
THREADS = Annotated[
    int,
    typer.Option(
        help="CPU threads. A pool of surrogates shares them; for one small net more than 1 hardly pays.", min=1
    ),
]


def device(name: str, threads: int) -> str:
    """Resolve --device and set the threads; InputError for a device that is not there."""
    torch.set_num_threads(threads)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r}: {str(error).splitlines()[0]}") from None
    return name


def command_line() -> list[str]:
    """The command as typed, with the program's own name first."""
    return ["miscue", *(shlex.quote(word) for word in sys.argv[1:])]


def arguments_help(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter name -> its text in the docstring's Args section."""
    section = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    found: dict[str, str] = {}
    name = ""
    for line in (section[1] if section else "").splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        elif name:
            found[name] += f" {line.strip()}"
    return found


def method_options(
    function: Callable[..., Any],
    *,
    hidden: tuple[str, ...] = (),
    default: str = "",
    names: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> list[inspect.Parameter]:
    """The keyword-only parameters of a method as command-line options.

    An option that is not given stays None, so that a preset can tell it from one that is; the help names what it is
    then, the method's own default or else `default`. names: which there are for an option that is a name.
    """
    texts = arguments_help(function)
    options = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in hidden:
            continue
        usual = parameter.default
        kind: Any = type(usual) if usual is not None else str
        text = texts.get(parameter.name, "")
        if parameter.name in names:
            text += f" One of: {', '.join(names[parameter.name])}."
        if usual is not None:
            shown = default or (f"{usual:g}" if isinstance(usual, float) else usual)
            text += f" Default: {shown}." if shown != "" else ""
        flag = f"--{parameter.name.replace('_', '-')}"
        if kind is float:
            option = typer.Option(flag, help=text, parser=fraction, metavar="NUMBER", show_default=False)
        else:
            option = typer.Option(flag, help=text, show_default=False)
        annotation = Annotated[kind | None, option]
        options.append(parameter.replace(default=None, annotation=annotation))
    return options


def method_command(
    common: Callable[..., None], method: Callable[..., Any], do: Callable[..., None], *, hidden: tuple[str, ...]
) -> Callable[..., None]:
    """The command of one method: the shared options, those of `common`, and those of its signature but the hidden.

    `do` is called with what was given of the method's own, and by keyword with all shared ones but --debug. Where both
    have an option of a name, it is the method's.
    """
    own = method_options(method, hidden=hidden)
    names = {parameter.name for parameter in own}

    def run(**given: Any) -> None:
        options = {parameter.name: given.pop(parameter.name) for parameter in own}
        with console.guarded(debug=given.pop("debug")):
            do({key: value for key, value in options.items() if value is not None}, **given)

    shared = inspect.signature(common, eval_str=True).parameters.values()
    parameters = [*(parameter for parameter in shared if parameter.name not in names), *own]
    run.__name__, run.__doc__ = method.__name__, (inspect.getdoc(method) or "").split("\n\n")[0]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def room_in(folder: Path, memory: int) -> Room:
    """Room for images: in memory up to `memory` MiB, else in files of `folder`."""
    return Room(folder=folder, memory=memory * 2**20)


def folder_beside(out: Path) -> Path:
    """Where crafting keeps what must not be released: OUT.craft beside OUT."""
    return out.with_name(f"{out.name}.craft")
