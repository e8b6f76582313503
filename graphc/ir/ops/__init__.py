"""The ops, one file per family. Importing this package fills the table `OPS`."""

from graphc.ir.ops import (  # noqa: F401
    activations,
    composite,
    contract,
    elementwise,
    leaf,
    move,
    reduce,
    view,
)
from graphc.ir.ops.base import OPS, OpDef

__all__ = ["OPS", "OpDef"]
