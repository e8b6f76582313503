"""The lessons in `examples/`: each runs, and what it claims holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from graphc import data

EXAMPLES = Path(__file__).parent.parent / "examples"
LESSONS = sorted(path.stem for path in EXAMPLES.glob("[0-9]*.py"))
BACKENDS = ("native", "numpy", "python")


def lesson(name: str) -> ModuleType:
    """An example as a module (their names begin with digits, so `import` cannot)."""
    spec = importlib.util.spec_from_file_location(f"lesson_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def digits():
    pytest.importorskip("sklearn")
    return data.split(*data.load_digits(), 360, seed=1)


def test_every_lesson_is_numbered_and_tested():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name[:3] for name in LESSONS] == [f"{k:02d}_" for k in range(1, len(LESSONS) + 1)]
    assert all(f'"{name}"' in source for name in LESSONS)
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(LESSONS)


# ------------------------------------------------------------------------------------------------ 01_xand


@pytest.mark.parametrize("backend", BACKENDS)
def test_xand_gives_the_published_digits(backend):
    xand = lesson("01_xand")
    found = xand.digits(backend)
    for name, published in xand.PUBLISHED.items():
        # The digits are published to eight places or nine, the loss to sixteen.
        tolerance = 1e-15 if name == "loss" else 1e-8
        np.testing.assert_allclose(np.squeeze(found[name]), np.squeeze(published), rtol=0, atol=tolerance)


def test_xand_agrees_with_central_differences():
    xand = lesson("01_xand")
    exact = xand.digits()
    for name in ("W0", "B0", "W1", "B1"):
        np.testing.assert_allclose(xand.numeric_gradient(name), exact[f"d{name}"], rtol=0, atol=1e-9)


# ----------------------------------------------------------------------------------------- 02_temperature


@pytest.mark.parametrize("backend", BACKENDS)
def test_temperature_is_learned_to_ten_decimals(backend):
    found = lesson("02_temperature").temperature(backend=backend)
    assert abs(found["weight"] - 5 / 9) < 1e-10
    assert abs(found["bias"] + 160 / 9) < 1e-10
    assert abs(found["predict(32)"]) < 1e-10


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_points_above_the_line(backend):
    below, above, far = lesson("02_temperature").above_the_line(backend=backend)
    assert below < 0.01 and above > 0.99 and far > 0.99


def test_the_exercises():
    found = lesson("02_temperature").exercises()
    assert found["formula"] == "0.1 + 0.2"
    assert found["sigmoids"] == 1
    assert found["shared"] == "h1 = sigmoid(x * 2 + 1)\nh1 * h1 + h1"
    assert found["exponentials"] == 0
    assert found["macro"] == "x @ fc.weight.T + fc.bias"
    expected = np.exp([1.0, 2.0, 3.0]) / np.exp([1.0, 2.0, 3.0]).sum()
    np.testing.assert_allclose(found["softmax"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["cross entropy"], -np.log(expected[2]), rtol=1e-6)


# ----------------------------------------------------------------------------------------- 03_layer_class


def test_the_scalar_case():
    assert all(abs(difference) < 1e-15 for difference in lesson("03_layer_class").scalar_case().values())


@pytest.mark.parametrize(
    ("activation", "error"),
    [("sigmoid", "squares"), ("tanh", "squares"), ("identity", "squares"), ("softmax", "cross_entropy")],
)
def test_a_layers_gradients_are_those_by_hand(activation, error):
    differences = lesson("03_layer_class").layer_case(activation, error)
    assert set(differences) == {"dW", "dB", "dX"}
    assert max(differences.values()) < 1e-15


def test_softmax_and_cross_entropy_become_one_op():
    text = lesson("03_layer_class").fused_backward()
    assert "softmax_cross_entropy_dense" in text
    assert "log(" not in text and text.count("= softmax(") == 1


def test_two_layers_learn_exclusive_or():
    assert lesson("03_layer_class").train() < 1e-3


# -------------------------------------------------------------------------------------- 04_dag_of_layers


@pytest.mark.parametrize("backend", BACKENDS)
def test_weighted_losses_weigh_their_gradients(backend):
    dag = lesson("04_dag_of_layers")
    both = dag.gradients(dag.WEIGHTS, backend)
    fit = dag.gradients({"fit": 1.0, "steer": 0.0}, backend)
    steer = dag.gradients({"fit": 0.0, "steer": 1.0}, backend)
    for name, gradient in both.items():
        np.testing.assert_allclose(gradient, fit[name] + 0.25 * steer[name], rtol=1e-12, atol=1e-13)
    assert np.abs(both["stem.0.weight"]).max() > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_consumers_send_is_summed(backend):
    dag = lesson("04_dag_of_layers")
    parts = [dag.stem_derivative((name,), backend) for name in dag.CONSUMERS]
    assert all(np.abs(part).max() > 1e-3 for part in parts)
    np.testing.assert_allclose(dag.stem_derivative(backend=backend), sum(parts), rtol=1e-12, atol=1e-14)


def test_both_losses_fall():
    before, after = lesson("04_dag_of_layers").train()
    assert after["fit"] < before["fit"] / 50 and after["steer"] < before["steer"] / 50


# ----------------------------------------------------------------------------------- 05_mnist_three_routes


def test_both_networks_learn_the_digits(digits):
    routes = lesson("05_mnist_three_routes")
    losses, accuracy = routes.train_classifier(digits, 400)
    assert losses[-1] < losses[0] / 5 and accuracy > 0.8
    losses = routes.train_autoencoder(digits, 100)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_backwards_forwards_and_numbers_agree(digits, backend):
    compare = lesson("05_mnist_three_routes").compare_derivatives
    worst = compare(digits.images[:60], digits.labels[:60], per_parameter=6, backend=backend)
    assert worst["forwards"] < 1e-14
    assert worst["numerically"] < 1e-7


def test_evolution_learns_patterns_and_few_digits(digits):
    routes = lesson("05_mnist_three_routes")
    _, accuracy = routes.evolve(*routes.patterns(), 60)
    assert accuracy == 1
    infer, _ = routes.evolve(digits.images[:300], digits.labels[:300], 20)
    assert routes.accuracy(infer, digits.held_back_images, digits.held_back_labels) < 0.25


# --------------------------------------------------------------------------------------- 06_training_loop


def test_the_training_loop(digits, tmp_path):
    loop = lesson("06_training_loop")
    history, found = loop.train(digits, 12, tmp_path / "net.safetensors")
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "seconds"} <= set(history)
    assert len(history["loss"]) == 12 and history["loss"][-1] < history["loss"][0] / 5
    assert found["accuracy"] > 0.93
    assert found["accuracy"] == pytest.approx(history["val_accuracy"][-1])
    assert loop.goes_on_exactly(digits, tmp_path / "net.safetensors")


def test_the_callback_halves_the_rate_and_stops(digits, tmp_path):
    loop = lesson("06_training_loop")
    step = loop.build(64)
    callback = loop.HalveOnPlateau(step, patience=0, smallest=6e-4)
    training, held_back = loop.feeds_of(digits)
    step.fit(training, epochs=1, validation=held_back, callbacks=callback)
    rates = []
    with pytest.raises(loop.gx.StopTraining):
        for epoch in range(5):
            callback(epoch, {"val_loss": 1e9})
            rates.append(step.lr)
    assert rates == [1e-3]
    assert step.lr == 5e-4


# ------------------------------------------------------------------------------------------------- running


@pytest.mark.parametrize("name", ["01_xand", "02_temperature", "03_layer_class", "04_dag_of_layers"])
def test_a_lesson_prints_what_it_found(name, capsys):
    lesson(name).main()
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) >= 5 and "nan" not in printed


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("05_mnist_three_routes", ["--epochs", "3", "--generations", "2"]),
        ("06_training_loop", ["--epochs", "2"]),
    ],
)
def test_a_lesson_takes_the_small_digits_or_mnist(name, arguments, capsys, tmp_path):
    pytest.importorskip("sklearn")
    lesson(name).main(arguments)
    assert len(capsys.readouterr().out.splitlines()) >= 4
    with pytest.raises(lesson(name).gx.FeedError, match="expected are t10k"):
        lesson(name).main([*arguments, "--data", str(tmp_path)])
