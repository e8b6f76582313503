"""Every exception that graphc raises. All derive from `GraphcError`.

Several also derive from the builtin that a numpy user would expect to catch
(`ShapeError` is a `ValueError`, `IndexRangeError` an `IndexError`, and so on).
"""

from __future__ import annotations


class GraphcError(Exception):
    """Base class of every error that graphc raises on purpose."""


class ShapeError(GraphcError, ValueError):
    """Shapes that do not fit together, at declaration or at run time."""


class DTypeError(GraphcError, TypeError):
    """A dtype that an operation does not accept."""


class DeclarationError(GraphcError, ValueError):
    """A network that cannot be built as declared (bad name, bad argument, a cycle, ...)."""


class FeedError(GraphcError, ValueError):
    """A feed given to `run` that is missing, unknown, or does not fit its input."""


class IndexRangeError(GraphcError, IndexError):
    """A label, token id or other index that lies outside its axis, found while running."""


class NotDifferentiableError(GraphcError, TypeError):
    """A gradient was asked for through an operation that declares it has none."""


class LoweringError(GraphcError, NotImplementedError):
    """An operation that the chosen backend cannot lower."""


class ParseError(GraphcError, ValueError):
    """IR text that does not parse. `line` and `column` are 1-based."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"{message} (line {line}, column {column})")
        self.line = line
        self.column = column


class VerifyError(GraphcError, AssertionError):
    """An IR that breaks its stage's rules, or a pass that changed results."""


class StateError(GraphcError, ValueError):
    """A state dict or file that does not fit the parameters; nothing was changed."""


class UsageError(GraphcError, TypeError):
    """A use that is refused by design: copying tensors, pickling executables, `bool(tensor)`."""


class StopTraining(GraphcError):
    """Raised by a callback of `fit` to end training after the current epoch, without an error."""
