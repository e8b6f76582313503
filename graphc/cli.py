"""The `graphc` command: `graphc demo`, `graphc dump FILE.py:NAME --stage kernels`, `graphc cache list`."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import graphc as gx
from graphc import data, demo
from graphc.errors import GraphcError, UsageError

if TYPE_CHECKING:
    from graphc.executable import Executable

EPILOGUE = """examples:
  graphc demo                                  train on scikit-learn's 1,797 digits
  graphc demo --data mnist/ --shifts           train on MNIST's files, each image moved by up to a pixel
  graphc dump network.py:step --stage kernels  the loop nests of an executable or a tensor
  graphc dump network.py:step --all dumps/     every stage, and what each pass made, as files
  graphc cache why network.py:step             why its object code was not found on disk
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root = argparse.ArgumentParser(
        prog="graphc",
        description="Compiles networks declared as a DAG into native multithreaded CPU code.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"graphc {gx.__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_dump(commands)
    _add_cache(commands)
    return root


def _add_demo(commands: Any) -> None:
    defaults = demo.Options()
    command = commands.add_parser(
        "demo",
        help="declare, compile and train a classifier of handwritten digits",
        description="Declares a network, compiles it, trains it on handwritten digits, and prints loss, "
        "accuracy on the digits held back, seconds per epoch, and where each stage's dump lies.",
    )
    command.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help=f"a directory with MNIST's {data.MNIST_IMAGES} and {data.MNIST_LABELS} "
        "(default: scikit-learn's digits)",
    )
    command.add_argument(
        "--epochs", type=_positive, help=f"default: {demo.SMALL_EPOCHS}, or {demo.MNIST_EPOCHS} with --data"
    )
    command.add_argument(
        "--shifts", action="store_true", help="move every training image by up to a pixel, anew each epoch"
    )
    command.add_argument("--threads", type=_positive, help="default: GRAPHC_NUM_THREADS, else all there are")
    command.add_argument("--seed", type=int, default=defaults.seed, help="default: %(default)s")
    command.add_argument(
        "--dumps",
        type=Path,
        default=defaults.dumps,
        metavar="DIR",
        help="where the stages are written (default: %(default)s)",
    )
    command.set_defaults(run=_demo)


def _add_dump(commands: Any) -> None:
    command = commands.add_parser(
        "dump",
        help="print a stage of an executable or a tensor that a Python file declares",
        description="Executes FILE.py (as a module: what stands under `if __name__ == '__main__'` is left "
        "out) and prints a stage of the Executable or Tensor called NAME. A tensor is compiled on its own.",
    )
    command.add_argument("target", metavar="FILE.py:NAME")
    command.add_argument(
        "--stage",
        default="kernels",
        help="graph, joint, optimized, kernels, program, llvm, asm, or trail: the passes with their timings "
        "(default: %(default)s)",
    )
    command.add_argument("--all", type=Path, metavar="DIR", help="write all stages into a directory instead")
    command.set_defaults(run=_dump)


def _add_cache(commands: Any) -> None:
    command = commands.add_parser(
        "cache",
        help="list or clear the object code kept on disk, or say why a program was not found there",
        description="Object code is kept in GRAPHC_CACHE_DIR, else in graphc/ of the user's cache directory; "
        "GRAPHC_CACHE=0 turns that off.",
    )
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="the entries, the one used last first").set_defaults(run=_cache_list)
    actions.add_parser("clear", help="delete all entries").set_defaults(run=_cache_clear)
    why = actions.add_parser("why", help="which part of an executable's key the nearest entry has otherwise")
    why.add_argument("target", metavar="FILE.py:NAME")
    why.set_defaults(run=_cache_why)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _demo(arguments: argparse.Namespace) -> None:
    demo.run(
        demo.Options(
            data=arguments.data,
            epochs=arguments.epochs,
            shifts=arguments.shifts,
            threads=arguments.threads,
            seed=arguments.seed,
            dumps=arguments.dumps,
        )
    )


def _dump(arguments: argparse.Namespace) -> None:
    executable = find(arguments.target)
    if arguments.all is None:
        print(executable.dump(arguments.stage), end="")
        return
    for path in executable.dump_all(arguments.all):
        print(path)


def _cache_list(_: argparse.Namespace) -> None:
    from graphc.codegen import cache

    found = cache.entries()
    for entry in reversed(found):
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "seconds")
        header = cache.header_of(entry.path)
        what = "damaged" if header is None else _cache_summary(header["parts"])
        print(f"{used}  {entry.size:>9,} bytes  {entry.path.stem[:16]}  {what}")
    print(f"{len(found)} entries, {sum(entry.size for entry in found):,} bytes")


def _cache_summary(parts: Mapping[str, Sequence[str]]) -> str:
    """The kind and CPU of an entry, and the names of its first kernels, or what a step puts out."""
    if parts["kind"][1] == "step":
        return f"step, {parts['cpu'][1]}: {parts['outputs'][1] or 'many outputs'}"
    kernels = [name.split(" ", 2)[2] for name in parts if name.startswith("kernel ")]
    more = f" and {len(kernels) - 4} more" if len(kernels) > 4 else ""
    return f"{parts['kind'][1]}, {parts['cpu'][1]}: {', '.join(kernels[:4]) or 'run time'}{more}"


def _cache_clear(_: argparse.Namespace) -> None:
    from graphc.codegen import cache

    count, nbytes = cache.clear()
    print(f"{count} entries deleted, {nbytes:,} bytes")


def _cache_why(arguments: argparse.Namespace) -> None:
    from graphc.codegen import cache
    from graphc.engine import NativeEngine

    with cache.without_storing():
        executable = find(arguments.target)
    engine = executable.engine
    if not isinstance(engine, NativeEngine):
        raise UsageError(f"{arguments.target} runs on {engine.name}; only native code is kept")
    key = executable.cache_key
    lines = [f"not kept: {key}"] if isinstance(key, str) else cache.explain(key)
    print("step: " + "\n".join(lines))
    if engine.compiled.parts is not key:
        print("kernels: " + "\n".join(cache.explain(engine.compiled.parts)))


def find(target: str) -> Executable:
    """The executable that "FILE.py:NAME" names; a tensor of that name is compiled.

    Raises UsageError if there is no such file or name, or what it names is neither.
    """
    from graphc.compiling import compile
    from graphc.executable import Executable

    file, colon, name = target.rpartition(":")
    path = Path(file)
    if not colon or not name.isidentifier():
        raise UsageError(f"{target!r} does not have the form FILE.py:NAME")
    if not path.is_file():
        raise UsageError(f"there is no file {file}")
    # As `python FILE.py` would: what lies beside the file can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        names = runpy.run_path(str(path), run_name="__graphc_dump__")
    finally:
        sys.path.pop(0)
    if name not in names:
        usable = [k for k, v in names.items() if isinstance(v, (gx.Executable, gx.Tensor))]
        raise UsageError(
            f"{file} has no {name!r}; executables and tensors there: {', '.join(usable) or 'none'}"
        )
    value = names[name]
    if isinstance(value, gx.Tensor):
        return compile(value)
    if not isinstance(value, Executable):
        raise UsageError(f"{name} in {file} is {type(value).__name__}, not an Executable or a Tensor")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. An error of graphc's own is printed without a traceback."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except GraphcError as error:
        print(f"graphc: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; Python would complain while flushing.
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        print("graphc: interrupted", file=sys.stderr)
        return 130
    return 0
