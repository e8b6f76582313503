"""Products of two matrices, plain and with either transposed, for tests of the passes over products."""

import numpy as np
from native_support import compiled as compile_stages
from native_support import differences, execute

import graphc as gx
from graphc.ir.text_kernels import print_kernels


def product(form: str, m: int, k: int, n: int, dtype: str = "float32") -> gx.Tensor:
    a = gx.input("a", (k, m) if form == "tn" else (m, k), dtype=dtype)
    b = gx.input("b", (n, k) if form == "nt" else (k, n), dtype=dtype)
    return (a.T if form == "tn" else a) @ (b.T if form == "nt" else b)


def feeds_of(form: str, m: int, k: int, n: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(m)
    a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
    return {
        "a": np.ascontiguousarray(a.T) if form == "tn" else a,
        "b": np.ascontiguousarray(b.T) if form == "nt" else b,
    }


def require_native_product(output: gx.Tensor, feeds: dict[str, np.ndarray], mark: str) -> None:
    """Asserts that the kernels of a product have a mark, and that native code agrees with the interpreter."""
    step = compile_stages({"c": output})
    assert mark in print_kernels(step.stages.kernels)
    native, _ = execute(step, feeds)
    expected, _ = execute(step, feeds, "python")
    assert not differences(native["c"], expected["c"], 2e-5)


def require_same_bits(output: gx.Tensor, feeds: dict[str, np.ndarray], mark: str) -> None:
    """Asserts that the kernels have a mark, and that results are the same at any number of threads."""
    exe = gx.compile(output)
    assert mark in exe.dump("kernels")
    before = gx.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            gx.set_num_threads(threads)
            results.append(exe.run(feeds).copy())
    finally:
        gx.set_num_threads(before)
    assert all((result == results[0]).all() for result in results)
