"""The walls between rooms: who may import whom, what `import graphc` loads, who reads the environment."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "graphc"

# Imports within graphc.ir run from a later rank to an earlier one, or stay within a rank.
RANKS = (
    ("graphc.errors", "graphc.ir.addresses"),
    ("graphc.ir.types",),
    ("graphc.ir.scalar",),
    ("graphc.ir.ops",),
    ("graphc.ir.lazy",),
    ("graphc.ir.graph", "graphc.ir.locks", "graphc.ir.slabs"),
    ("graphc.ir",),
)
CODEGEN_MAY_IMPORT = (
    "graphc.codegen",
    "graphc.errors",
    "graphc.settings",
    "graphc.sources",
    "graphc.ir.types",
    "graphc.ir.addresses",
    "graphc.ir.locks",
    "graphc.ir.scalar",
    "graphc.ir.kernels",
    "graphc.ir.tables",
)
# What stands above the IR and code generation and puts them together.
UPPER = (
    "graphc.pipeline",
    "graphc.compiling",
    "graphc.executable",
    "graphc.calls",
    "graphc.engine",
    "graphc.interpreters",
    "graphc.emission",
    "graphc.cli",
    "graphc.demo",
    "graphc.training",
    "graphc.steps",
)


def name_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def imported(module: str, *, late: bool) -> set[str]:
    """The modules that one imports, those for type checkers apart; `late`: also inside functions."""
    found: set[str] = set()
    pending: list[ast.AST] = list(MODULES[module].body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not late:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in MODULES}
            if not inner <= MODULES.keys():
                found.add(node.module)
        else:
            pending.extend(ast.iter_child_nodes(node))
    return found


def lies_in(module: str, rooms: tuple[str, ...]) -> bool:
    """Whether a module is one of the rooms or inside one."""
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def rank(module: str) -> int | None:
    """The place of a module in RANKS."""
    return next((k for k, rooms in enumerate(RANKS) if lies_in(module, rooms)), None)


def in_package(prefix: str) -> list[str]:
    return sorted(name for name in MODULES if lies_in(name, (prefix,)))


def test_the_walk_sees_imports():
    assert "graphc.ir.types" in imported("graphc.ir.graph", late=False)
    assert "graphc.dsl" in imported("graphc", late=False)
    assert "networkx" in imported("graphc.ir.graph", late=True)
    assert len(MODULES) > 50


@pytest.mark.parametrize("module", in_package("graphc.ir"))
def test_the_ir_imports_downwards_only(module):
    own = rank(module)
    for other in imported(module, late=False):
        if lies_in(other, ("graphc",)):
            found = rank(other)
            assert found is not None, f"{module} imports {other}, which is not part of the IR"
            assert found <= own, f"{module} imports {other}, which comes after it"


@pytest.mark.parametrize("module", in_package("graphc.ir"))
def test_the_ir_never_imports_llvmlite_nor_what_stands_above_it(module):
    for other in imported(module, late=True):
        assert not lies_in(other, ("llvmlite", "graphc.codegen", "graphc.dsl", *UPPER)), f"{module}: {other}"


@pytest.mark.parametrize("module", in_package("graphc.codegen"))
def test_codegen_imports_the_last_irs_only(module):
    for other in imported(module, late=True):
        if lies_in(other, ("graphc",)):
            assert lies_in(other, CODEGEN_MAY_IMPORT), f"{module} imports {other}"
        assert not lies_in(other, ("networkx",)), f"{module} imports networkx"


def test_only_codegen_imports_llvmlite():
    users = {m for m in MODULES if any(lies_in(o, ("llvmlite",)) for o in imported(m, late=True))}
    assert users and all(lies_in(m, ("graphc.codegen",)) for m in users)


def test_networkx_is_imported_inside_functions():
    assert [m for m in MODULES if any(lies_in(o, ("networkx",)) for o in imported(m, late=False))] == []


def test_the_front_end_does_not_import_the_compiler():
    front = (
        "dsl",
        "functions",
        "nn",
        "optim",
        "losses",
        "network",
        "shaping",
        "reductions",
        "products",
        "init",
    )
    for name in front:
        reached, pending = set(), [f"graphc.{name}"]
        while pending:
            module = pending.pop()
            if module in MODULES and module not in reached:
                reached.add(module)
                pending.extend(imported(module, late=False))
        assert not [m for m in reached if lies_in(m, ("graphc.codegen", *UPPER))], name


def test_settings_is_the_only_reader_of_the_environment():
    readers = {
        name
        for name in MODULES
        if re.search(r"os\.environ|getenv|import environ", (ROOT / _file(name)).read_text(encoding="utf-8"))
    }
    assert readers == {"graphc.settings"}


def _file(module: str) -> Path:
    path = Path(*module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_graphc_is_light():
    loaded = run_python(
        "import sys, graphc\n"
        "graphc.input('x', (graphc.dim('B'), 3)).relu()\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    ).split()
    assert "numpy" in loaded and "graphc" in loaded
    assert not {"networkx", "llvmlite", "rich", "safetensors", "sklearn", "torch"} & set(loaded)


def test_late_names_load_when_first_used():
    assert (
        run_python(
            "import sys, graphc\n"
            "before = 'graphc.nn' in sys.modules\n"
            "graphc.nn.Linear(2, 3)\n"
            "print(before, 'graphc.nn' in sys.modules, 'llvmlite' in sys.modules)"
        )
        == "False True False"
    )
