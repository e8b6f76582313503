"""LLVM in a thread beside the emitter: order, errors, ends, forks."""

import os
import signal
import sys
import threading

import llvmlite.binding as llvm
import numpy as np
import pytest

import graphc as gx
from graphc.codegen import background, threads
from graphc.codegen.background import ObjectThread, beside, switching_often
from graphc.codegen.jit import LoadedCode, bundled, compile_object
from graphc.codegen.target import host_target
from graphc.emission import emit_modules, emit_program
from graphc.errors import LoweringError, ShapeError
from graphc.ir import program

NAME = "graphc-llvm"


def constant_function(number):
    return (
        f'target triple = "{host_target().triple}"\n'
        f"define i64 @gx_number{number}() {{\n  ret i64 {number}\n}}\n"
    )


def threads_left():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def test_objects_come_in_the_order_of_their_texts():
    texts = [constant_function(number) for number in range(5)]
    with ObjectThread(host_target()) as thread:
        for text in texts:
            thread.add(text)
        objects = thread.objects()
    assert objects == [compile_object(text, host_target()) for text in texts]
    assert not threads_left()


def test_an_error_in_a_text_is_raised_where_objects_are_wanted():
    with ObjectThread(host_target()) as thread:
        thread.add(constant_function(1))
        thread.add("define nonsense")
        thread.add(constant_function(2))
        with pytest.raises(LoweringError, match="not valid"):
            thread.objects()
    assert not threads_left()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_no_thread_and_drops_what_is_not_begun(error, monkeypatch):
    begun, may_go_on = threading.Event(), threading.Event()
    compiled = []

    def slow(text, target):
        compiled.append(text)
        begun.set()
        may_go_on.wait()
        return b""

    monkeypatch.setattr(background, "compile_object", slow)
    with pytest.raises(error), ObjectThread(host_target()) as thread:
        thread.add("one")
        thread.add("two")
        begun.wait()
        threading.Timer(0.05, may_go_on.set).start()
        raise error
    assert compiled == ["one"] and not threads_left()


def test_without_threads_the_caller_compiles(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    texts = [constant_function(number) for number in range(2)]
    with ObjectThread(host_target()) as thread:
        for text in texts:
            thread.add(text)
        assert thread.objects() == [compile_object(text, host_target()) for text in texts]


def test_threads_switch_often_only_while_one_of_them_compiles():
    usual = sys.getswitchinterval()
    with switching_often():
        assert sys.getswitchinterval() == pytest.approx(background.SWITCH_SECONDS)
        with switching_often():
            pass
        assert sys.getswitchinterval() == pytest.approx(background.SWITCH_SECONDS)
    assert sys.getswitchinterval() == pytest.approx(usual)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_in_between_compiles_what_is_missing():
    texts = [constant_function(number) for number in range(20)]
    expected = [compile_object(text, host_target()) for text in texts]
    with ObjectThread(host_target()) as thread:
        for text in texts:
            thread.add(text)
        child = os.fork()
        if child == 0:
            usual = sys.getswitchinterval() > background.SWITCH_SECONDS
            os._exit(0 if thread.objects() == expected and usual else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert thread.objects() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("work", ["initial values", "a call into LLVM", "tables"])
def test_a_child_compiles_whatever_another_thread_was_at(work, monkeypatch):
    reached, finish = threading.Event(), threading.Event()
    honest = program.build_program

    def pause(*arguments):
        if threading.current_thread() is thread:
            reached.set()
            finish.wait(0.2 if work == "a call into LLVM" else 60)  # a fork waits until such a call has ended
        return np.zeros(3)

    def compile_one(init):
        gx.compile(gx.input("x", (3,)) + gx.param("p", (3,), init=init))

    def in_thread():
        if work == "a call into LLVM":
            llvm.get_host_cpu_name()
        else:
            compile_one(pause if work == "initial values" else "zeros")

    compile_one("zeros")
    thread = threading.Thread(target=in_thread)
    if work == "tables":
        monkeypatch.setattr(program, "build_program", lambda kernels: (pause(), honest(kernels))[1])
    llvm.ffi.register_lock_callback(pause if work == "a call into LLVM" else int, int)
    try:
        thread.start()
        assert reached.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that hangs
            compile_one("ones")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        finish.set()
        thread.join()
        llvm.ffi.unregister_lock_callback(pause if work == "a call into LLVM" else int, int)


def test_bundled_objects_are_linked_together():
    objects = [compile_object(constant_function(number), host_target()) for number in range(3)]
    assert bundled(objects[:1]) == objects[0]
    code = LoadedCode(bundled(objects), [f"gx_number{number}" for number in range(3)])
    assert len({code.address(f"gx_number{number}") for number in range(3)}) == 3


def deep(layers=6):
    gx.seed(0)
    h = gx.input("x", (gx.dim("B"), 40))
    for number in range(layers):
        h = gx.nn.Linear(40, 40 + number, name=f"fc{number}")(h).tanh()
        h = gx.nn.Linear(40 + number, 40, name=f"back{number}")(h).sigmoid()
    return gx.mean(h * h)


def test_modules_have_the_functions_of_one_module_each_once():
    program = gx.compile(deep()).ir.program
    target = host_target()
    texts = []
    emitted = emit_modules(program, target, texts.append, 1)
    whole_emitted, whole = emit_program(program, target)
    assert emitted == whole_emitted and len(texts) > 3
    symbols = {kernel.symbol for kernel in emitted}
    for symbol in symbols:
        defined = [text for text in texts if f"@{symbol}(" in text]
        assert len(defined) == 1
        start = defined[0].index(f"define i64 @{symbol}(")
        function = defined[0][start : defined[0].index("\n}\n", start)]
        assert function in whole
    LoadedCode(bundled([compile_object(text, target) for text in texts]), sorted(symbols), target)


def test_state_is_laid_out_once_also_when_an_initializer_fails(monkeypatch):
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    w = gx.param("w", (4, 3), init=lambda rng, shape: np.zeros((2, 2)))
    with pytest.raises(ShapeError, match="initial value"):
        gx.compile(gx.input("x", (2, 4)) @ w)
    assert not threads_left()


def test_work_beside_a_block_has_ended_with_it():
    done = []
    with beside(lambda: done.append(threading.current_thread().name)):
        pass
    assert done == ["graphc-beside"]
    with pytest.raises(KeyError), beside(lambda: done.append("second")):
        raise KeyError
    assert done[1:] == ["second"]
    invalid = beside(lambda: compile_object("define nonsense", host_target()))
    with pytest.raises(LoweringError, match="not valid"), invalid:
        done.append("block")
    assert done[2:] == ["block"]


def test_compiling_leaves_the_pool_ready(monkeypatch):
    loaded = []
    monkeypatch.setattr(threads, "load", lambda: loaded.append(True))
    gx.compile(deep(1), backend="python")
    assert not loaded
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    gx.compile(deep(1))
    assert loaded
