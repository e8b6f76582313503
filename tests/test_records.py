"""graphc.records.dataclass against dataclasses.dataclass."""

import dataclasses
from typing import ClassVar

import pytest

from graphc import records


def classes(dataclass):
    @dataclass(frozen=True, slots=True)
    class Point:
        x: "int"
        y: "float" = 2.0
        tags: "list" = dataclasses.field(default_factory=list, compare=False)
        hidden: "str" = dataclasses.field(default="h", repr=False, hash=False)
        dimensions: "ClassVar[int]" = 2

        @property
        def norm(self):
            return self.x * self.x + self.y * self.y

    @dataclass(frozen=True)
    class Derived:
        a: "int"
        b: "int" = dataclasses.field(init=False)

        def __post_init__(self):
            object.__setattr__(self, "b", 2 * self.a)

    @dataclass
    class Plain:
        one: "int"
        two: "dict" = dataclasses.field(default_factory=dict)
        three: "int" = 3

    @dataclass(eq=False, slots=True)
    class Identity:
        one: "int" = 1

    @dataclass(frozen=True, slots=True)
    class Own:
        one: "int"

        def __hash__(self):
            return 7

        def __repr__(self):
            return "own"

    @dataclass(frozen=True, slots=True)
    class Empty:
        pass

    return Point, Derived, Plain, Identity, Own, Empty


@pytest.mark.parametrize("dataclass", [records.dataclass, dataclasses.dataclass], ids=["ours", "standard"])
def test_it_means_what_the_standard_one_means(dataclass):
    Point, Derived, Plain, Identity, Own, Empty = classes(dataclass)
    p = Point(1)
    assert (p.x, p.y, p.tags, p.hidden, p.norm) == (1, 2.0, [], "h", 5.0)
    assert repr(p).endswith("classes.<locals>.Point(x=1, y=2.0, tags=[])")
    assert p == Point(1, tags=[3]) and hash(p) == hash(Point(1, hidden="other"))
    assert p != Point(1, hidden="other") and p != Point(2) and p != (1, 2.0)
    assert Point(1).tags is not Point(1).tags and Point.dimensions == 2
    assert not hasattr(p, "__dict__") and not hasattr(Point, "tags.default")
    assert Point.__match_args__ == ("x", "y", "tags", "hidden")
    assert dataclasses.replace(p, y=3.0) == Point(1, 3.0)
    for change in (lambda: setattr(p, "x", 2), lambda: delattr(p, "x")):
        with pytest.raises(dataclasses.FrozenInstanceError, match="field 'x'"):
            change()
    with pytest.raises(TypeError, match=r"Point.__init__\(\) missing 1 required positional argument: 'x'"):
        Point()
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Point(1, z=2)
    assert Derived(4).b == 8 and dataclasses.replace(Derived(4), a=5) == Derived(5)
    with pytest.raises(TypeError, match="positional argument"):
        Derived(1, 2)
    plain = Plain(1)
    plain.one = 3
    assert Plain.three == 3 and plain == Plain(3) and plain.two is not Plain(3).two
    with pytest.raises(TypeError, match="unhashable"):
        hash(plain)
    assert Identity() != Identity() and isinstance(hash(Identity()), int)
    assert hash(Own(1)) == 7 and repr(Own(1)) == "own" and Own(1) == Own(1)
    assert Empty() == Empty() and hash(Empty()) == hash(Empty())
    match p:
        case Point(x, y):
            assert (x, y) == (1, 2.0)


def test_a_value_equals_itself_within_records_only():
    nan = float("nan")

    @records.dataclass(frozen=True, slots=True)
    class One:
        value: "float"

    assert One(nan) == One(nan) and One(nan) != One(float("nan"))
