"""Hand-written kernel programs that the tests of regions, memory and engines share."""

import numpy as np

from graphc.ir.graph import Variable
from graphc.ir.parse_kernels import parse_kernels
from graphc.ir.types import TensorType, float32
from graphc.ir.verify_kernels import verify_kernels

# A chain of maps with a sum over rows that leaves a slot per chunk, which another kernel combines.
CHAIN = """
storage x: f32[B, 8] input
storage a: f32[B, 8] temporary
storage b: f32[B, 8] temporary
storage part: f32[k1.chunks] temporary
storage s: f32[] output
storage y: f32[B, 8] output
output y: f32[B, 8] = y
output s: f32[] = s

kernel k0 map i<B> cost 2000
  in x: f32[B, 8]
  out a: f32[B, 8]
  for i<B> chunked:
    for j<8> vector 1:
      a[i, j] = x[i, j] * 2.0

kernel k1 rows i<B> cost 2000
  in a: f32[B, 8]
  out b: f32[B, 8]
  out part: f32[k1.chunks]
  var t: f32 = 0.0
  for i<B> chunked:
    for j<8> vector 1:
      b[i, j] = a[i, j] + 1.0
      t += a[i, j]
  part[chunk] = t

kernel k2 map i<B> cost 2000
  in b: f32[B, 8]
  out y: f32[B, 8]
  for i<B> chunked:
    for j<8> vector 1:
      y[i, j] = b[i, j] * 3.0

kernel k3 columns
  in part: f32[k1.chunks]
  out s: f32[]
  var t: f32 = 0.0
  for c<k1.chunks>:
    t += part[c]
  s[] = t
"""

# The second kernel reads rows that other chunks of the first wrote: there must be a barrier.
REVERSE = """
storage x: f32[B] input
storage a: f32[B] temporary
storage y: f32[B] output
output y: f32[B] = y

kernel k0 map i<B> cost 5000
  in x: f32[B]
  out a: f32[B]
  for i<B> chunked:
    a[i] = x[i] * 2.0

kernel k1 map i<B> cost 5000
  in a: f32[B]
  out y: f32[B]
  for i<B> chunked:
    y[i] = a[(B - 1) - i] + 1.0
"""

# A step that updates w by rows of x; the labels are checked by a kernel that is written last.
STEP = """
storage x: f32[B, 4] input
storage t: i32[B] input
storage w: f32[4] state #0 trainable
storage g: f32[4] temporary
storage y: f32[B] output
output y: f32[B] = y

kernel k0 map i<B> cost 3000
  in x: f32[B, 4]
  in w: f32[4]
  out y: f32[B]
  for i<B> chunked:
    var t: f32 = 0.0
    for j<4>:
      t += x[i, j] * w[j]
    y[i] = t

kernel k1 columns j<4>
  in x: f32[B, 4]
  out g: f32[4]
  for j<4> chunked:
    var t: f32 = 0.0
    for i<B>:
      t += x[i, j]
    g[j] = t

kernel k2 map j<4>
  in g: f32[4]
  inout w: f32[4]
  for j<4> chunked:
    w[j] = w[j] - g[j] * 0.5

kernel k3 check i<B>  ; t: check_index net.py:3
  in t: i32[B]
  for i<B> chunked:
    let value = t[i]
    check (i64(value) >= 0) & (i64(value) < 10) at i
"""


def read(text, bindings=None):
    """A verified kernel program."""
    return verify_kernels(parse_kernels("graphc kernels 1\n" + text, bindings))


def chain_feeds(batch, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((batch, 8)).astype(np.float32)}


def chain_results(feeds):
    doubled = feeds["x"] * np.float32(2)
    return (doubled + np.float32(1)) * np.float32(3), doubled.sum(dtype=np.float64)


def weights(value=0.0):
    """The state of STEP."""
    return Variable("w", TensorType(float32, (4,)), lambda: np.full(4, value, np.float32))


def step_program(variable=None):
    return read(STEP, {"w": variable or weights()})
