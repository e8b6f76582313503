"""Lays out the operands of contractions so that vectors run along memory; outer products become maps."""

from __future__ import annotations

from graphc.ir.clusters import splits
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.machine import DEFAULT, Machine
from graphc.ir.ops.contract import split_spec
from graphc.ir.ops.reduce import spread
from graphc.ir.rebuild import rebuild
from graphc.ir.types import Shape, TensorType, floordiv

COLLIDING_BYTES = 1024
"""Rows this far apart, or a multiple of it, share few sets of a cache."""
SPACING = 16  # elements
COLLIDING_ROWS = 64


def rows_collide(type: TensorType) -> bool:
    """Whether a column of a matrix maps to so few cache sets that a product would keep evicting it."""
    if type.rank < 2 or not isinstance(type.shape[-1], int):
        return False
    rows = type.shape[-2]
    few = isinstance(rows, int) and rows < COLLIDING_ROWS
    return not few and type.shape[-1] > 0 and type.shape[-1] * type.dtype.itemsize % COLLIDING_BYTES == 0


def _is_leaf(operand: Operand) -> bool:
    """Whether an operand lies where the user put it (what is computed is laid out when it is stored)."""
    return operand.node.name in ("input", "parameter", "constant")


def _spaced(builder: GraphBuilder, operand: Operand) -> Operand:
    """A copy of an operand, with a gap after each row where rows would collide in cache."""
    if not rows_collide(operand.type):
        return builder("copy", operand)
    return builder("copy", operand, spacing=SPACING)


PANEL_BYTES = 2**16
"""Operands smaller than this stay in cache as they are."""
TURNED_COLUMNS = 128
"""Columns of a result from which on it pays to turn a left operand that is read down its columns."""
PANEL_ROWS = 16
"""Rows of a result below which a panel would not be read often enough to pay for its copy."""


TILE_COLUMNS = 16
"""Whole vectors and register tiles, whatever the processor, divide this many columns."""


def lies_turned(type: TensorType) -> bool:
    """Whether the copies of a product that is added up in parts lie with its axes exchanged.

    The lanes of a product run along the last axis of its result. Where that is the longer one by far, each
    tile of rows would read the operand behind it again; with the shorter one last, one tile spans it, the
    large operand is read once, element by element, and needs no alignment.
    """
    if type.rank != 2:
        return False
    rows, columns = type.shape
    if not isinstance(rows, int) or not isinstance(columns, int) or rows % TILE_COLUMNS:
        return False
    return 0 < rows <= 2 * TILE_COLUMNS and columns >= 4 * rows


def panel_of(node: Node) -> int:
    """The width of the panels in which a node is stored; 0 if it is not."""
    return int(node.attrs.get("panel", 0)) if node.name == "copy" else 0


def _tile_width(node: Node, machine: Machine) -> int:
    """The columns of a register tile."""
    return machine.tile_vectors * machine.vector_bytes // node.types[0].dtype.itemsize


def _strains_caches(node: Node, order: str, operand: Operand, machine: Machine) -> bool:
    """Whether the tiles of many rows each pass over all of an operand, column by column of tiles, and it
    does not stay in the first-level cache."""
    result = node.types[0]
    columns = result.shape[-1]
    if len(order) != 2 or splits(node) or not isinstance(columns, int):
        return False
    if columns <= _tile_width(node, machine):
        return False
    size, rows = operand.type.nbytes, floordiv(result.size, columns)
    large = not isinstance(size, int) or size >= PANEL_BYTES
    often = not isinstance(rows, int) or rows >= PANEL_ROWS
    return large and often and result.dtype.is_float


def _panel_width(node: Node, order: str, operand: Operand, machine: Machine) -> int:
    """The width of panels for an operand whose last axis is to be the result's; 0 for none."""
    width, columns = _tile_width(node, machine), node.types[0].shape[-1]
    strains = _strains_caches(node, order, operand, machine)
    return width if strains and isinstance(columns, int) and columns % width == 0 else 0


def _runs_down(node: Node, order: str, result: str, operand: Operand) -> bool:
    """Whether a product sums down the columns of a large left operand, again for every panel of the right.

    Each row of a tile then takes one element of every memory row; turned, it takes whole lines.
    """
    if len(order) != 2 or order[0] in result or splits(node):
        return False
    size, columns = operand.type.nbytes, node.types[0].shape[-1]
    large = not isinstance(size, int) or size >= PANEL_BYTES
    return large and isinstance(columns, int) and columns >= TURNED_COLUMNS


def _is_better_turned(
    node: Node, letters: list[str], result: str, operands: list[Operand], m: Machine
) -> bool:
    """Whether a product is better computed with the axes of its result exchanged, and turned afterwards.

    An operand that the user feeds would have to be copied into panels before its columns can be the lanes',
    or be read across cache lines where they make no whole panels. With the axes exchanged it is read element
    by element, which needs no alignment and no copy, a line at a time, while the other operand is computed
    and can be stored in panels at once. That pays where the result is small enough to be turned in the
    cache, and has few columns then, as each panel of them passes over the whole operand.
    """
    type = node.types[0]
    if len(result) != 2 or any(len(order) != 2 for order in letters) or splits(node):
        return False
    (fed, order), (other, others) = zip(operands, letters, strict=True)
    if result[-1] not in order:
        (fed, order), (other, others) = (other, others), (fed, order)
    rows, width = type.shape[0], _tile_width(node, m)
    if not isinstance(rows, int) or not isinstance(type.nbytes, int):
        return False
    if not _strains_caches(node, order, fed, m):
        return False
    is_fed = fed.node.name == "input" and order[-1] == result[-1]
    is_ready = not _is_leaf(other) and others[-1] == result[0] and rows % width == 0
    return is_fed and is_ready and width < rows < TURNED_COLUMNS and type.nbytes <= m.cache_bytes[1]


def lay_out(graph: Graph, machine: Machine = DEFAULT) -> Graph:
    """Copies an operand of a contraction whose vectors would run across memory into the order they need.

    The lanes of a contraction run along the last axis of its result. The operand that has this axis is
    read in whole vectors only if it is that operand's last one too; a transposing copy costs one pass
    over the operand, a strided access in the innermost loop one per row of the result. The same goes for
    an operand whose rows collide in cache. A large one is stored in panels as wide as the register tile;
    a large other operand that is read down its columns is turned.

    Needs transposes folded into specs (else the copy would be of a view). Guarantees that the operand
    with the result's last letter has it last, unless that axis has an extent of 1; and that a contraction
    sums over something: one product for each element of the result is a map, and fuses like one.
    """

    def rule(builder: GraphBuilder, node: Node, inputs: tuple[Operand, ...]) -> list[Operand] | None:
        if node.name != "contract":
            return None
        left, right, result = split_spec(node.attrs["spec"])
        if set(left) | set(right) == set(result):
            factors = [
                _repeated(builder, operand, letters, result, node.types[0].shape)
                for operand, letters in zip(inputs, (left, right), strict=True)
            ]
            return [builder("mul", *factors)]
        if not result or node.types[0].shape[-1] == 1:
            return None
        letters, operands = [left, right], list(inputs)
        if _is_better_turned(node, letters, result, operands, machine):
            turned = builder("contract", *inputs, spec=f"{left},{right}->{result[::-1]}")
            (product,) = rule(builder, turned.node, inputs) or [turned]
            return [builder.transpose(product, (1, 0))]
        for position in (0, 1):
            order = letters[position]
            if result[-1] not in order:
                if _runs_down(node, order, result, operands[position]):
                    operands[position] = builder("copy", builder.transpose(operands[position], (1, 0)))
                    letters[position] = order[::-1]
                continue
            wanted = order.replace(result[-1], "") + result[-1]
            collides = _is_leaf(operands[position]) and rows_collide(operands[position].type)
            panel = _panel_width(node, order, operands[position], machine)
            if wanted == order and not collides and not panel:
                continue
            turned = builder.transpose(operands[position], [order.index(letter) for letter in wanted])
            if panel:
                operands[position] = builder("copy", turned, panel=panel)
            else:
                operands[position] = _spaced(builder, turned)
            letters[position] = wanted
        if operands == list(inputs):
            return None
        return [builder("contract", *operands, spec=f"{letters[0]},{letters[1]}->{result}")]

    return rebuild(graph, rule, "lay_out")


def _repeated(b: GraphBuilder, operand: Operand, letters: str, result: str, shape: Shape) -> Operand:
    """An operand of a contraction with its axes in the order of the result's, and repeated along the rest."""
    order = [letters.index(letter) for letter in result if letter in letters]
    missing = [position for position, letter in enumerate(result) if letter not in letters]
    return spread(b, b.transpose(operand, order), missing, shape)
