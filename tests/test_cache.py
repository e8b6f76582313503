"""Object code on disk: what makes a hit, what makes a miss, and that no file can do harm."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import graphc as gx
from graphc import cli, emission, settings, sources
from graphc.codegen import cache
from graphc.codegen.target import host_target

ROOT = Path(__file__).parent.parent
PARTS = {"kind": "test", "text": "one"}
OBJECT = b"\x7fELF" + bytes(range(256)) * 4


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """An empty cache of this test's own; returns the directory of its entries."""
    monkeypatch.setenv("GRAPHC_CACHE", "1")
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    return tmp_path / "cache" / "objects"


def compile_counted(parts=PARTS, object_bytes=OBJECT):
    """What the cache gives for a key, and how often it had to compile."""
    calls = []

    def make():
        calls.append(1)
        return object_bytes, ["symbol"]

    return cache.cached(parts, make), len(calls)


def only_entry():
    (entry,) = cache.entries()
    return entry.path


def network(width=3):
    return gx.nn.Linear(4, width, name="fc")(gx.input("x", (gx.dim("B"), 4))).relu()


# ------------------------------------------------------------------------------------- hits and misses


def test_the_second_time_it_comes_from_disk():
    first, compiled = compile_counted()
    assert (first.hit, compiled) == (False, 1)
    second, compiled = compile_counted()
    assert (second.hit, compiled) == (True, 0)
    assert second.object_bytes == OBJECT and second.content == ["symbol"]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "test", "text": "two"},
        {"kind": "other", "text": "one"},
        {"kind": "test", "texts": "one"},
        {"text": "one", "kind": "test"},
        {"kind": "testtext", "": "one"},
        {**PARTS, "more": ""},
    ],
)
def test_any_other_part_is_another_key(other):
    assert cache.key_of(other) != cache.key_of(PARTS)
    compile_counted()
    assert compile_counted(other)[1] == 1


def test_the_key_is_the_same_in_every_process():
    assert cache.key_of(PARTS) == "6d778528d5d3a15f95c3bceb1054acc4081ce4972d3d58bb520569cd870a66e1"


@pytest.mark.parametrize(
    ("field", "value"),
    [("triple", "x86_64-pc-none"), ("cpu", "znver4"), ("features", ("sse3",)), ("vector_bits", 1024)],
)
def test_each_property_of_the_target_is_part_of_the_key(field, value):
    target = host_target()
    assert cache.machine_parts(replace(target, **{field: value})) != cache.machine_parts(target)


def test_versions_options_and_emitter_are_parts_of_the_key(monkeypatch):
    def key():
        return cache.key_of(emission.program_parts((), host_target(), ()))

    keys = {key()}
    with monkeypatch.context() as patched:
        patched.setattr(cache, "llvm_version", lambda: "llvmlite 0, LLVM 0")
        keys.add(key())
    with monkeypatch.context() as patched:
        patched.setitem(cache.CODEGEN_OPTIONS, "opt", 3)
        keys.add(key())
    with monkeypatch.context() as patched:
        patched.setattr(cache, "FORMAT", cache.FORMAT + 1)
        keys.add(key())
    with monkeypatch.context() as patched:
        patched.setattr(emission, "emitter_digest", lambda: "edited")
        keys.add(key())
    assert len(keys) == 5
    assert key() in keys


def test_an_edit_of_the_emitter_while_it_runs_is_never_cached_as_the_new_one(monkeypatch):
    cache.emitter_digest.cache_clear()
    trusted = cache.emitter_digest()
    cache.emitter_digest.cache_clear()
    assert cache.emitter_digest() == trusted
    cache.emitter_digest.cache_clear()
    monkeypatch.setattr(sources, "_IMPORTED", 0.0)  # every source is younger than the code that runs
    assert cache.emitter_digest() != trusted
    cache.emitter_digest.cache_clear()


def test_a_program_is_found_again_and_computes_the_same():
    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    gx.seed(3)
    first = gx.compile(network())
    expected = first.run(x=x)
    gx.seed(3)
    second = gx.compile(network())
    assert not first.engine.compiled.hit and second.engine.compiled.hit
    assert second.engine.emitted == first.engine.emitted
    np.testing.assert_array_equal(second.run(x=x), expected)
    assert second.dump("llvm") == first.dump("llvm")
    assert not gx.compile(network(width=7)).engine.compiled.hit


def test_kernels_on_another_line_are_the_same_object():
    gx.compile(network())
    x = gx.input("x", (gx.dim("B"), 4))
    assert gx.compile(gx.nn.Linear(4, 3, name="fc")(x).relu()).engine.compiled.hit


def kernel_of(text):
    (kernel,) = gx.parse(textwrap.dedent(text)).kernels
    return kernel


DOUBLED = """
    graphc kernels 1
    storage x: f32[B] input
    storage y: f32[B] output
    output y: f32[B] = y
    kernel k0 map i<B>
      in x: f32[B]
      out y: f32[B]
      for i<B> chunked:
        y[i] = x[i] * 2.0
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("x", "other", True),
        ("k0", "k7", True),
        ("i", "j", False),  # as code it is the same; that is not worth finding out
        ("B", "C", False),  # the extents that the operand block holds are others
        ("2.0", "3.0", False),
        ("f32", "f64", False),
    ],
)
def test_code_depends_on_everything_but_names_of_kernels_and_buffers(old, new, same):
    changed = re.sub(rf"\b{re.escape(old)}\b", new, DOUBLED)
    assert changed != DOUBLED
    if new == "f64":
        changed = changed.replace("2.0", "2.0f64")
    first, second = (emission.code_text(kernel_of(text)) for text in (DOUBLED, changed))
    assert (first == second) is same


def test_a_buffer_called_like_a_dim_or_a_dtype_is_told_from_it():
    texts = set()
    for name, dim in (("B", "B"), ("C", "C"), ("x", "B"), ("x", "C")):
        text = re.sub(r"\bx\b", "@", DOUBLED)
        texts.add(emission.code_text(kernel_of(re.sub(r"\bB\b", dim, text).replace("@", name))))
    assert len(texts) == 2  # one for each dim, whatever the buffer is called
    assert "@" not in emission.code_text(kernel_of(re.sub(r"\bx\b", "f32", DOUBLED)))


def test_layers_that_differ_in_names_are_emitted_once():
    h = gx.input("x", (gx.dim("B"), 4))
    for number in range(6):
        h = gx.nn.Linear(4, 4, name=f"fc{number}")(h).relu()
    engine = gx.compile(h).engine
    assert len(engine.emitted) >= 6
    assert len({kernel.symbol for kernel in engine.emitted}) < 6


def test_llvm_text_is_cached():
    text = "define i64 @gx_one() { ret i64 1 }"
    target = host_target()
    assert cache.cached_object(text, target) == cache.cached_object(text, target)
    assert len(cache.entries()) == 1


def test_switched_off_nothing_is_written(directory, monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    assert compile_counted()[1] == 1
    assert not directory.exists()


def test_settings_are_checked(monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE", "maybe")
    with pytest.raises(gx.errors.UsageError, match="GRAPHC_CACHE must be 0 or 1"):
        settings.cache_enabled()
    monkeypatch.setenv("GRAPHC_CACHE_MIB", "-1")
    with pytest.raises(gx.errors.UsageError, match="whole number of MiB"):
        settings.cache_bytes()
    monkeypatch.delenv("GRAPHC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert settings.cache_directory() == Path("/somewhere/graphc")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification has it ignored
    assert settings.cache_directory() == Path.home() / ".cache" / "graphc"


# ------------------------------------------------------------------------------------- damaged files


def test_no_prefix_and_no_flipped_bit_of_a_file_is_accepted():
    compile_counted()
    path = only_entry()
    whole = path.read_bytes()
    rng = random.Random(1)
    for size in [0, 1, 7, 8, 11, 12, *rng.sample(range(13, len(whole)), 20), len(whole) - 1]:
        with pytest.raises(cache.Refused):
            cache._decoded(whole[:size])
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(cache.Refused):
            cache._decoded(bytes(damaged))
    with pytest.raises(cache.Refused):
        cache._decoded(whole + b"\0")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "foreign mode", "other key"])
def test_a_damaged_file_is_deleted_and_compiled_again_with_one_line(damage, caplog):
    compile_counted()
    path = only_entry()
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:-100] + bytes([data[-100] ^ 4]) + data[-99:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("something else entirely")
    elif damage == "foreign mode":
        path.chmod(0o666)
    else:
        compile_counted({"kind": "test", "text": "two"}, b"wrong")
        (other,) = [entry.path for entry in cache.entries() if entry.path != path]
        os.replace(other, path)
    caplog.clear()
    found, compiled = compile_counted()
    assert compiled == 1 and found.object_bytes == OBJECT
    assert len(caplog.records) == 1 and "compiled again" in caplog.text
    caplog.clear()
    assert compile_counted()[1] == 0 and not caplog.records
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_files_and_directories_of_another_user_are_refused(directory, caplog):
    compile_counted()
    os.chown(only_entry(), 12345, -1)
    assert compile_counted()[1] == 1 and "belongs to user 12345" in caplog.text
    assert only_entry().stat().st_uid == 0
    os.chown(directory, 12345, -1)
    caplog.clear()
    assert compile_counted()[1] == 1 and compile_counted()[1] == 1
    assert len(caplog.records) == 1 and "belongs to user 12345" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("which", ["objects", "root"])
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_directory_that_others_can_write_to_is_refused(directory, which, mode, caplog):
    compile_counted()
    (directory if which == "objects" else directory.parent).chmod(mode)
    assert compile_counted()[1] == 1 and compile_counted()[1] == 1
    assert len(caplog.records) == 1 and "others can write to it" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs are POSIX's")
@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory"])
def test_what_is_no_regular_file_is_not_read(kind, tmp_path, caplog):
    compile_counted()
    path = only_entry()
    aside = tmp_path / "aside"
    os.replace(path, aside)
    if kind == "link":
        path.symlink_to(aside)
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    found, compiled = compile_counted()
    assert compiled == 1 and found.object_bytes == OBJECT and caplog.records
    if kind != "directory":
        assert compile_counted()[1] == 0 and path.is_file() and not path.is_symlink()


def test_directories_are_made_private(directory):
    compile_counted()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_costs_one_line(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert compile_counted()[1] == 1 and compile_counted()[1] == 1
    assert len(caplog.records) == 1 and "no object cache" in caplog.text
    assert cache.entries() == [] and cache.clear() == (0, 0)


@pytest.mark.parametrize("failing", ["fsync", "replace", "mkstemp"])
def test_a_full_or_read_only_disk_costs_one_line_and_leaves_nothing(failing, directory, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.tempfile if failing == "mkstemp" else cache.os, failing, fail)
    for _ in range(2):
        found, compiled = compile_counted()
        assert compiled == 1 and found.object_bytes == OBJECT
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert list(directory.iterdir()) == []


def test_a_read_only_directory_still_gives_hits(monkeypatch, caplog):
    compile_counted()

    def fail(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache.os, "utime", fail)
    assert compile_counted()[1] == 0 and not caplog.records


def test_what_compiling_raises_is_raised(directory):
    def make():
        raise gx.errors.LoweringError("no such instruction")

    with pytest.raises(gx.errors.LoweringError):
        cache.cached(PARTS, make)
    assert list(directory.iterdir()) == []


# --------------------------------------------------------------------------------------------- eviction


def fill(count, size):
    """Entries 0..count-1 of about `size` bytes, each used ten seconds after the one before."""
    start = time.time() - 1000
    for number in range(count):
        parts = {"number": str(number)}
        compile_counted(parts, bytes(size))
        path = cache.usable_directory() / (cache.key_of(parts) + cache.SUFFIX)
        if path.exists():
            os.utime(path, (start + 10 * number,) * 2)


def present(count):
    return [n for n in range(count) if compile_is_hit({"number": str(n)})]


def compile_is_hit(parts):
    return cache.explain(parts)[0].startswith("hit")


def test_the_entry_used_longest_ago_goes_first(monkeypatch):
    monkeypatch.setattr(settings, "cache_bytes", lambda: 11_500)  # less than a look is seldom for
    fill(4, 2000)
    assert compile_counted({"number": "0"})[1] == 0  # now the one used last
    compile_counted({"number": "4"}, bytes(2000))
    assert present(5) == [0, 2, 3, 4]
    assert sum(entry.size for entry in cache.entries()) <= 11_500


def test_the_directory_is_looked_through_seldom_and_stays_within_the_limit(directory, monkeypatch):
    limit = 1 << 20
    monkeypatch.setattr(settings, "cache_bytes", lambda: limit)
    looks = []
    look = cache._files
    monkeypatch.setattr(cache, "_files", lambda *arguments: looks.append(1) or look(*arguments))
    largest = 0
    for number in range(500):
        assert compile_counted({"number": str(number)}, bytes(3000))[1] == 1
        largest = max(largest, sum(file.stat().st_size for file in directory.glob("*" + cache.SUFFIX)))
    assert 0.75 * limit < largest <= limit
    assert len(looks) <= 500 * cache._BLOCK_BYTES / (limit * cache._LOOK_AFTER) + 1
    assert compile_is_hit({"number": "499"}) and not compile_is_hit({"number": "0"})


@pytest.mark.skipif(os.name != "posix", reason="links and FIFOs are POSIX's")
@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "gone"])
def test_without_an_account_every_store_looks(kind, directory, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "cache_bytes", lambda: 100_000)
    fill(1, 30_000)
    account = directory / cache._ACCOUNT
    for number in range(1, 6):
        account.rmdir() if account.is_dir() and not account.is_symlink() else account.unlink(missing_ok=True)
        if kind == "link":
            (tmp_path / "aside").write_bytes(b"")
            account.symlink_to(tmp_path / "aside")
        elif kind == "fifo":
            os.mkfifo(account)
        elif kind == "directory":
            account.mkdir()
        compile_counted({"number": str(number)}, bytes(30_000))
        assert sum(entry.size for entry in cache.entries()) <= 100_000
    if kind == "link":
        assert (tmp_path / "aside").read_bytes() == b""


def test_an_object_larger_than_the_cache_is_not_kept(monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE_MIB", "1")
    compile_counted()
    assert compile_counted({"number": "0"}, bytes(2 << 20))[1] == 1
    assert len(cache.entries()) == 1


def test_temporary_files_of_dead_processes_go(directory, monkeypatch):
    monkeypatch.setattr(settings, "cache_bytes", lambda: 20_000)
    compile_counted()
    old, young = directory / ".tmp-old", directory / ".tmp-young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (1e9, 1e9))
    compile_counted({"number": "0"})
    assert not old.exists() and young.exists()
    assert len(cache.entries()) == 2


# -------------------------------------------------------------------------------------- the command


SOURCE = """
    import graphc as gx
    x = gx.input("x", (gx.dim("B"), 5))
    y = gx.nn.Linear(5, WIDTH, name="fc")(x).relu()
    slow = gx.compile(y, backend="numpy")
"""


def test_why_names_the_part_that_changed_and_leaves_no_trace(tmp_path, capsys, monkeypatch):
    path = tmp_path / "network.py"
    path.write_text(textwrap.dedent(SOURCE).replace("WIDTH", "3"))

    def why():
        assert cli.main(["cache", "why", f"{path}:y"]) == 0
        return capsys.readouterr().out

    empty = "step: miss: the cache is empty\nkernels: miss: the cache is empty\n"
    assert why() == empty
    assert why() == empty
    cli.find(f"{path}:y")  # compiles the tensor
    assert why().startswith("step: hit: ")
    path.write_text(textwrap.dedent(SOURCE).replace("WIDTH", "4"))
    printed = why()
    of_step, of_kernels = (part.splitlines() for part in printed.split("kernels: "))
    assert of_step[0].startswith("step: miss: the nearest entry")
    assert {line.split(":")[0].strip() for line in of_step[1:]} == {"parameters", "nodes"}
    assert of_kernels[0].startswith("miss: the nearest entry")
    assert of_kernels[1:] and all(" kernel " in line for line in of_kernels[1:])
    path.write_text(textwrap.dedent(SOURCE).replace("WIDTH", "3"))
    with monkeypatch.context() as patched:
        patched.setattr(cache, "llvm_version", lambda: "llvmlite 0, LLVM 0")
        lines = why().splitlines()
    assert len(lines) == 4 and all(line.endswith("-> llvmlite 0, LLVM 0") for line in lines[1::2])
    assert cli.main(["cache", "why", f"{path}:slow"]) == 1
    assert "runs on numpy" in capsys.readouterr().err


def test_list_and_clear(capsys):
    gx.compile(network())
    compile_counted({"kind": "test", "cpu": "any"})
    path = cache.entries()[0].path
    path.write_bytes(b"x")
    assert cli.main(["cache", "list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(cache.entries()) + 1
    assert any("damaged" in line for line in printed)
    assert cli.main(["cache", "clear"]) == 0
    assert f"{len(printed) - 1} entries deleted" in capsys.readouterr().out
    assert cache.entries() == []


# ------------------------------------------------------------------------------------ many processes

WORKER = """
    import sys
    import numpy as np
    import graphc as gx
    worker, rounds = int(sys.argv[1]), int(sys.argv[2])
    for round in range(rounds):
        for width in (3, 4 + round, 100 + 10 * worker + round):
            gx.seed(1)
            x = gx.input("x", (gx.dim("B"), 4))
            fc = gx.nn.Linear(4, width, name="fc")
            y = fc(x).relu()
            exe = gx.compile(y)
            feed = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
            weight, bias = exe.params["fc.weight"], exe.params["fc.bias"]
            expected = np.maximum(feed.astype(float) @ weight.T + bias, 0)
            np.testing.assert_allclose(exe.run(x=feed), expected, rtol=1e-5, atol=1e-6)
    print("done")
"""

WRITER = """
    import random, sys
    from graphc.codegen import cache
    print("started", flush=True)
    rng = random.Random(int(sys.argv[1]))
    while True:
        number = rng.randrange(4)
        found = cache.cached({"number": str(number)}, lambda: (bytes([number]) * 3_000_000, number))
        assert found.content == number and found.object_bytes == bytes([number]) * 3_000_000
        for entry in cache.entries():
            if rng.random() < 0.5:
                entry.path.unlink(missing_ok=True)
"""

FILLER = """
    import random, sys
    from graphc import settings
    from graphc.codegen import cache
    settings.cache_bytes = lambda: int(sys.argv[2])
    rng = random.Random(int(sys.argv[1]))
    print("started", flush=True)
    for number in range(150):
        name = f"{sys.argv[1]} {number}"
        found = cache.cached({"name": name}, lambda: (rng.randbytes(rng.randrange(20_000)), name))
        assert found.content == name
    print("done")
"""


def start(source, *arguments):
    environment = {**os.environ, "GRAPHC_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_eight_processes_compile_the_same_and_different_programs(directory):
    workers = [start(WORKER, number, 2) for number in range(8)]
    for worker in workers:
        printed, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0 and printed == "done\n", errors
        assert errors == ""
    # Widths 3, 4 and 5 that all share, and two of each worker's own.
    kinds = Counter(cache.header_of(entry.path)["parts"]["kind"][1] for entry in cache.entries())
    assert kinds.keys() == {"step", "kernels", "LLVM text"}
    assert kinds["step"] == kinds["kernels"] == 3 + 2 * 8
    assert not list(directory.glob(".tmp-*"))


def test_processes_that_fill_one_directory_keep_it_within_the_limit(directory):
    limit, largest_entry, count = 1 << 20, 21_000, 4
    fillers = [start(FILLER, number, limit) for number in range(count)]
    try:
        largest = 0
        while any(filler.poll() is None for filler in fillers):
            total = 0
            for file in directory.glob("*" + cache.SUFFIX):
                with suppress(FileNotFoundError):
                    total += file.stat().st_size
            largest = max(largest, total)
        for filler in fillers:
            printed, errors = filler.communicate(timeout=60)
            assert filler.returncode == 0 and printed == "started\ndone\n", errors
    finally:
        for filler in fillers:
            filler.kill()
    # While a directory is listed, what is stored and what is evicted may both be seen.
    assert 0.5 * limit < largest <= limit + 2 * count * largest_entry
    assert sum(entry.size for entry in cache.entries()) <= limit
    assert all(cache.header_of(entry.path) is not None for entry in cache.entries())
    assert not list(directory.glob(".tmp-*"))


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_in_the_middle_of_writing_no_file_is_harmful(directory, caplog):
    rng = random.Random(0)
    left_over = 0
    writers = [start(WRITER, number) for number in range(3)]
    try:
        for number in range(24):
            victim = rng.randrange(len(writers))
            assert writers[victim].stdout.readline() == "started\n"
            time.sleep(rng.uniform(0.0, 0.06))
            writers[victim].send_signal(signal.SIGKILL)
            _, errors = writers[victim].communicate(timeout=30)
            assert writers[victim].returncode == -signal.SIGKILL, errors
            left_over += len(list(directory.glob(".tmp-*")))
            writers[victim] = start(WRITER, 100 + number)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate(timeout=30)
    assert left_over > 0, "no writer was killed while it wrote"
    for entry in cache.entries():
        assert cache.header_of(entry.path) is not None, "a file under its final name is whole"
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            found = cache.cached({"number": str(number)}, lambda n=number: (bytes([n]) * 3_000_000, n))
            assert found.object_bytes == bytes([number]) * 3_000_000
    assert not caplog.records
