"""The `graphc` command: what it prints, its exit status, and its errors."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import graphc as gx
from graphc import cli, data, demo, training

NETWORK = """
    import graphc as gx
    from helper import WIDTH
    x = gx.input("x", (gx.dim("B"), WIDTH))
    y = gx.nn.Linear(WIDTH, 3, name="fc")(x).relu()
    net = gx.compile({"y": y})
    count = 3
    if __name__ == "__main__":
        raise SystemExit("this must not run")
"""


@pytest.fixture
def network(tmp_path):
    """A file that declares a tensor `y`, an executable `net` and a `count`, with a module beside it."""
    (tmp_path / "helper.py").write_text("WIDTH = 5\n")
    path = tmp_path / "network.py"
    path.write_text(textwrap.dedent(NETWORK))
    yield path
    sys.modules.pop("helper", None)


@pytest.mark.parametrize(
    "stage", ["graph", "joint", "optimized", "kernels", "program", "llvm", "asm", "trail"]
)
def test_dump_prints_the_stage_of_an_executable(network, capsys, stage):
    assert cli.main(["dump", f"{network}:net", "--stage", stage]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) > 1
    if stage != "trail":
        assert printed == cli.find(f"{network}:net").dump(stage)


def test_a_tensor_is_compiled_and_kernels_are_the_default(network, capsys):
    assert cli.main(["dump", f"{network}:y"]) == 0
    printed = capsys.readouterr().out
    assert "fc.weight" in printed and "kernel" in printed
    assert str(network.parent) not in sys.path


def test_dump_writes_all_stages(network, tmp_path, capsys):
    assert cli.main(["dump", f"{network}:net", "--all", str(tmp_path / "out")]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {"0_graph.txt", "3_kernels.txt", "5_llvm.ll", "trail.txt"} <= {path.name for path in paths}
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing.py:net", "there is no file nothing.py"),
        ("network.py", "does not have the form FILE.py:NAME"),
        ("network.py:", "does not have the form FILE.py:NAME"),
        ("network.py:nett", "has no 'nett'; executables and tensors there: x, y, net"),
        ("network.py:count", "count in network.py is int, not an Executable or a Tensor"),
    ],
)
def test_errors_are_one_line_on_stderr(network, monkeypatch, capsys, target, message):
    monkeypatch.chdir(network.parent)
    assert cli.main(["dump", target]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("graphc: ") and message in captured.err


def test_an_unknown_stage_is_named(network, capsys):
    assert cli.main(["dump", f"{network}:net", "--stage", "kernel"]) == 1
    assert "there is no stage 'kernel'" in capsys.readouterr().err


def test_an_error_in_the_file_shows_its_line(tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text("import graphc as gx\nx = gx.input('x', (2, 3))\ny = x @ x\n")
    assert cli.main(["dump", f"{path}:y"]) == 1
    assert "broken.py:3" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["demo", "--help"], ["dump", "--help"]])
def test_help_and_version_exit_with_0(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert gx.__version__ in printed if arguments == ["--version"] else "usage: graphc" in printed


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["demo", "--epochs", "0"], ["demo", "--threads", "x"], ["dump"]]
)
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: graphc" in capsys.readouterr().err


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "graphc", "--version"], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"graphc {gx.__version__}\n", "")


def figures(printed: str) -> list[str]:
    """The loss and accuracy columns: what must not depend on the clock."""
    return re.findall(r"^ *\d+ +(\S+ +\S+ %)", printed, re.MULTILINE)


def test_demo_reaches_96_percent_on_the_small_digits_and_repeats_itself(tmp_path, capsys):
    pytest.importorskip("sklearn")
    printed = []
    for _ in range(2):
        assert cli.main(["demo", "--dumps", str(tmp_path)]) == 0
        printed.append(capsys.readouterr().out)
    assert figures(printed[0]) == figures(printed[1]) and len(figures(printed[0])) == demo.LINES
    (found,) = re.findall(r"accuracy   (\S+) % of the 360 digits held back", printed[0])
    assert float(found) >= 96
    assert re.search(r"time       \d\.\d+ seconds per epoch", printed[0])
    listed = re.findall(rf"^  ({re.escape(str(tmp_path))}\S+)$", printed[0], re.MULTILINE)
    assert len(listed) == 8 and all(Path(path).stat().st_size for path in listed)


def write_mnist(directory: Path, count: int) -> None:
    """Files in MNIST's format: patterns of 28 x 28 that a network can tell apart."""
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
    for k, label in enumerate(labels):
        images[k, 4 + 2 * label : 7 + 2 * label, 6:22] = 255
    for name, array in ((data.MNIST_IMAGES, images), (data.MNIST_LABELS, labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (directory / name).write_bytes(gzip.compress(header + array.tobytes()))


def test_demo_trains_on_a_directory_of_mnist_files(tmp_path, capsys):
    write_mnist(tmp_path, 400)
    arguments = [
        "demo",
        "--data",
        str(tmp_path),
        "--epochs",
        "4",
        "--shifts",
        "--seed",
        "3",
        "--threads",
        "2",
    ]
    assert cli.main([*arguments, "--dumps", str(tmp_path / "dumps")]) == 0
    printed = capsys.readouterr().out
    assert "340 to train on, 60 held back" in printed
    assert len(figures(printed)) == 4


def test_demo_says_what_is_missing(tmp_path, capsys):
    assert cli.main(["demo", "--data", str(tmp_path)]) == 1
    assert data.MNIST_IMAGES in capsys.readouterr().err


def test_the_demos_progress_bar_knows_how_many_batches_there_are():
    batches = demo.Batches(np.zeros((130, 4), np.float32), np.zeros(130, np.int32), demo.Options())
    assert training.batch_count(batches, 1) == len(list(batches)) == 3
    assert training.batch_count(lambda: batches, 64) is None
    assert training.batch_count({"x": np.zeros(130)}, 64) == 3
