"""Steps from the cache: the same as those that the passes make, and never one of another network."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import random_dags

import graphc as gx
from graphc import cli, pipeline, sources, step_key
from graphc.codegen import cache

ROOT = Path(__file__).parent.parent
STAGES = ("graph", "joint", "optimized", "kernels", "program", "llvm")


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """An empty cache of this test's own; returns the directory of its entries."""
    monkeypatch.setenv("GRAPHC_CACHE", "1")
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    return tmp_path / "cache" / "objects"


def is_hit(executable):
    """Whether no pass has run for an executable."""
    return executable.trail == []


def step_entries():
    return [e for e in cache.entries() if cache.header_of(e.path)["parts"]["kind"][1] == "step"]


def tensors(width=5, rows="B", dtype="float32", slope=0.1, name="fc", low=None):
    """A classifier's tensors: (outputs, loss)."""
    x = gx.input("x", (gx.dim(rows), 4), dtype=dtype)
    t = gx.input("t", (gx.dim(rows),), dtype="int32")
    w = gx.param(f"{name}.w", (width, 4), dtype=dtype)
    h = (x @ w.T).leaky_relu(slope)
    if low is not None:
        h = h + gx.constant(low)
    return {"h": h}, gx.softmax_cross_entropy(h, t)


def compiled(optimizer=None, label="h", wrt=None, backend="native", **options):
    outputs, loss = tensors(**options)
    return gx.compile({label: outputs["h"]}, loss=loss, optimizer=optimizer, wrt=wrt, backend=backend)


def feeds(batch=6, dtype="float32"):
    rng = np.random.default_rng(3)
    return {
        "x": rng.normal(size=(batch, 4)).astype(dtype),
        "t": rng.integers(0, 5, batch).astype(np.int32),
    }


def bits(results):
    return {name: value.tobytes() for name, value in results.items()}


def same_twice(make, given):
    """Compiles twice, and compares all that can be seen of the two; returns the second, a hit."""
    first, second = make(), make()
    assert not is_hit(first) and is_hit(second)
    for _ in range(3):
        assert bits(first.run_labelled(given)) == bits(second.run_labelled(given))
    assert bits(first.state_dict()) == bits(second.state_dict())
    assert list(first.state_dict()) == list(second.state_dict())
    assert list(first.params) == list(second.params)
    assert {n: str(view) for n, view in first.slabs.items()} == {
        n: str(view) for n, view in second.slabs.items()
    }
    assert {n: str(node.types[0]) for n, node in first.inputs.items()} == {
        n: str(node.types[0]) for n, node in second.inputs.items()
    }
    assert is_hit(second), "nothing of this needs a stage"
    for stage in STAGES:
        assert first.dump(stage) == second.dump(stage), stage
    assert [(r.name, r.stage, r.text()) for r in first.trail] == [
        (r.name, r.stage, r.text()) for r in second.trail
    ]
    return second


# ---------------------------------------------------------------------------------- the same in all things


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        lambda: gx.optim.SGD(lr=0.1, momentum=0.9),
        lambda: gx.optim.Adam(lr=lambda step: 0.1 / (1 + step), clip_norm=1.0, accumulate=2),
        lambda: gx.optim.Adagrad(initial_accumulator_value=np.float32(0.3)),
        lambda: gx.optim.AdamW([{"params": "*", "lr": 0.5}, {"params": "none.*", "frozen": True}]),
    ],
)
def test_a_hit_is_the_same_step(optimizer):
    step = same_twice(lambda: compiled(optimizer and optimizer()), feeds())
    if optimizer is None:
        assert list(step.grads) == ["fc.w"]


def test_a_constant_large_or_small_is_found_again():
    small, large = np.full(5, 0.25, np.float32), np.ones((40_000, 1), np.float32)
    x = np.ones((40_000, 4), np.float32)
    same_twice(lambda: compiled(low=small), feeds())
    same_twice(lambda: gx.compile(gx.input("x", (40_000, 4)) * large), {"x": x})
    assert not is_hit(compiled(low=small * 2))


def test_a_large_constant_that_a_pass_made_is_not_kept():
    def make():
        large = np.arange(60_000, dtype=np.float32).reshape(300, 200)
        folded = gx.constant(large) * gx.constant(large[::-1].copy())
        return gx.compile(gx.input("x", (300, 200)) + folded)

    x = np.zeros((300, 200), np.float32)
    first = make().run(x=x)
    assert np.array_equal(make().run(x=x), first)
    held = [s for s in make().engine.program.memory.values() if s.data is not None]
    assert any(s.data.array.nbytes > 1 << 16 for s in held)  # it was folded
    assert step_entries() == []


def test_words_and_other_alphabets_are_names_on_a_hit():
    def make():
        parts = [gx.input(name, (gx.dim("B"), 4)) for name in ("inf", "true", "größe", "chunk")]
        return gx.compile({"nan": sum(parts) * gx.param("1.out", (4,))})

    values = {n: np.full((3, 4), 2.0, np.float32) for n in ("inf", "true", "größe", "chunk")}
    same_twice(make, values)


def test_networks_without_kernels_inputs_or_elements():
    same_twice(lambda: gx.compile({"y": gx.input("x", (gx.dim("B"), 3))}), {"x": np.ones((2, 3), np.float32)})
    same_twice(lambda: gx.compile(gx.arange(5) * 2), {})
    same_twice(lambda: gx.compile(gx.input("x", (0, 3)).sum()), {"x": np.ones((0, 3), np.float32)})


def test_guards_and_open_extents_are_checked_on_a_hit():
    def make():
        a, b = gx.input("a", (gx.dim("M"), 3)), gx.input("b", (gx.dim("N"), 3))
        return gx.compile({"y": a + b, "z": a[2:]})

    texts = []
    for number in range(2):
        step = make()
        assert is_hit(step) is bool(number)
        for m, n in ((3, 3), (3, 4), (1, 1), (2, 2)):
            fed = {"a": np.ones((m, 3), np.float32), "b": np.ones((n, 3), np.float32)}
            try:
                texts.append(str(step.run(fed)))
            except gx.ShapeError as error:
                texts.append(str(error))
    assert texts[:4] == texts[4:]
    assert "differ" in texts[1] and "test_step_cache.py" in texts[1]
    assert "is -1" in texts[2]


def test_a_guard_names_the_line_of_this_declaration():
    def failure(step):
        with pytest.raises(gx.ShapeError) as caught:
            step.run(a=np.ones(3, np.float32), b=np.ones(4, np.float32))
        return str(caught.value)

    first = gx.compile(gx.input("a", (gx.dim("M"),)) + gx.input("b", (gx.dim("N"),)))
    second = gx.compile(gx.input("a", (gx.dim("M"),)) + gx.input("b", (gx.dim("N"),)))
    assert is_hit(second)
    lines = [int(re.search(r"test_step_cache.py:(\d+)", failure(step))[1]) for step in (first, second)]
    assert lines[1] == lines[0] + 1


def test_an_index_error_names_the_line_of_this_declaration():
    def error_of(step):
        with pytest.raises(gx.IndexRangeError) as caught:
            step.run({**feeds(), "t": np.full(6, 9, np.int32)})
        return str(caught.value)

    first = error_of(compiled())
    again = compiled()
    assert is_hit(again) and error_of(again) == first
    x = gx.input("x", (gx.dim("B"), 4))
    t = gx.input("t", (gx.dim("B"),), dtype="int32")
    h = (x @ gx.param("fc.w", (5, 4)).T).leaky_relu(0.1)
    elsewhere = gx.compile({"h": h}, loss=gx.softmax_cross_entropy(h, t))
    assert is_hit(elsewhere)
    origins = [k.origin for k in elsewhere.ir.kernels.kernels]
    assert origins != [k.origin for k in again.ir.kernels.kernels]
    assert error_of(elsewhere).startswith("t")


def test_updates_are_attributed_to_the_line_that_compiled():
    first, second = compiled(gx.optim.SGD()), compiled(gx.optim.SGD())
    assert is_hit(second)
    assert first.dump("joint") == second.dump("joint")


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_random_networks(seed):
    plan = random_dags.draw(seed, exact=seed % 5 == 4)

    def make():
        outputs, loss, optimizer = plan.build()
        return gx.compile(outputs, loss=loss, optimizer=optimizer)

    first, second = make(), make()
    given = random_dags.feeds_for(first.inputs, plan)
    assert is_hit(second)
    assert bits(first.run_labelled(given)) == bits(second.run_labelled(given))
    assert bits(first.state_dict()) == bits(second.state_dict())
    assert first.dump("kernels") == second.dump("kernels")


def test_the_evaluator_and_parsed_graphs_come_from_the_cache():
    step = compiled(gx.optim.SGD())
    expected = step.evaluate(feeds())
    again = compiled(gx.optim.SGD())
    assert again.evaluate(feeds()) == expected
    assert is_hit(again) and is_hit(again.evaluator)
    parsed = [gx.parse(step.dump("optimized"), dict(step.params.items()) | step.state_dict() | {
        "optim.lr.0": np.float32(1e-3)}) for _ in range(2)]  # fmt: skip
    assert [is_hit(gx.compile(graph)) for graph in parsed] == [False, True]


# ------------------------------------------------------------------------------------------ hits and misses


@pytest.mark.parametrize(
    "change",
    [
        {"width": 6},
        {"rows": "C"},
        {"dtype": "float64"},
        {"slope": 0.2},
        {"name": "other"},
        {"label": "y"},
        {"low": np.zeros(5, np.float32)},
        {"optimizer": None},
        {"optimizer": gx.optim.SGD(lr=0.1, momentum=0.5)},
        {"optimizer": gx.optim.SGD(lr=0.1, momentum=0.9, nesterov=True)},
        {"optimizer": gx.optim.SGD(lr=0.1, momentum=0.9, clip_value=1.0)},
        {"optimizer": gx.optim.SGD(lr=0.1, momentum=0.9, accumulate=2)},
        {"optimizer": gx.optim.SGD([{"params": "*"}, {"params": "*"}], lr=0.1, momentum=0.9)},
        {"optimizer": gx.optim.Adam()},
    ],
    ids=str,
)
def test_another_network_or_optimizer_is_a_miss(change):
    options = {"optimizer": gx.optim.SGD(lr=0.1, momentum=0.9)}
    compiled(**options)
    assert is_hit(compiled(**options))
    other = compiled(**{**options, **change})
    assert not is_hit(other)
    given = feeds(dtype=change.get("dtype", "float32"))
    assert other.run_labelled(given).keys() == {change.get("label", "h"), "__loss__"}


def test_frozen_parameters_and_what_is_differentiated_by_are_part_of_the_key():
    def make(wrt=None, trainable=True, frozen=None):
        a = gx.param("a", (3,), trainable=trainable)
        b = gx.param("b", (3,))
        loss = (gx.input("x", (3,)) * a * b).sum()
        groups = [{"params": name, "frozen": name == frozen} for name in "ab"]
        optimizer = None if frozen is None else gx.optim.SGD(groups)
        chosen = {"a": a, "b": b, "ab": [a, b], None: None}[wrt]
        return gx.compile(loss, loss=loss, optimizer=optimizer, wrt=chosen)

    variants = [{}, {"wrt": "a"}, {"wrt": "b"}, {"wrt": "ab"}, {"trainable": False}]
    variants += [{"frozen": ""}, {"frozen": "a"}, {"frozen": "b"}]
    assert not any(is_hit(make(**variant)) for variant in variants)
    assert all(is_hit(make(**variant)) for variant in variants)


def test_attributes_that_python_takes_for_equal_are_told_apart():
    x = gx.input("x", (3,))
    variants = [x * 0.0, x * -0.0, gx.cast(x, "float64") * 1, x + 1, x - 1, gx.where(x > 0, 1.0, x)]
    variants += [gx.where(x > 0, True, x), gx.cast(x, "int32") + 1, gx.cast(x, "int32") + True]
    texts = [gx.compile(v).cache_key["nodes"] for v in variants]
    shown = [re.sub(r"  ;.*", "", gx.compile(v).dump("graph")) for v in variants]
    assert len(set(texts)) == len(set(shown)) == 7


def test_values_rates_lines_and_structure_are_no_part_of_the_key():
    compiled(gx.optim.SGD(lr=0.1))
    gx.seed(99)
    outputs, loss = tensors()
    step = gx.compile({"h": outputs["h"]}, loss=loss, optimizer=gx.optim.SGD(lr=lambda step: 0.5))
    assert is_hit(step) and step.learning_rates == [0.5]
    step.run(feeds())
    assert is_hit(gx.compile({"output": outputs["h"]})) is False
    assert is_hit(gx.compile(outputs["h"]))


@pytest.mark.parametrize("part", ["sources", "numpy", "LLVM", "target", "CPU"])
def test_another_compiler_or_machine_is_a_miss(part, monkeypatch):
    compiled()
    if part == "sources":
        monkeypatch.setattr(step_key, "compiler_digest", lambda memo: "edited")
    elif part == "numpy":
        monkeypatch.setattr(step_key.np, "__version__", "0.0")
    elif part == "LLVM":
        monkeypatch.setattr(cache, "llvm_version", lambda: "llvmlite 0, LLVM 0")
    elif part == "target":
        monkeypatch.setenv("GRAPHC_TARGET", "sse2")
    else:
        monkeypatch.setattr(step_key, "host_cpu_name", lambda: "another")
    assert not is_hit(compiled())
    monkeypatch.undo()


def test_sources_that_changed_since_they_were_imported_are_never_a_hit(monkeypatch):
    sources.compiler_digest.cache_clear()
    trusted = sources.compiler_digest()
    sources.compiler_digest.cache_clear()
    assert sources.compiler_digest() == trusted
    sources.compiler_digest.cache_clear()
    monkeypatch.setattr(sources, "_IMPORTED", 0.0)  # every source is younger than the code that runs
    assert sources.compiler_digest() != trusted
    sources.compiler_digest.cache_clear()


def test_the_digest_is_remembered_until_a_source_is_touched(tmp_path, monkeypatch):
    package, memo = tmp_path / "package", tmp_path / "memo"
    (package / "ir").mkdir(parents=True)
    (package / "ir" / "fuse.py").write_text("one")
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(sources, "PACKAGE", package)
    future = time.time() + 100

    def digest(now):
        monkeypatch.setattr(sources, "_IMPORTED", now)
        monkeypatch.setattr(sources.time, "time", lambda: now)
        sources.compiler_digest.cache_clear()
        return sources.compiler_digest(memo)

    first = digest(future)
    assert memo.read_text().split()[1] == first == sources.digest_of(["__init__.py", "ir/fuse.py"])
    read = []
    honest = sources.digest_of
    monkeypatch.setattr(sources, "digest_of", lambda names: read.append(1) or honest(names))
    assert digest(future) == first and not read
    before = (package / "ir" / "fuse.py").stat()
    (package / "ir" / "fuse.py").write_text("two")
    os.utime(package / "ir" / "fuse.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = digest(future)
    assert second != first and read == [1]
    for text in ("", "nonsense", f"{memo.read_text().split()[0]} short", "\xff\xfe"):
        memo.write_bytes(text.encode("latin-1"))
        assert digest(future) == second
    memo.unlink()
    assert digest(before.st_ctime + 1.0) == second and not memo.exists(), "too young to be remembered"
    (package / "ir" / "more.py").write_text("")
    assert digest(future) not in (first, second)
    sources.compiler_digest.cache_clear()


def test_every_source_is_part_of_the_digest():
    found = set(sources.sources_in())
    assert found == {p.relative_to(sources.PACKAGE).as_posix() for p in sources.PACKAGE.rglob("*.py")}
    assert "ir/fuse.py" in found and sources.digest_of(found) != sources.digest_of(found - {"ir/fuse.py"})


class Scaled(gx.optim.Optimizer):
    """An optimizer of a user's own, whose `update` no key can know."""

    factor = 1.0

    def update(self, param, grad, ctx):
        return param - grad * ctx.lr * self.factor


def test_what_no_key_can_describe_is_compiled_each_time():
    for _ in range(2):
        step = compiled(Scaled(lr=0.1))
        assert not is_hit(step) and "optimizer of its own kind" in step.cache_key
    patched = gx.optim.SGD(lr=0.1)
    patched.update = lambda param, grad, ctx: param
    assert "of its own kind" in compiled(patched).cache_key
    assert step_entries() == []
    assert "only native code" in compiled(backend="numpy").cache_key
    outputs, loss = tensors()
    assert "check" in gx.compile(outputs, loss=loss, check="passes").cache_key


def test_errors_are_the_same_with_a_cache():
    def stranger():
        compiled(gx.optim.SGD(["nothing.*"]))

    def wrong_wrt():
        _, loss = tensors()
        gx.compile(loss, loss=loss, wrt=gx.param("alone", (3,)))

    def clash():
        gx.compile(gx.input("x", (3,)) + gx.param("x", (3,)))

    def two_of_a_name():
        gx.compile(gx.param("p", (3,)) + gx.param("p", (3,)))

    for compile_it in (stranger, wrong_wrt, clash, two_of_a_name):
        compiled(gx.optim.SGD())
        messages = []
        for _ in range(2):
            with pytest.raises(gx.DeclarationError) as caught:
                compile_it()
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


# --------------------------------------------------------------------------------------- stages, when asked


def test_dumps_do_not_change_with_what_was_changed_after_compiling():
    def make():
        optimizer = gx.optim.SGD(lr=0.1, momentum=0.9)
        return compiled(optimizer), optimizer

    first, _ = make()
    second, optimizer = make()
    assert is_hit(second)
    optimizer.groups[0].options["momentum"] = 0.0
    optimizer.clip_norm = 3.0
    step = second.params._variables["fc.w"]
    step.trainable = False
    assert second.dump("kernels") == first.dump("kernels").replace(" trainable", "")


def test_the_trail_says_where_the_step_came_from():
    compiled()
    step = compiled()
    assert step.trail == [] and "from the cache" in step.dump("trail")
    with pytest.raises(gx.UsageError, match="there is no stage"):
        step.dump("nothing")
    assert is_hit(step)
    assert "lay_out" in [record.name for record in step.ir.trail]
    assert step.dump("trail").startswith(f"{len(step.trail)} passes")


def test_stages_share_the_state_that_runs():
    compiled(gx.optim.SGD(lr=0.1, momentum=0.9))
    step = compiled(gx.optim.SGD(lr=0.1, momentum=0.9))
    step.run(feeds())
    state = step.ir.joint.variables()
    assert set(step.params._variables.values()) <= set(state.values())
    moment = next(variable for name, variable in state.items() if name.endswith("momentum"))
    assert np.shares_memory(moment.array, step.slabs["momentum"].array)


def test_everything_is_written_for_a_step_from_the_cache(tmp_path, monkeypatch):
    compiled()
    monkeypatch.setenv("GRAPHC_DUMP", str(tmp_path / "dump"))
    assert not is_hit(compiled())  # all stages were written, so all passes have run
    assert (tmp_path / "dump" / "3_kernels.txt").stat().st_size > 0
    monkeypatch.delenv("GRAPHC_DUMP")
    assert [kernel.name for kernel in compiled().engine.program.kernels]


def test_passes_that_make_another_program_are_an_error(monkeypatch):
    compiled()
    step = compiled()
    assert is_hit(step)
    honest = pipeline.schedule
    monkeypatch.setattr(pipeline, "schedule", lambda program, machine: honest(program, copy_with(machine)))
    with pytest.raises(gx.VerifyError, match="another program"):
        step.dump("kernels")
    monkeypatch.undo()


def copy_with(machine):
    from dataclasses import replace

    return replace(machine, tile_rows=machine.tile_rows - 2, vector_bytes=machine.vector_bytes // 2)


# ---------------------------------------------------------------------------------------- damaged entries


def rewritten(path, change):
    """Writes an entry again, with other content and a digest that fits."""
    header, object_bytes = cache._decoded(path.read_bytes())
    header["content"] = change(header["content"])
    text = json.dumps(header).encode()
    digest = hashlib.sha256(text + object_bytes).digest()
    path.write_bytes(cache.MAGIC + len(text).to_bytes(4, "little") + text + digest + object_bytes)


def places(value, at=()):
    """The paths of all parts of a JSON value."""
    yield at
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*at, key))


def with_value(content, at, value):
    if not at:
        return value
    inner = content
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return content


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_nonsense_under_a_right_digest_is_refused_or_harmless(caplog):
    make = lambda: compiled(gx.optim.Adam(lr=0.1))  # noqa: E731
    expected = bits(make().run_labelled(feeds()))
    (entry,) = step_entries()
    whole = entry.path.read_bytes()
    content = cache.header_of(entry.path)["content"]
    rng = random.Random(5)
    everywhere = [at for at in places(content) if "extents" not in at]
    refused = 0
    for at in [(), *rng.sample(everywhere, 120)]:
        value = rng.choice([None, {}, [], "?!", -1, 10**9, 10**30, True, [[]], float("nan"), "no such name"])
        entry.path.write_bytes(whole)
        rewritten(entry.path, lambda c, at=at, value=value: with_value(c, at, value))
        caplog.clear()
        step = make()
        if not is_hit(step):
            refused += 1
            assert "does not describe" in caplog.text
            assert bits(step.run_labelled(feeds())) == expected
    assert refused > 100
    assert is_hit(make())


def test_code_of_other_kernels_is_refused():
    compiled()
    compiled(slope=0.7)
    first, second = (e.path for e in step_entries())
    other = cache._decoded(first.read_bytes())[0]["content"]["kernels"]
    rewritten(second, lambda content: {**content, "kernels": [["gx_none", *row[1:]] for row in other]})
    steps = [compiled(), compiled(slope=0.7)]
    assert sorted(map(is_hit, steps)) == [False, True]


# ---------------------------------------------------------------------------------------------- processes

SCRIPT = """
    import sys
    import numpy as np
    import graphc as gx
    x, t = gx.input("x", (gx.dim("B"), 4)), gx.input("t", (gx.dim("B"),), dtype="int32")
    loss = gx.softmax_cross_entropy(gx.nn.Linear(8, 5)(gx.nn.Linear(4, 8)(x).relu()), t)
    exe = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.Adam(lr=0.1))
    rooms = ("graphc.ir.rewrite", "graphc.ir.fuse", "graphc.ir.kernels", "graphc.ir.schedule",
             "graphc.pipeline", "graphc.emission", "graphc.codegen.kernels", "networkx")
    passes = [module for module in sys.modules if module.startswith(rooms)]
    feed = {"x": np.linspace(-1, 1, 24, dtype="f").reshape(6, 4), "t": np.arange(6, dtype="i") % 5}
    for _ in range(5):
        result = exe.run(feed)["loss"]
    late = [m for m in sys.modules if m.startswith(("graphc.pipeline", "graphc.ir.kernels"))]
    print(result.tobytes().hex(), len(exe.trail), len(passes), len(late))
    assert exe.dump("kernels") and exe.dump("program"), "the tables agree under another hash seed"
"""


def start(seed):
    environment = {
        **os.environ,
        "GRAPHC_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": str(seed),
    }
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_processes_at_once_and_one_after_them():
    found = []
    for number in range(3):
        process = start(number)
        found.append(process)
    lines = []
    for process in found:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and errors == "", errors
        lines.append(printed.split("\n")[0].split())
    process = start(11)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and errors == "", errors
    result, trail, passes, late = printed.split("\n")[0].split()
    assert {line[0] for line in lines} == {result}
    assert (trail, passes, late) == ("0", "0", "0"), "a step from the cache loads no pass"
    assert len(step_entries()) == 1


# -------------------------------------------------------------------------------------------- the command

SOURCE = """
    import graphc as gx
    x = gx.input("x", (gx.dim("B"), 5))
    y = gx.nn.Linear(5, WIDTH, name="fc")(x).relu()
    kernels = gx.compile(gx.parse(gx.compile(y).dump("kernels"), gx.compile(y).state_dict()))
"""


def test_why_says_which_part_of_a_step_changed(tmp_path, capsys):
    path = tmp_path / "network.py"

    def why(name, width):
        path.write_text(textwrap.dedent(SOURCE).replace("WIDTH", str(width)))
        assert cli.main(["cache", "why", f"{path}:{name}"]) == 0
        return capsys.readouterr().out.splitlines()

    assert why("y", 3)[0] == "step: miss: the cache is empty"
    path.write_text(textwrap.dedent(SOURCE).replace("WIDTH", "3"))
    cli.find(f"{path}:y")
    assert [line.partition(" /")[0] for line in why("y", 3)] == ["step: hit:"]
    lines = why("y", 4)
    assert lines[0].startswith("step: miss: the nearest entry is ")
    assert "fc.weight: f32[3, 5], fc.bias: f32[3] -> " in "\n".join(lines)
    assert any(line.startswith("kernels: miss") for line in lines)
    lines = why("kernels", 3)
    assert lines[0].startswith("step: not kept: it was compiled from kernels")
    assert cli.main(["cache", "list"]) == 0
    assert "step, " in capsys.readouterr().out
