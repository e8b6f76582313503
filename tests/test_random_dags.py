"""200 random networks, run every way there is (`benchmarks/random_dags.py` draws thousands)."""

from collections import Counter

import pytest
import random_dags

import graphc as gx

BLOCKS = 20
PER_BLOCK = 10
kinds = Counter()


@pytest.fixture(autouse=True)
def threads_as_before():
    yield
    gx.set_num_threads(2)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_networks_agree_on_every_backend(block):
    for seed in range(block * PER_BLOCK, (block + 1) * PER_BLOCK):
        plan = random_dags.draw(seed, exact=seed % 5 == 4)
        outcome = random_dags.outcome_of(plan)
        if outcome.problems:
            pytest.fail(random_dags.report(plan))
        kinds[outcome.kind, plan.exact] += 1


def test_most_networks_were_compared_and_cover_what_they_should():
    if sum(kinds.values()) < BLOCKS * PER_BLOCK:
        pytest.skip("needs all blocks in one process")
    assert kinds["compared", False] > 120
    assert kinds["compared", True] > 30
    plans = [random_dags.draw(seed, exact=seed % 5 == 4) for seed in range(BLOCKS * PER_BLOCK)]
    assert {plan.batch for plan in plans} >= {0, 1, 7, 257}
    assert {plan.dtype for plan in plans} == {"float32", "float64"}
    assert {plan.optimizer for plan in plans} == set(random_dags.OPTIMIZERS)
    text = "\n".join(plan.program() for plan in plans)
    for name in (
        "@",
        "gx.sum",
        "gx.max",
        "gx.softmax",
        "gx.concat",
        "gx.take",
        "gx.cumsum",
        "gx.where",
        "gx.pad",
    ):
        assert name in text, name


def test_a_plan_is_the_same_for_the_same_seed():
    assert random_dags.draw(17) == random_dags.draw(17)
    assert random_dags.draw(17) != random_dags.draw(18)


def test_a_wrong_result_is_reported_with_a_smaller_program(monkeypatch):
    """Native results that are off by more than the bound are found and shrunk to what makes them."""
    original = random_dags._run

    def wrong(exe, feeds, threads):
        found = original(exe, feeds, threads)
        if any(node.name == "softmax" for node in exe.ir.graph.nodes()):
            found = {label: value + 1 for label, value in found.items()}
        return found

    seed = next(
        s for s in range(100) if random_dags.draw(s).batch > 0 and "softmax" in random_dags.draw(s).program()
    )
    plan = random_dags.draw(seed)
    monkeypatch.setattr(random_dags, "_run", wrong)
    text = random_dags.report(plan)
    assert "differ by more than" in text and "gx.softmax" in text
    small = random_dags.shrink(plan)
    assert len(small.lines) < len(plan.lines)
    scope = {}
    exec(small.program(), scope)
    assert scope["outputs"]
