"""Kernels written by hand in the kernel grammar, run by the plain-Python interpreter against numpy.

If one of these does not fit the grammar, the grammar is wrong. Each runs with its chunks in permuted
order, prints, and parses back. `F` stands for the dtype: all are run in float64 and in float32.
"""

import numpy as np
import pytest

from graphc.ir.interpret_kernels import run_kernels
from graphc.ir.kernels import KernelProgram
from graphc.ir.parse_kernels import parse_kernels
from graphc.ir.text_kernels import print_kernels
from graphc.ir.verify_kernels import verify_kernels

DTYPES = [("f64", np.float64, 1e-12), ("f32", np.float32, 2e-5)]
by_dtype = pytest.mark.parametrize(("short", "dtype", "tolerance"), DTYPES)


def read(text: str, short: str) -> KernelProgram:
    """A valid program, which also survives printing and parsing."""
    program = verify_kernels(parse_kernels("graphc kernels 1\n" + text.replace("F", short)))
    printed = print_kernels(program)
    again = parse_kernels(printed)
    assert again == program
    assert print_kernels(again) == printed
    return again


def run_permuted(program, feeds, bindings, state=None):
    """The outputs, after asserting that no order and only the size of the chunks matters."""
    results = []
    for seed in (None, 1, 2):
        held = {name: array.copy() for name, array in (state or {}).items()}
        outputs = run_kernels(program, feeds, held, bindings, seed, lambda kernel, extent: kernel.granule)
        results.append({**outputs, **held})
    for other in results[1:]:
        for label, array in other.items():
            assert array.tobytes() == results[0][label].tobytes(), label
    return results[0]


def close(actual, expected, tolerance):
    scale = max(1.0, float(np.abs(expected).max()))
    assert actual.shape == expected.shape
    assert float(np.abs(actual - expected).max()) <= tolerance * scale


# ------------------------------------------------------------------------------------ flash attention

FLASH_FORWARD = """
storage q: F[N, S, D] input
storage k: F[N, S, D] input
storage v: F[N, S, D] input
storage o: F[N, S, D] output
storage lse: F[N, S] output
output o: F[N, S, D] = o
output lse: F[N, S] = lse

kernel flash rows i<S> cost (N*S*D)  ; causal attention, online softmax
  in q: F[N, S, D]
  in k: F[N, S, D]
  in v: F[N, S, D]
  out o: F[N, S, D]
  out lse: F[N, S]
  for n<N>:
    for i<S> chunked:
      temp acc: F[D]
      for d<D>:
        acc[d] = 0.0F
      var m: F = -inf_F
      var l: F = 0.0F
      for j<S>:
        let visible = j <= i
        var score: F = 0.0F
        for d<D> vector 1:
          score += q[n, i, d] * k[n, j, d if visible else 0.0F]
        let s = select(visible, score / sqrt(F(extent(D))), -inf_F)
        let next = maximum(m, s)
        let correction = exp(m - next)
        let p = exp(s - next)
        l = l * correction + p
        for d<D>:
          acc[d] = acc[d] * correction + p * v[n, j, d if visible else 0.0F]
        m = next
      for d<D>:
        o[n, i, d] = acc[d] / l
      lse[n, i] = m + log(l)
"""

FLASH_BACKWARD = """
storage q: F[N, S, D] input
storage k: F[N, S, D] input
storage v: F[N, S, D] input
storage o: F[N, S, D] input
storage do: F[N, S, D] input
storage lse: F[N, S] input
storage delta: F[N, S] temporary
storage dq: F[N, S, D] output
storage dk: F[N, S, D] output
storage dv: F[N, S, D] output
output dq: F[N, S, D] = dq
output dk: F[N, S, D] = dk
output dv: F[N, S, D] = dv

kernel delta rows i<S>
  in o: F[N, S, D]
  in do: F[N, S, D]
  out delta: F[N, S]
  for n<N>:
    for i<S> chunked:
      var sum: F = 0.0F
      for d<D> vector 2:
        sum += o[n, i, d] * do[n, i, d]
      delta[n, i] = sum

kernel dq rows i<S>
  in q: F[N, S, D]
  in k: F[N, S, D]
  in v: F[N, S, D]
  in do: F[N, S, D]
  in lse: F[N, S]
  in delta: F[N, S]
  out dq: F[N, S, D]
  for n<N>:
    for i<S> chunked:
      for d<D>:
        dq[n, i, d] = 0.0F
      for j<S>:
        let visible = j <= i
        let scale = 1.0F / sqrt(F(extent(D)))
        var score: F = 0.0F
        var dp: F = 0.0F
        for d<D> vector 1:
          score += q[n, i, d] * k[n, j, d if visible else 0.0F]
          dp += do[n, i, d] * v[n, j, d if visible else 0.0F]
        let p = select(visible, exp(score * scale - lse[n, i]), 0.0F)
        let ds = p * (dp - delta[n, i]) * scale
        for d<D>:
          dq[n, i, d] += ds * k[n, j, d if visible else 0.0F]

kernel dkdv rows j<S>
  in q: F[N, S, D]
  in k: F[N, S, D]
  in v: F[N, S, D]
  in do: F[N, S, D]
  in lse: F[N, S]
  in delta: F[N, S]
  out dk: F[N, S, D]
  out dv: F[N, S, D]
  for n<N>:
    for j<S> chunked:
      temp ak: F[D]
      temp av: F[D]
      for d<D>:
        ak[d] = 0.0F
        av[d] = 0.0F
      for i<S>:
        let visible = j <= i
        let scale = 1.0F / sqrt(F(extent(D)))
        var score: F = 0.0F
        var dp: F = 0.0F
        for d<D> vector 1:
          score += q[n, i, d if visible else 0.0F] * k[n, j, d]
          dp += do[n, i, d if visible else 0.0F] * v[n, j, d]
        let p = exp(score * scale - lse[n, i if visible else inf_F])
        let ds = p * (dp - delta[n, i if visible else 0.0F]) * scale
        for d<D>:
          ak[d] += ds * q[n, i, d if visible else 0.0F]
          av[d] += p * do[n, i, d if visible else 0.0F]
      for d<D>:
        dk[n, j, d] = ak[d]
        dv[n, j, d] = av[d]
"""


def attention(q, k, v):
    """Causal attention with the S x S matrix that the kernels avoid: (output, probabilities, lse)."""
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2])
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    lse = np.log(np.exp(scores - scores.max(2, keepdims=True)).sum(2)) + scores.max(2)
    p = np.exp(scores - lse[..., None])
    return p @ v, p, lse


def attention_feeds(dtype, shape=(2, 7, 4)):
    random = np.random.default_rng(0)
    names = ("q", "k", "v", "do")
    return {name: (random.normal(size=shape) * 3).astype(dtype) for name in names}


@by_dtype
def test_flash_attention_forward(short, dtype, tolerance):
    feeds = attention_feeds(dtype)
    del feeds["do"]
    program = read(FLASH_FORWARD, short)
    got = run_permuted(program, feeds, {"N": 2, "S": 7, "D": 4})
    q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
    o, _, lse = attention(q, k, v)
    close(got["o"], o, tolerance)
    close(got["lse"], lse, tolerance)
    sizes = [storage.type.size for storage in program.storages.values()]
    assert all("S*S" not in str(size) for size in sizes), "no S x S matrix in memory"


@by_dtype
def test_flash_attention_backward(short, dtype, tolerance):
    feeds = attention_feeds(dtype)
    q, k, v, do = (feeds[name].astype(np.float64) for name in ("q", "k", "v", "do"))
    o, p, lse = attention(q, k, v)
    program = read(FLASH_BACKWARD, short)
    got = run_permuted(
        program, {**feeds, "o": o.astype(dtype), "lse": lse.astype(dtype)}, {"N": 2, "S": 7, "D": 4}
    )
    ds = p * (do @ v.swapaxes(1, 2) - (do * o).sum(2, keepdims=True)) / np.sqrt(4)
    close(got["dq"], ds @ k, tolerance * 10)
    close(got["dk"], ds.swapaxes(1, 2) @ q, tolerance * 10)
    close(got["dv"], p.swapaxes(1, 2) @ do, tolerance * 10)


# ---------------------------------------------------------------------- convolution: stride 2, padding 1

CONVOLUTION = """
storage x: F[N, C, H, W] input
storage w: F[O, C, 3, 3] input
storage y: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1] output
output y: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1] = y

kernel conv contract n<N>
  in x: F[N, C, H, W]
  in w: F[O, C, 3, 3]
  out y: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1]
  for n<N> chunked:
    for o<O>:
      for p<floordiv(H - 1, 2) + 1>:
        for q<floordiv(W - 1, 2) + 1>:
          var acc: F = 0.0F
          for c<C>:
            for r<3>:
              let row = index(2*p + r - 1)
              for s<3>:
                let column = index(2*q + s - 1)
                let inside = row >= 0 & row < extent(H) & column >= 0 & column < extent(W)
                acc += x[n, c, 2*p + r - 1, 2*q + s - 1 if inside else 0.0F] * w[o, c, r, s]
          y[n, o, p, q] = acc
"""

INPUT_GRADIENT = """
storage dy: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1] input
storage w: F[O, C, 3, 3] input
storage gathered: F[N, C, H, W] output
storage scattered: F[N, C, H, W] output
output gathered: F[N, C, H, W] = gathered
output scattered: F[N, C, H, W] = scattered

kernel gather contract n<N>  ; each dx sums what it was used for
  in dy: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1]
  in w: F[O, C, 3, 3]
  out gathered: F[N, C, H, W]
  for n<N> chunked:
    for c<C>:
      for h<H>:
        for u<W>:
          var acc: F = 0.0F
          for r<3>:
            let p = floordiv(index(h - 1*r + 1), 2)
            let rows = mod(index(h - 1*r + 1), 2) == 0 & p >= 0 & p <= extent(floordiv(H - 1, 2))
            for s<3>:
              let q = floordiv(index(-1*s + u + 1), 2)
              let columns = mod(index(-1*s + u + 1), 2) == 0 & q >= 0 & q <= extent(floordiv(W - 1, 2))
              for o<O>:
                acc += dy[n, o, p, q if rows & columns else 0.0F] * w[o, c, r, s]
          gathered[n, c, h, u] = acc

kernel scatter move n<N>  ; each dy adds to what it used, within the chunk's own rows of the batch
  in dy: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1]
  in w: F[O, C, 3, 3]
  out scattered: F[N, C, H, W]
  for n<N> chunked:
    for c<C>:
      for h<H>:
        for u<W>:
          scattered[n, c, h, u] = 0.0F
      for o<O>:
        for p<floordiv(H - 1, 2) + 1>:
          for q<floordiv(W - 1, 2) + 1>:
            for r<3>:
              let row = index(2*p + r - 1)
              for s<3>:
                let column = index(2*q + s - 1)
                let inside = row >= 0 & row < extent(H) & column >= 0 & column < extent(W)
                scattered[n, c, 2*p + r - 1, 2*q + s - 1 if inside] += dy[n, o, p, q] * w[o, c, r, s]
"""

WEIGHT_GRADIENT = """
storage x: F[N, C, H, W] input
storage dy: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1] input
storage partial: F[dw.chunks, O, C, 3, 3] temporary
storage w: F[O, C, 3, 3] state
storage dw: F[O, C, 3, 3] output
output dw: F[O, C, 3, 3] = dw

kernel dw contract n<N>  ; each chunk of the batch leaves a partial sum in its own slot
  in x: F[N, C, H, W]
  in dy: F[N, O, floordiv(H - 1, 2) + 1, floordiv(W - 1, 2) + 1]
  out partial: F[dw.chunks, O, C, 3, 3]
  for o<O>:
    for c<C>:
      for r<3>:
        for s<3>:
          var acc: F = 0.0F
          for n<N> chunked:
            for p<floordiv(H - 1, 2) + 1>:
              let row = index(2*p + r - 1)
              for q<floordiv(W - 1, 2) + 1>:
                let column = index(2*q + s - 1)
                let inside = row >= 0 & row < extent(H) & column >= 0 & column < extent(W)
                acc += x[n, c, 2*p + r - 1, 2*q + s - 1 if inside else 0.0F] * dy[n, o, p, q]
          partial[chunk, o, c, r, s] = acc

kernel update columns o<O>  ; the slots combined in order, and the update in its epilogue
  in partial: F[dw.chunks, O, C*9]
  out dw: F[O, C*9]
  inout w: F[O, C*9]
  for o<O> chunked:
    for e<9*C>:
      var total: F = 0.0F
      for slot<dw.chunks>:
        total += partial[slot, o, e]
      dw[o, e] = total
      w[o, e] += neg(total) * 0.5F
"""

SIZES = {"N": 3, "C": 2, "H": 6, "W": 5, "O": 3}


def convolution_feeds(dtype):
    random = np.random.default_rng(1)
    shapes = {"x": (3, 2, 6, 5), "w": (3, 2, 3, 3), "dy": (3, 3, 3, 3)}
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def windows(x):
    """Patches of the padded input: [N, C, P, Q, 3, 3]."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2]


@by_dtype
def test_padded_strided_convolution(short, dtype, tolerance):
    feeds = convolution_feeds(dtype)
    got = run_permuted(read(CONVOLUTION, short), {"x": feeds["x"], "w": feeds["w"]}, SIZES)
    close(got["y"], np.einsum("ncpqrs,ocrs->nopq", windows(feeds["x"]), feeds["w"]), tolerance)


@by_dtype
def test_convolution_input_gradient(short, dtype, tolerance):
    feeds = convolution_feeds(dtype)
    got = run_permuted(read(INPUT_GRADIENT, short), {"dy": feeds["dy"], "w": feeds["w"]}, SIZES)
    expected = np.zeros((3, 2, 8, 7))
    for r in range(3):
        for s in range(3):
            expected[:, :, r : r + 6 : 2, s : s + 6 : 2] += np.einsum(
                "nopq,oc->ncpq", feeds["dy"].astype(np.float64), feeds["w"][:, :, r, s]
            )
    close(got["gathered"], expected[:, :, 1:-1, 1:-1], tolerance)
    close(got["scattered"], expected[:, :, 1:-1, 1:-1], tolerance)


@by_dtype
def test_convolution_weight_gradient_and_update(short, dtype, tolerance):
    feeds = convolution_feeds(dtype)
    w = feeds.pop("w")
    got = run_permuted(read(WEIGHT_GRADIENT, short), feeds, SIZES, {"w": w})
    expected = np.einsum("ncpqrs,nopq->ocrs", windows(feeds["x"]), feeds["dy"].astype(np.float64))
    close(got["dw"], expected, tolerance)
    close(got["w"], w - 0.5 * expected, tolerance)


# -------------------------------------------------------------------------------- LSTM step under scan

LSTM = """
storage x: F[T, B, I] input
storage wx: F[4, H, I] input
storage wh: F[4, H, H] input
storage b: F[4, H] input
storage hs: F[T, B, H] output
storage last: F[B, H] output
output hs: F[T, B, H] = hs
output last: F[B, H] = last

kernel lstm rows i<B> cost (T*H*H)  ; the time loop inside the kernel; gates: input, forget, cell, output
  in x: F[T, B, I]
  in wx: F[4, H, I]
  in wh: F[4, H, H]
  in b: F[4, H]
  out hs: F[T, B, H]
  out last: F[B, H]
  for i<B> chunked:
    temp h: F[H]
    temp c: F[H]
    temp gates: F[4, H]
    for u<H>:
      h[u] = 0.0F
      c[u] = 0.0F
    for t<T>:
      for g<4>:
        for u<H>:
          var acc: F = b[g, u]
          for e<I>:
            acc += x[t, i, e] * wx[g, u, e]
          for e<H>:
            acc += h[e] * wh[g, u, e]
          gates[g, u] = acc
      for u<H>:
        let cell = sigmoid(gates[1, u]) * c[u] + sigmoid(gates[0, u]) * tanh(gates[2, u])
        let hidden = sigmoid(gates[3, u]) * tanh(cell)
        c[u] = cell
        h[u] = hidden
        hs[t, i, u] = hidden
    for u<H>:
      last[i, u] = c[u]
"""


@by_dtype
def test_lstm_under_scan(short, dtype, tolerance):
    random = np.random.default_rng(2)
    shapes = {"x": (5, 3, 2), "wx": (4, 4, 2), "wh": (4, 4, 4), "b": (4, 4)}
    feeds = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    got = run_permuted(read(LSTM, short), feeds, {"T": 5, "B": 3, "I": 2, "H": 4})
    x, wx, wh, b = (feeds[name].astype(np.float64) for name in ("x", "wx", "wh", "b"))
    h, c = np.zeros((3, 4)), np.zeros((3, 4))
    for t in range(5):
        z = np.einsum("be,gue->gbu", x[t], wx) + np.einsum("be,gue->gbu", h, wh) + b[:, None]
        sigmoid = 1 / (1 + np.exp(-z))
        c = sigmoid[1] * c + sigmoid[0] * np.tanh(z[2])
        h = sigmoid[3] * np.tanh(c)
        close(got["hs"][t], h, tolerance)
    close(got["last"], c, tolerance)


# -------------------------------------------------------------- the two kernels of the design document

DESIGN = """
storage a2: F[B, 16] input
storage w3: F[16, 10] input
storage b3: F[10] input
storage t: F[B, 10] input
storage y: i64[B] input
storage a3: F[B, 10] temporary
storage d3: F[B, 10] output
storage loss.slots: F[k3.chunks] temporary
storage db3.slots: F[k3.chunks, 10] temporary
storage loss: F[] output
storage db3: F[10] output
storage dz: F[B, 10] output
storage entropy.slots: F[k7.chunks] temporary
storage entropy: F[] output
output d3: F[B, 10] = d3
output loss: F[] = loss
output db3: F[10] = db3
output dz: F[B, 10] = dz
output entropy: F[] = entropy

kernel labels check i<B>
  in y: i64[B]
  for i<B> chunked:
    check y[i] >= 0 & y[i] < 10 at i

kernel k3 contract i<B> cost 160 granule 2  ; fc3, sigmoid, mse and their gradient   net.py:12 net.py:14
  in a2: F[B, 16]
  in w3: F[16, 10]
  in b3: F[10]
  in t: F[B, 10]
  out a3: F[B, 10]
  out d3: F[B, 10]
  out loss: F[k3.chunks] = loss.slots
  out db3: F[k3.chunks, 10] = db3.slots
  loss[chunk] = 0.0F
  for j<10>:
    db3[chunk, j] = 0.0F
  for i<B> chunked tile 6:
    for j<10> vector 2:
      var acc: F = 0.0F
      for k<16>:
        acc += a2[i, k] * w3[k, j]
      let a = sigmoid(acc + b3[j])
      a3[i, j] = a
      let e = a - t[i, j]
      let d = e * 0.25F * a * (1.0F - a)
      d3[i, j] = d
      loss[chunk] += e * e * 0.125F
      db3[chunk, j] += d

kernel k7 rows i<B>  ; softmax_cross_entropy and its gradient net.py:9
  in z: F[B, 10] = a3
  in y: i64[B]
  out dz: F[B, 10]
  out loss: F[k7.chunks] = entropy.slots
  loss[chunk] = 0.0F
  for i<B> chunked:
    temp e: F[10]
    var m: F = -inf_F
    for j<10> vector 1:
      m max= z[i, j]
    var s: F = 0.0F
    for j<10> vector 1:
      let p = exp(z[i, j] - m)
      e[j] = p
      s += p
    let label = y[i]
    for j<10> vector 1:
      dz[i, j] = (e[j] / s - F(j == label)) * 0.5F
    loss[chunk] += (m + log(s) - z[i, label]) * 0.5F

kernel combine columns
  in loss.slots: F[k3.chunks]
  in db3.slots: F[k3.chunks, 10]
  in entropy.slots: F[k7.chunks]
  out loss: F[]
  out db3: F[10]
  out entropy: F[]
  var total: F = 0.0F
  for c<k3.chunks>:
    total += loss.slots[c]
  loss[] = total
  var other: F = 0.0F
  for c<k7.chunks>:
    other += entropy.slots[c]
  entropy[] = other
  for j<10>:
    var sum: F = 0.0F
    for c<k3.chunks>:
      sum += db3.slots[c, j]
    db3[j] = sum
"""


@by_dtype
def test_the_kernels_of_the_design(short, dtype, tolerance):
    random = np.random.default_rng(3)
    shapes = {"a2": (5, 16), "w3": (16, 10), "b3": (10,), "t": (5, 10)}
    feeds = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    y = np.array([0, 9, 3, 3, 5])
    program = read(DESIGN, short)
    got = run_permuted(program, {**feeds, "y": y}, {"B": 5})
    a2, w3, b3, t = (feeds[name].astype(np.float64) for name in ("a2", "w3", "b3", "t"))
    a = 1 / (1 + np.exp(-(a2 @ w3 + b3)))
    d = (a - t) * 0.25 * a * (1 - a)
    close(got["d3"], d, tolerance)
    close(got["loss"], np.array(((a - t) ** 2).sum() * 0.125), tolerance)
    close(got["db3"], d.sum(0), tolerance)
    p = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    close(got["dz"], (p - np.eye(10)[y]) * 0.5, tolerance)
    close(got["entropy"], np.array(-np.log(p[np.arange(5), y]).sum() * 0.5), tolerance)
