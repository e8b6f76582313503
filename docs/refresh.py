"""Puts real dumps and real output into README.md and docs/*.md, and writes docs/api.md and docs/rooms.md.

    python docs/refresh.py

A comment `<!-- show ... -->` in front of a fenced block says what stands in the block:

    show file PATH                  a file
    show output PATH                what running it prints
    show dump STAGE                 a stage of docs/small_network.py
    show dump STAGE "FROM" "TO"     its lines from the one that begins with FROM, up to and without TO
    ... bare                        origins cut off

"word#3" as FROM is the third line that begins with "word".

tests/test_docs.py fails where a document is not what this script would write.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import operator
import os
import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import graphc as gx
from graphc.codegen.target import target_by_name
from graphc.emission import emit_program
from graphc.init import seed

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/architecture.md")
NETWORK = "docs/small_network.py"
TARGET = "avx2"
"""The target whose code is shown; it is emitted whatever machine this runs on."""

MODULES = {
    "nn": "Linear Sequential MLP Activation Module Network",
    "optim": "SGD Adam AdamW RMSProp Adagrad Optimizer UpdateContext",
    "init": "zeros ones normal uniform kaiming_uniform kaiming_normal xavier_uniform xavier_normal",
}
# Classes whose methods are listed as well.
MEMBERS = (
    "Executable", "BoundCall", "Tensor", "nn.Module", "nn.Network", "optim.Optimizer", "optim.UpdateContext",
)  # fmt: skip

_MARKED = re.compile(
    r"(<!-- show (?P<what>.*?) -->\n\n?```\w*\n)(?P<shown>.*?)(?P<end>^```$)", re.DOTALL | re.MULTILINE
)


@cache
def network() -> gx.Executable:
    """The executable that the dumps are of. Origins are relative to the working directory, the root."""
    seed(0)
    step: gx.Executable = runpy.run_path(NETWORK)["step"]
    return step


def stage_text(stage: str) -> str:
    """A stage of the network."""
    if stage == "llvm":
        return emit_program(network().ir.program, target_by_name(TARGET))[1]
    return network().dump(stage)


def excerpt(text: str, first: str, end: str) -> str:
    """The lines from the one that begins with `first`, up to and without the next that begins with `end`
    (or the last).
    "word#3" is the third line that begins with "word"."""
    lines = text.splitlines()
    first, _, ordinal = first.partition("#")
    found = [k for k, line in enumerate(lines) if line.startswith(first)]
    start = found[int(ordinal or 1) - 1]
    stop = next((k for k, line in enumerate(lines) if k > start and line.startswith(end)), len(lines))
    return "\n".join(lines[start:stop]).rstrip() + "\n"


@cache
def output_of(path: str) -> str:
    """What running a file prints."""
    seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(path)
    return printed.getvalue()


def shown(what: str) -> str:
    """The text for one marker."""
    kind, *arguments = shlex.split(what)
    bare = arguments[-1] == "bare"
    if bare:
        arguments.pop()
    if kind == "file":
        text = Path(arguments[0]).read_text(encoding="utf-8")
    elif kind == "output":
        text = output_of(arguments[0])
    else:
        text = stage_text(arguments[0])
    if len(arguments) == 3:
        text = excerpt(text, *arguments[1:])
    if bare:
        text = re.sub(r"  +; .*", "", text)
    return text if text.endswith("\n") else f"{text}\n"


def refreshed(document: str) -> str:
    """A document's text with every marked block filled anew."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return _MARKED.sub(lambda found: found[1] + shown(found["what"]) + found["end"], text)


def described(name: str, thing: Any) -> str:
    """One entry of the list of public names."""
    try:
        signature = str(inspect.signature(thing)).replace(" -> Any", "") if callable(thing) else ""
    except ValueError:
        signature = ""
    # Annotations are strings, printed in quotes; defaults keep theirs.
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
    signature = re.sub(r"\b(graphc|collections\.abc|numpy|typing)(\.[a-z_]\w*)*\.(?=[A-Za-z])", "", signature)
    documentation = inspect.getdoc(thing) or ""
    return f"### {name}\n\n```python\n{name}{signature}\n```\n\n{documentation}\n"


def api() -> str:
    """docs/api.md: every public name with its docstring."""
    apart = {"init", "nn", "optim", "newaxis", "float32", "float64", "int32", "int64", "uint8", "bool_"}
    things = {name: getattr(gx, name) for name in gx.__all__ if name not in apart}
    errors = [
        name for name, thing in things.items() if isinstance(thing, type) and issubclass(thing, Exception)
    ]
    parts = [
        "# Every public name\n\nWritten by docs/refresh.py from the docstrings. `import graphc as gx`.\n"
    ]
    parts += ["## Functions and classes\n"]
    parts += [described(f"gx.{name}", thing) for name, thing in things.items() if name not in errors]
    for module, names in MODULES.items():
        parts.append(f"## gx.{module}\n")
        parts += [
            described(f"gx.{module}.{name}", getattr(getattr(gx, module), name)) for name in names.split()
        ]
    for path in MEMBERS:
        name = path.rpartition(".")[2]
        parts.append(f"## Members of gx.{path}\n")
        for member, thing in inspect.getmembers(operator.attrgetter(path)(gx)):
            called = member == "__call__" and name == "BoundCall"
            public = not member.startswith("_") or called
            if public and (inspect.isfunction(thing) or isinstance(thing, property)):
                parts.append(described(f"{name}.{member}", thing))
    parts.append("## Errors\n")
    parts += [f"- `gx.{name}`: {inspect.getdoc(getattr(gx, name))}" for name in errors]
    return "\n".join(parts).rstrip() + "\n"


def rooms() -> str:
    """docs/rooms.md: every file of the package with the first paragraph of its docstring."""
    parts = ["# Every file\n\nWritten by docs/refresh.py from the docstrings; [the tour](architecture.md).\n"]
    for folder in sorted(path.parent for path in (ROOT / "graphc").rglob("__init__.py")):
        rows = []
        for path in sorted(folder.glob("*.py")):
            documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            what = " ".join(documentation.partition("\n\n")[0].split()).replace("|", "\\|")
            rows += [f"| `{path.name}` | {what} |"] if what else []
        name = folder.relative_to(ROOT).as_posix()
        parts.append("\n".join([f"## {name}/\n", "| file | what |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts).rstrip() + "\n"


def documents() -> dict[str, str]:
    """What every document should say, by path from the root."""
    kept = Path.cwd()
    os.chdir(ROOT)
    try:
        filled = {document: refreshed(document) for document in DOCUMENTS}
        return {**filled, "docs/api.md": api(), "docs/rooms.md": rooms()}
    finally:
        os.chdir(kept)


if __name__ == "__main__":
    for path, text in documents().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)
