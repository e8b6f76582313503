"""Common subexpressions of kernels."""

import numpy as np

import graphc as gx
from graphc.ir.common import share_expressions
from graphc.ir.interpret_kernels import run_kernels
from graphc.ir.parse_kernels import parse_kernels
from graphc.ir.text_kernels import print_kernels

BEFORE = """\
graphc kernels 1
storage x: f32[8] input
storage a: f32[8] output
storage b: f32[8] output
output a: f32[8] = a
output b: f32[8] = b

kernel k0 map i<8>
  in x: f32[8]
  out a: f32[8]
  inout b: f32[8]
  for i<8> chunked:
    var v: f32 = 0.0
    v += x[i]
    a[i] = exp(x[i] * 2.0) + 1.0
    b[i] = exp(x[i] * 2.0) * v
    v += b[i]
    b[i] = exp(v) + b[i]
    a[i] = exp(v)
"""


def test_shares_what_cannot_change_in_between():
    program = parse_kernels(BEFORE)
    after = share_expressions(program)
    text = print_kernels(after)
    assert text.count("x[i]") == 1 and text.count("exp(s1 * 2.0)") + text.count("exp(s2 * 2.0)") == 1
    # v and b change between their uses: neither they nor what depends on them may be shared.
    assert text.count("exp(v)") == 2 and text.count("+ b[i]") == 1
    x = np.linspace(-1, 1, 8).astype(np.float32)
    expected, found = run_kernels(program, {"x": x}), run_kernels(after, {"x": x})
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_leaves_a_kernel_without_repeats_alone():
    after = share_expressions(parse_kernels(BEFORE))
    assert share_expressions(after) == after


def test_drops_what_nothing_uses():
    text = BEFORE.replace("    var v:", "    let u = x[i] * 3.0\n    let w = exp(u)\n    var v:", 1)
    after = print_kernels(share_expressions(parse_kernels(text)))
    assert "let u" not in after and "let w" not in after
    assert after == print_kernels(share_expressions(parse_kernels(BEFORE)))


def test_an_update_multiplies_each_moment_once():
    x = gx.input("x", (4, 8))
    loss = (x @ gx.param("w", (8, 6))).sum()
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.Adam(lr=0.1), backend="python")
    assert exe.dump("kernels").count(" * 0.999") == 1
