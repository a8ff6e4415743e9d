"""Write docs/cli.md from the commands themselves: python scripts/make_cli_docs.py docs/cli.md.

The introduction and the reference of the query language are docs/_cli_head.md.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo, OptionInfo

from chgdb.cli import app
from chgdb.schema import SEARCHABLE

HEAD = Path(__file__).resolve().parent.parent / "docs" / "_cli_head.md"


def main(target: str) -> None:
    """Write the page to a file, or to the standard output for "-"."""
    text = page()
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


def page() -> str:
    """The whole page."""
    head = HEAD.read_text(encoding="utf-8").replace("<!-- columns -->\n", columns())
    return head.rstrip() + "\n\n## Commands\n" + "".join(sections(app))


def columns() -> str:
    """Every column as a row of a table."""
    kinds = {"integer": "number", "real": "number"}
    rows = [
        f"| `{column.name}` | {kinds.get(column.type, column.type)} | "
        f"{column.unit if column.unit != '1' else ''} | {column.description} |"
        for column in SEARCHABLE.values()
    ]
    return "\n".join(["| column | kind | unit | content |", "| --- | --- | --- | --- |", *rows, ""])


def sections(group: typer.Typer, name: str = "chgdb") -> Iterator[str]:
    """A section for a group of commands and for each in it."""
    if group.registered_callback and (callback := group.registered_callback.callback):
        yield section(name, callback, "COMMAND ...")
    for command in group.registered_commands:
        if command.callback and not command.hidden:
            yield section(f"{name} {command.name or command.callback.__name__}", command.callback)
    for inner in group.registered_groups:
        if inner.typer_instance:
            yield from sections(inner.typer_instance, f"{name} {inner.name}")


def section(name: str, function: Callable[..., Any], rest: str = "") -> str:
    """What one command does, its arguments and its options.

    They are read from the function, not from Click's objects, which change between releases.
    """
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    arguments = [(usage(p), p) for p in parameters if isinstance(info(p), ArgumentInfo)]
    options = [(spelled(p), p) for p in parameters if isinstance(info(p), OptionInfo)]
    words = " ".join([name, *(word for word, _ in arguments), "[OPTIONS]", rest]).rstrip()
    text = f"\n### {name}\n\n{paragraphs(inspect.getdoc(function) or '')}\n\n```\n{words}\n```\n"
    for heading, rows in (("argument", arguments), ("option", options)):
        if rows:
            text += table(heading, rows)
    return text


def info(parameter: inspect.Parameter) -> Any:
    """What typer is told of a parameter."""
    return parameter.annotation.__metadata__[0]


def paragraphs(text: str) -> str:
    """A docstring, each paragraph on one line, a command at the end of the first set as code."""
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    before, colon, example = parts[0].partition(": chgdb ")
    if colon:
        parts[0] = f"{before}: `chgdb {example.removesuffix('.')}`"
    return "\n\n".join(parts)


def usage(parameter: inspect.Parameter) -> str:
    """How an argument stands in the command."""
    return str(info(parameter).metavar or parameter.name.upper())


def spelled(parameter: inspect.Parameter) -> str:
    """The names of an option and its value."""
    option = info(parameter)
    names = [str(name) for name in (option.default, *(option.param_decls or ())) if name != ...]
    (kind, *_) = [k for k in get_args(parameter.annotation.__origin__) if k is not type(None)] or [
        parameter.annotation.__origin__
    ]
    flag = "--" + parameter.name.replace("_", "-")
    if kind is bool:
        return ", ".join(names) or f"{flag}, --no-{flag[2:]}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        value = "|".join(str(member.value) for member in kind)
    else:
        value = option.metavar or {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
    return f"{', '.join(names) or flag} {value}"


def table(heading: str, rows: list[tuple[str, inspect.Parameter]]) -> str:
    """Arguments or options with their help and default."""
    lines = [f"| {heading} | meaning | default |", "| --- | --- | --- |"]
    for words, parameter in rows:
        code = words.replace("|", r"\|")
        lines.append(f"| `{code}` | {cell(info(parameter).help or '')} | {default(parameter)} |")
    return "\n" + "\n".join(lines) + "\n"


def default(parameter: inspect.Parameter) -> str:
    """What holds where nothing is given."""
    value = parameter.default
    if value is parameter.empty and isinstance(info(parameter), OptionInfo):
        return "required"
    if value is parameter.empty or value is None or value is False or value == "":
        return ""
    if value is True:
        return "yes"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def cell(text: str) -> str:
    """A text that stands in a table."""
    return text.replace("|", r"\|")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: make_cli_docs.py docs/cli.md")
    main(sys.argv[1])
