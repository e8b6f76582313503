"""Random networks: drawn, run every way there is, compared, and shrunk where they differ.

A `Plan` is a list of lines of the DSL, so a failing one prints as a program that stands alone. `draw` makes
a plan from a seed, `check` runs it, `shrink` drops what a failure does not need.

The bound. With u the unit roundoff of the declared dtype, a result may differ from the float64
interpretation by

    8 u W M,   W = max over paths of sum over nodes (4 + sqrt(n)),   M = max(1, largest |value| computed)

where n is the number of elements that a reduction or contraction adds for each of its results (0 for other
nodes) and the path runs through the optimized graph, gradients and updates included: each node rounds a few
times, and n additions in any order err by about sqrt(n) u (Higham and Mary, "A new approach to probabilistic
rounding error analysis", SIAM J. Sci. Comput. 41, 2019). Ops are drawn so that each is Lipschitz with a
small constant where values go; what would be discontinuous is compared only away from its jumps.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

import graphc as gx
from graphc.ir.binding import bind_dims
from graphc.ir.interpret import evaluate_nodes, interpret
from graphc.ir.interpret_kernels import run_kernels
from graphc.ir.types import collect_guards, evaluate

SIZES = (1, 2, 3, 5, 7, 8, 9, 16, 17, 33)
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
TRIES = 4  # draws of feeds, until no comparison is close


@dataclass(frozen=True)
class Line:
    """One value: `code` with {0}, {1} ... for the names of `operands`."""

    name: str
    code: str
    operands: tuple = ()

    def text(self):
        return self.code.format(*self.operands)


@dataclass(frozen=True)
class Plan:
    """A network: its lines, which values are outputs, which are summed into a loss, and the optimizer."""

    seed: int
    dtype: str
    lines: tuple
    outputs: tuple
    losses: tuple
    optimizer: str
    batch: int
    exact: bool = False

    def program(self):
        """The plan as Python that builds it."""
        body = ["import graphc as gx", "import numpy as np", 'B = gx.dim("B")', f"gx.seed({self.seed})"]
        body += [f"{line.name} = {line.text()}" for line in self.lines]
        body.append(f"outputs = {{{', '.join(f'{name!r}: {name}' for name in self.outputs)}}}")
        if self.losses:
            mean = "{0}.sum()" if self.exact else "({0} * {0}).mean()"
            body.append(f"loss = {' + '.join(mean.format(name) for name in self.losses)}")
        else:
            body.append("loss = None")
        body.append(f"optimizer = {self.optimizer}")
        return "\n".join(body)

    def build(self):
        """(outputs, loss, optimizer): fresh tensors and parameters."""
        scope = {}
        exec(self.program(), scope)
        return scope["outputs"], scope["loss"], scope["optimizer"]


# ------------------------------------------------------------------------------------------------ drawing

BATCHES = (0, 1, 1, 2, 7, 13, 33, 64, 257)


class Drawer:
    """Adds lines at random; keeps the tensors to know shapes."""

    def __init__(self, seed, exact=False):
        self.rng = np.random.default_rng(seed)
        self.seed, self.exact = seed, exact
        self.dtype = str(self.rng.choice(["float32", "float64"], p=[0.7, 0.3]))
        self.lines, self.tensors = [], {}
        self.dim = gx.dim("B")
        self.scope = {"gx": gx, "np": np, "B": self.dim}
        self.weights = 0
        self.needs_rows = False

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def add(self, code, *operands):
        """A new value, or None if the DSL refuses it (shapes that do not fit)."""
        line = Line(f"v{len(self.lines)}", code, operands)
        try:
            with collect_guards() as guards:
                tensor = eval(line.text(), self.scope)
        except gx.GraphcError:
            return None
        if any(evaluate(a, {"B": n}) != evaluate(b, {"B": n}) for a, b, _ in guards for n in BATCHES[1:]):
            return None  # it would only run for some batches
        if not isinstance(tensor, gx.Tensor) or tensor.ndim > 4 or self.elements(tensor) > 6000:
            return None
        self.needs_rows = self.needs_rows or bool(guards)  # as the maximum over the batch does
        self.lines.append(line)
        self.tensors[line.name] = self.scope[line.name] = tensor
        return line.name

    def elements(self, tensor):
        return math.prod(evaluate(extent, {"B": 13}) for extent in tensor.shape)

    def floats(self):
        return [name for name, tensor in self.tensors.items() if tensor.dtype.is_float]

    def input(self, shape, dtype=None):
        text = "(" + "".join(f"{extent}, " for extent in shape) + ")"
        return self.add(f'gx.input("x{len(self.lines)}", {text}, dtype="{dtype or self.dtype}")')

    def parameter(self, shape):
        text = "(" + "".join(f"{extent}, " for extent in shape) + ")"
        init = '"normal"' if not self.exact else "lambda r, s: r.integers(-2, 3, s)"
        return self.add(f'gx.param("w{len(self.lines)}", {text}, init={init}, dtype="{self.dtype}")')

    def leaves(self):
        n = self.pick(SIZES)
        self.input(("B", n))
        if self.rng.random() < 0.5:
            self.input(("B", self.pick((n, self.pick(SIZES)))))
        if self.rng.random() < 0.3:
            self.input(("B", self.pick((2, 3, 5)), self.pick((n, 4))))
        self.parameter((n, self.pick(SIZES)))
        self.parameter((n,))
        if self.rng.random() < 0.3:
            self.parameter(())

    def step(self):
        kinds = [self.unary, self.binary, self.binary, self.reduction, self.product, self.shape, self.choice]
        self.pick(kinds if self.exact else [*kinds, self.normalised])()

    def recent(self):
        """A value, one of the last ones more often than not, so that graphs get deep."""
        names = self.floats()
        return self.pick(names[-4:]) if self.rng.random() < 0.6 else self.pick(names)

    def unary(self):
        exact = ["-{0}", "gx.maximum({0}, 0.0)", "gx.abs({0})", "gx.clip({0}, -3.0, 3.0)", "{0} * 2.0"]
        smooth = [
            "gx.tanh({0})",
            "gx.sigmoid({0})",
            "gx.sin({0})",
            "gx.cos({0})",
            "gx.exp(-gx.abs({0}))",
            "gx.softplus({0})",
            "gx.gelu({0})",
            "gx.silu({0})",
            "gx.erf({0})",
            "gx.relu({0})",
            "gx.leaky_relu({0}, 0.1)",
            "gx.elu({0})",
            "gx.log1p(gx.square({0}))",
            "gx.sqrt(gx.square({0}) + 1.0)",
            "gx.rsqrt(gx.square({0}) + 1.0)",
            "{0} / (gx.abs({0}) + 1.0)",
            "gx.stop_gradient({0}) * 0.5",
            "gx.expm1(gx.minimum({0}, 1.0))",
        ]
        self.add(self.pick(exact if self.exact else exact + smooth), self.recent())

    def binary(self):
        exact = ["{0} + {1}", "{0} - {1}", "gx.maximum({0}, {1})", "gx.minimum({0}, {1})"]
        smooth = ["gx.tanh({0}) * {1}", "{0} / (gx.square({1}) + 1.0)", "gx.sin({0}) * gx.cos({1})"]
        codes = [*exact, "gx.clip({0}, -2.0, 2.0) * {1}"] if self.exact else exact + smooth
        a = self.recent()
        partners = self.floats()
        self.rng.shuffle(partners)
        for b in partners[:6]:
            if self.add(self.pick(codes), a, b):
                return

    def axis(self, name):
        return self.pick(range(self.tensors[name].ndim))

    def reduction(self):
        a = self.recent()
        rank = self.tensors[a].ndim
        if rank == 0:
            return
        axes = sorted({self.axis(a) for _ in range(self.pick((1, 1, 2)))})
        axis = str(axes[0] if len(axes) == 1 else tuple(axes))
        keep = self.pick(("", ", keepdims=True"))
        fixed = all(isinstance(self.tensors[a].shape[x], int) for x in axes)
        names = ["sum"]
        if fixed and not self.exact:  # the gradient of max shares between ties: thirds are not exact
            names += ["max", "min", "mean", "logsumexp"]
        name = self.pick(names)
        code = f"gx.{name}({{0}}, axis={axis}{keep})"
        if name == "sum" and not self.exact:
            code = f"gx.tanh(gx.sum({{0}} * 0.125, axis={axis}{keep}))"
        self.add(code, a)

    def product(self):
        a = self.recent()
        shape = self.tensors[a].shape
        if not shape or not isinstance(shape[-1], int):
            return
        k = shape[-1]
        partners = [n for n in self.floats() if k in self.tensors[n].shape[-2:]]
        if self.rng.random() < 0.4 and self.weights < 4:
            self.weights += 1
            made = self.parameter((k, self.pick(SIZES)))
            partners = partners if made is None else [made]
        scale = "" if self.exact else f" * {1 / math.sqrt(max(k, 1)):.4f}"
        self.rng.shuffle(partners)
        for b in partners[:4]:
            left = "gx.clip({0}, -2.0, 2.0)" if self.exact else "{0}"
            turned = "{1}" if self.tensors[b].ndim < 2 else self.pick(("{1}", "gx.swapaxes({1}, -1, -2)"))
            if self.add(f"({left} @ {turned}){scale}", a, b):
                return

    def shape(self):
        a = self.recent()
        tensor = self.tensors[a]
        if tensor.ndim == 0:
            return
        axis = self.axis(a)
        extent = tensor.shape[axis]
        codes = ["gx.transpose({0})", f"gx.flip({{0}}, {axis})", f"gx.expand_dims({{0}}, {axis})"]
        codes += [f"gx.concat([{{0}}, {{0}} * 2.0], {axis})", f"gx.stack([{{0}}, -{{0}}], {axis})"]
        if isinstance(extent, int):
            where = ":, " * axis
            codes += [f"{{0}}[{where}{extent // 2}:]", f"{{0}}[{where}::-1]", f"{{0}}[{where}::2]"]
            widths = [(1, 2) if x == axis else (0, 0) for x in range(tensor.ndim)]
            codes += [f"gx.pad({{0}}, {widths}, constant_values=1.0)"]
            if extent > 0:
                codes += [f"{{0}}[{where}{extent - 1}]"]
            codes += [
                f"gx.cumsum({{0}} * {1.0 if self.exact else 0.125}, {axis}, reverse={self.pick((0, 1)) == 1})"
            ]
            codes += ["gather"]
        if tensor.ndim == 2 and isinstance(tensor.shape[1], int):
            codes += [f"{{0}}.reshape({tensor.shape[0]} * {tensor.shape[1]})"]
        code = self.pick(codes)
        if code != "gather":
            self.add(code, a)
        elif extent > 0:
            count = self.pick((1, 3, extent))
            indices = [int(self.rng.integers(extent)) for _ in range(count)]
            self.add(f"gx.take({{0}}, np.array({indices}, dtype=np.int32), {axis})", a)

    def choice(self):
        a, b = self.recent(), self.recent()
        self.add("gx.where({0} > 0.25, {0}, {1})", a, b)

    def normalised(self):
        a = self.recent()
        shape = self.tensors[a].shape
        axes = [x for x, extent in enumerate(shape) if isinstance(extent, int) and extent > 0]
        if axes:
            axis = self.pick(axes)
            self.add(
                self.pick(
                    (
                        f"gx.softmax({{0}}, axis={axis})",
                        f"gx.log_softmax({{0}}, axis={axis}) * 0.25",
                        f"({{0}} - gx.mean({{0}}, {axis}, True)) / (1.0 + gx.var({{0}}, {axis}, True))",
                    )
                ),
                a,
            )


OPTIMIZERS = (
    "None",
    "gx.optim.SGD(lr=0.1)",
    "gx.optim.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)",
    "gx.optim.Adam(lr=0.01, eps=0.01)",
    "gx.optim.RMSProp(lr=0.01, eps=0.01)",
    "gx.optim.Adagrad(lr=0.01, eps=0.01)",
    "gx.optim.SGD(lr=0.1, clip_norm=1.0)",
)


def draw(seed, exact=False, steps=None):
    """The plan of a seed. `exact` draws ops and values on which float arithmetic makes no error."""
    drawer = Drawer(seed, exact)
    drawer.leaves()
    for _ in range(steps or int(drawer.rng.integers(4, 22))):
        drawer.step()
    names = drawer.floats()
    leaves = sum("gx.input" in line.code or "gx.param" in line.code for line in drawer.lines)
    computed = [n for n in names if n in {line.name for line in drawer.lines[leaves:]}] or names
    outputs = {computed[-1], *(drawer.pick(computed) for _ in range(int(drawer.rng.integers(0, 4))))}
    losses = {computed[-1], drawer.pick(computed)} if drawer.rng.random() < 0.75 else set()
    batch = int(drawer.pick(BATCHES[1:] if drawer.needs_rows else BATCHES))
    optimizer = drawer.pick(OPTIMIZERS) if losses and not exact else "None"
    plan = Plan(
        seed,
        drawer.dtype,
        tuple(drawer.lines),
        tuple(sorted(outputs)),
        tuple(sorted(losses)),
        optimizer,
        batch,
        exact,
    )
    return pruned(plan)


def pruned(plan):
    """The plan without lines that nothing needs; without a loss or optimizer that reaches no parameter."""
    needed = {*plan.outputs, *plan.losses}
    kept = []
    for line in reversed(plan.lines):
        if line.name in needed:
            kept.append(line)
            needed.update(line.operands)
    lines = tuple(reversed(kept))
    reached = set(plan.losses)
    for line in kept:
        if line.name in reached:
            reached.update(line.operands)
    if not any(line.name in reached and "gx.param" in line.code for line in lines):
        return replace(plan, lines=lines, losses=(), optimizer="None")
    return replace(plan, lines=lines)


def feeds_for(inputs, plan, attempt=0):
    """Arrays for the inputs of a plan: normal values, or small integers."""
    rng = np.random.default_rng([plan.seed, plan.batch, attempt])
    feeds = {}
    for name, node in sorted(inputs.items()):
        shape = tuple(evaluate(extent, {"B": plan.batch}) for extent in node.types[0].shape)
        values = rng.integers(-3, 4, shape) if plan.exact else rng.normal(size=shape)
        feeds[name] = np.asarray(values).astype(node.types[0].dtype.numpy)
    return feeds


# --------------------------------------------------------------------------------------------- comparing


@dataclass
class Outcome:
    """What a check found. `problems` is empty where everything agrees; `worst` is error / bound."""

    problems: list = field(default_factory=list)
    worst: float = 0.0
    kind: str = "compared"


def path_weight(graph, bindings):
    """W of the module's docstring."""
    weights = {}
    for node in graph.nodes():
        added = 0.0
        if node.op.family in ("reduce", "contract", "scan"):
            size = math.prod(evaluate(e, bindings) for e in node.types[0].shape)
            operand = max(math.prod(evaluate(e, bindings) for e in o.shape) for o in node.inputs)
            if node.op.family == "contract":
                left, right = (math.prod(evaluate(e, bindings) for e in o.shape) for o in node.inputs)
                added = math.sqrt(math.sqrt(left * right / max(size, 1)))
            elif node.op.family == "scan":
                added = math.sqrt(evaluate(node.types[0].shape[node.attrs["axis"]], bindings))
            else:
                added = math.sqrt(operand / max(size, 1))
        own = 4 + added if node.op.family != "leaf" else 1
        weights[node] = own + max((weights[o.node] for o in node.inputs), default=0.0)
    return max(weights.values())


def largest(values):
    finite = [
        float(np.abs(v[np.isfinite(v)]).max(initial=0.0)) for v in values.values() if v.dtype.kind == "f"
    ]
    return max(1.0, *finite) if finite else 1.0


def is_close_call(graph, wide, narrow, tolerance):
    """Whether some comparison of the graph has operands nearer than the error that they may have."""
    for node in graph.nodes():
        if node.name not in COMPARISONS or not node.inputs[0].dtype.is_float:
            continue
        a, b = (wide[operand] for operand in node.inputs)
        same = np.array_equal(wide[node.inputs[0]] == b, narrow[node.inputs[0]] == narrow[node.inputs[1]])
        near = (a != b) & (abs(a - b) <= tolerance)
        if not same or near.any():
            return True
    return False


def check(plan, executables=True):
    """Builds, compiles and runs a plan every way; returns an Outcome. Errors of the compiler propagate."""
    outputs, loss, optimizer = plan.build()
    exe = gx.compile(outputs, loss=loss, optimizer=optimizer)
    stages = exe.ir
    start = exe.state_dict()
    if exe._plan is not None:
        for variable, rate in zip(exe._plan.lr_variables, exe.learning_rates, strict=True):
            variable.array[...] = rate
    outcome = Outcome()
    roots = [*stages.optimized.roots]
    for attempt in range(TRIES):
        feeds = feeds_for(exe.inputs, plan, attempt)
        bindings = bind_dims(exe.inputs, feeds)
        wide = evaluate_nodes(roots, feeds, precision="float64", bindings=bindings)
        narrow = evaluate_nodes(roots, feeds, bindings=bindings)
        unit = float(np.finfo(plan.dtype).eps) / 2
        bound = 8 * unit * path_weight(stages.optimized, bindings) * largest(wide)
        if not is_close_call(stages.optimized, wide, narrow, 0.0 if plan.exact else bound):
            break
    else:
        outcome.kind = "near a jump"
    if plan.exact:
        bound = 0.0
        if largest(wide) >= 2 ** (23 if plan.dtype == "float32" else 52):
            outcome.kind = "too large for exact floats"
    expected, updates = interpret(stages.joint, feeds, precision="float64", bindings=bindings)
    expected |= {variable.name: value for variable, value in updates.items()}
    results = {"native": _run(exe, feeds, 1)}
    exe.load_state_dict(start)
    results["python"] = _run_python(stages.kernels, exe, feeds, bindings)
    if outcome.kind == "compared":
        for backend, found in results.items():
            _compare(outcome, backend, found, expected, bound)
    exe.load_state_dict(start)
    again = _run(exe, feeds, 8)
    for label, value in results["native"].items():
        if value.tobytes() != again[label].tobytes():
            outcome.problems.append(f"{label}: 1 and 8 threads give different bytes")
    exe.load_state_dict(start)
    _check_text(outcome, stages, exe, feeds, bindings, results["python"])
    return outcome


def _compare(outcome, backend, found, expected, bound):
    for label, value in expected.items():
        got = found[label]
        if got.shape != value.shape:
            outcome.problems.append(f"{backend} {label}: shape {got.shape}, expected {value.shape}")
            continue
        finite = np.isfinite(value)
        with np.errstate(all="ignore"):
            error = np.where(finite, abs(got.astype(np.float64) - value), 0.0)
        bad = ~(error <= bound) | (~finite & ~((got == value) | (np.isnan(got) & np.isnan(value))))
        if bound:
            outcome.worst = max(outcome.worst, float(error.max(initial=0.0)) / bound)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            outcome.problems.append(
                f"{backend} {label}: {int(bad.sum())} of {bad.size} differ by more than {bound:.2g}, "
                f"first at {at}: {got[at]!r}, expected {value[at]!r}"
            )


def _run(exe, feeds, threads):
    gx.set_num_threads(threads)
    found = dict(exe.run_labelled(feeds))
    if exe.gradient_outputs:
        found |= {f"grad.{name}": array.copy() for name, array in exe.grads.items()}
    return found | {variable.name: variable.array.copy() for variable in exe.ir.optimized.updates}


def _run_python(kernels, exe, feeds, bindings):
    """The kernel interpreter with chunks in random order."""
    state = {s.name: s.variable.array.copy() for s in kernels.storages.values() if s.kind == "state"}
    found = run_kernels(kernels, feeds, state, bindings, seed=1)
    return found | {variable.name: state[variable.name] for variable in exe.ir.optimized.updates}


def _check_text(outcome, stages, exe, feeds, bindings, python):
    """The printed graph and kernels parse back to what prints the same and gives the same results."""
    from graphc.ir.text import parse, print_graph
    from graphc.ir.text_kernels import print_kernels

    known = {s.name: s.variable for s in stages.kernels.storages.values() if s.kind == "state"}
    known |= {v.name: v for v in stages.optimized.variables().values()}
    known |= {
        f"const.d{s.data.digest}": s.data.array
        for s in stages.kernels.storages.values()
        if s.data is not None
    }
    known |= {
        n.attrs["data"].digest: n.attrs["data"].array
        for n in stages.optimized.nodes()
        if n.name == "constant"
    }
    text = print_kernels(stages.kernels)
    kernels = parse(text, known)
    if print_kernels(kernels) != text:
        outcome.problems.append("the kernels print differently after parsing")
    again = _run_python(kernels, exe, feeds, bindings)
    for label, value in python.items():
        if value.tobytes() != again[label].tobytes():
            outcome.problems.append(f"{label}: parsed kernels give other results")
    text = print_graph(stages.optimized)
    graph = parse(text, known)
    if print_graph(graph) != text:
        outcome.problems.append("the graph prints differently after parsing")
    before, after = (interpret(g, feeds, bindings=bindings)[0] for g in (stages.optimized, graph))
    for label, value in before.items():
        if value.tobytes() != after[label].tobytes():
            outcome.problems.append(f"{label}: the parsed graph gives other results")


# --------------------------------------------------------------------------------------------- shrinking


def outcome_of(plan):
    """`check`, with an exception as a problem like others."""
    try:
        return check(plan)
    except gx.GraphcError as error:
        return Outcome([f"{type(error).__name__}: {error}"], kind="refused")
    except (AssertionError, LookupError, ArithmeticError, TypeError, ValueError) as error:
        return Outcome([f"crash {type(error).__name__}: {error}"], kind="crashed")


def failure_of(plan):
    """A description of what goes wrong with a plan, '' if nothing does."""
    return "; ".join(outcome_of(plan).problems)


def shrink(plan, budget=60):
    """A smaller plan that fails the same way: fewer outputs, no loss, lines replaced by their operands."""

    def kind(text):
        return text.split(":")[0].split(" ")[0]

    wanted = kind(failure_of(plan))
    changed = True
    while changed and budget > 0:
        changed = False
        for candidate in _smaller(plan):
            budget -= 1
            if budget <= 0:
                break
            try:
                candidate.build()
            except (gx.GraphcError, NameError):
                continue
            if kind(failure_of(candidate)) == wanted:
                plan, changed = candidate, True
                break
    return plan


def _smaller(plan):
    if plan.optimizer != "None":
        yield replace(plan, optimizer="None")
    if plan.losses:
        yield pruned(replace(plan, losses=(), optimizer="None"))
    for dropped in plan.losses if len(plan.losses) > 1 else ():
        yield pruned(replace(plan, losses=tuple(n for n in plan.losses if n != dropped)))
    for dropped in plan.outputs if len(plan.outputs) > 1 else ():
        yield pruned(replace(plan, outputs=tuple(n for n in plan.outputs if n != dropped)))
    for line in reversed(plan.lines):
        for operand in line.operands:

            def renamed(name, line=line, operand=operand):
                return operand if name == line.name else name

            lines = tuple(
                replace(other, operands=tuple(renamed(n) for n in other.operands))
                for other in plan.lines
                if other is not line
            )
            yield pruned(
                replace(
                    plan,
                    lines=lines,
                    outputs=tuple(dict.fromkeys(renamed(n) for n in plan.outputs)),
                    losses=tuple(dict.fromkeys(renamed(n) for n in plan.losses)),
                )
            )


def report(plan):
    """The failure of a plan, shrunk, as text with a program that builds it."""
    small = shrink(plan)
    head = f"seed {plan.seed}, batch {plan.batch}: {failure_of(plan)}"
    return f"{head}\nshrunk: {failure_of(small)}\n{small.program()}"
