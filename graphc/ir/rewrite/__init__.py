"""Rewrites of the graph, one file per pass: each is f(graph) -> graph on immutable input.

    recognise_losses   before differentiation: spelled-out losses become fused ops
    decompose          composite ops become primitive ones
    fold               constants are computed now
    identities         what holds for every value: x * 1, --x, a sum of equal terms
    canonical_views    chains of views become one
    fold_transposes    transposes become part of contraction specs
    insert_copies      last: every write of state has its node, every read its time

There is no pass that removes dead code: a Graph is its outputs and updates and what these depend on, and
rebuilding it reaches nothing else.
"""

from graphc.ir.rewrite.copies import insert_copies
from graphc.ir.rewrite.decompose import decompose
from graphc.ir.rewrite.fold import fold
from graphc.ir.rewrite.identities import identities
from graphc.ir.rewrite.recognise_losses import recognise_losses
from graphc.ir.rewrite.shapes import canonical_views
from graphc.ir.rewrite.transposes import fold_transposes

__all__ = [
    "canonical_views",
    "decompose",
    "fold",
    "fold_transposes",
    "identities",
    "insert_copies",
    "recognise_losses",
]
