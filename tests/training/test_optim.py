"""training/optim.py: learning rates point by point, LARS by hand, and each optimizer's settings."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from common.settings import TrainingSettings
from models import build_encoder
from training.optim import LARS, LearningRate, build_optimizer, build_optimizers, load_optimizer


def schedule(*, kind="cosine", epochs=20, warmup=10, optimizer_name="sgd", lr=0.1):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(optimizer_name, [parameter], lr=lr, weight_decay=0.0)
    return LearningRate(optimizer, optimizer_name=optimizer_name, kind=kind, epochs=epochs, warmup=warmup), optimizer


def rate_at(e, **settings):
    learning_rate, _ = schedule(**settings)
    learning_rate.set(e)
    return learning_rate.value


# Learning rate


@pytest.mark.parametrize(("epochs", "steps"), [(700, 46), (20, 10)])
def test_learning_rates_equal_the_originals(shared, epochs, steps):
    stored = json.loads((shared / "golden" / "learning_rate.json").read_text())["points"][f"epochs{epochs}_len{steps}"]
    points = {(point["epoch"], point["n"]): point for point in stored}
    learning_rate, optimizer = schedule(epochs=epochs)
    compared = 0
    for epoch in range(1, epochs + 1):
        for n in range(steps):
            used = learning_rate.value
            learning_rate.set(epoch - 1 + n / steps)
            assert optimizer.param_groups[0]["lr"] == learning_rate.value
            if (epoch, n) not in points:
                continue
            point = points.pop((epoch, n))
            # The original's hand-over artefact: the value set after (11, 1), which update (11, 2) uses.
            if (epoch, n) != (11, 2):
                assert used == pytest.approx(point["lr_used_by_update"], rel=1e-12)
                compared += 1
            if (epoch, n) != (11, 1):
                assert learning_rate.value == pytest.approx(point["lr_after_step"], rel=1e-12)
                compared += 1
    assert not points and compared == 2 * len(stored) - 2


@pytest.mark.parametrize(
    ("e", "settings", "expected"),
    [
        (0.0, {}, 0.1),
        (0.0, {"lr": 0.03}, 0.03),
        (5.0, {}, 0.55),
        (10.0, {}, 1.0),
        (10.0 + 1e-9, {}, 1.0),
        (15.0, {}, 0.5 * (1 + math.cos(math.pi / 4))),
        (20.0, {}, 0.5),
        (699.999, {"epochs": 700}, 0.5 * (1 + math.cos(math.pi * 689.999 / 700))),  # just above zero
        (1.0, {"warmup": 4, "kind": "step_decay"}, 0.325),
        (4.0, {"warmup": 4, "kind": "step_decay"}, 1.0),
        (0.0, {"warmup": 0}, 1.0),  # at the peak
        (5.0, {"warmup": 0}, 0.5 * (1 + math.cos(math.pi / 4))),
    ],
)
def test_warm_up_and_cosine_by_hand(e, settings, expected):
    assert rate_at(e, **settings) == pytest.approx(expected)
    if e == 0:  # what it starts with
        assert schedule(**settings)[0].value == pytest.approx(expected)


@pytest.mark.parametrize(("name", "factor"), [("sgd", 0.1), ("lars", 0.1), ("adam", 0.3)])
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(("after", "drops"), [(4.99, 0), (5.0, 1), (7.99, 1), (8.0, 2)])  # int(11 / 2), int(33 / 4)
def test_step_decay_counts_from_the_end_of_the_warm_up(name, factor, warmup, after, drops):
    rate = rate_at(warmup + after, kind="step_decay", epochs=11, warmup=warmup, optimizer_name=name, lr=0.02)
    assert rate == pytest.approx(0.2 * factor**drops)


# LARS


def lars_step(p, g, **settings):
    parameter = torch.nn.Parameter(torch.tensor(p, dtype=torch.float64))
    optimizer = LARS([parameter], **settings)
    for gradient in g:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(
    ("p", "gradients", "expected"),
    [
        # (0.5 + 0.1 * 2) * 0.001 * 2 / (0.5 + 0.1 * 2) = 0.002, times the rate 0.1
        (2.0, [0.5], 1.9998),
        # again: 0.9 * 0.002 + 0.0019998 = 0.0037998
        (2.0, [0.5, 0.5], 1.9998 - 0.00037998),
        # against the weight: (-0.5 + 0.2) * 0.001 * 2 / 0.7
        (2.0, [-0.5], 2.0 + 0.1 * 0.3 * 0.002 / 0.7),
        # no weight: factor 1 on the gradient; no gradient: factor 1 on 0.1 * 2
        (0.0, [0.5], -0.05),
        (2.0, [0.0], 1.98),
        (0.0, [0.0], 0.0),
    ],
)
def test_lars_of_one_number_by_hand(p, gradients, expected):
    assert lars_step(p, gradients, lr=0.1, weight_decay=0.1).item() == pytest.approx(expected, abs=1e-9)


def test_lars_equals_a_slow_loop_over_two_steps():
    generator = np.random.default_rng(0)
    start = [generator.normal(size=(3, 4)), generator.normal(size=5)]
    gradients = [[generator.normal(size=p.shape) for p in start] for _ in range(2)]
    expected, buffers = [p.copy() for p in start], [np.zeros_like(p) for p in start]
    lr, momentum, decay, trust = 0.7, 0.8, 0.01, 0.02
    for step in range(2):
        for number, p in enumerate(expected):
            g = gradients[step][number]
            p_norm, g_norm = math.sqrt((p**2).sum()), math.sqrt((g**2).sum())
            scaled = (g + decay * p) * trust * p_norm / (g_norm + decay * p_norm + 1e-8)
            buffers[number] = momentum * buffers[number] + scaled
            expected[number] = p - lr * buffers[number]
    parameters = [torch.nn.Parameter(torch.from_numpy(p)) for p in start]
    optimizer = LARS(parameters, lr=lr, momentum=momentum, weight_decay=decay, trust=trust)
    for step in range(2):
        for parameter, gradient in zip(parameters, gradients[step]):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    for parameter, value in zip(parameters, expected):
        assert np.allclose(parameter.detach().numpy(), value, rtol=0, atol=1e-12)


# Choice of the optimizer


def test_sgd_has_the_methods_settings():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer("sgd", [parameter], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        parameter.grad = torch.tensor([1.0])
        optimizer.step()
    # 1 - 0.1 * 1.5 = 0.85; buffer 0.9 * 1.5 + 1 + 0.5 * 0.85 = 2.775
    assert parameter.item() == pytest.approx(0.85 - 0.2775)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("adam", torch.optim.Adam, {"lr": 0.2, "betas": (0.9, 0.999), "weight_decay": 0.5}),
        ("lars", LARS, {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.5, "trust": 0.001}),
    ],
)
def test_adam_and_lars_have_the_methods_settings(name, kind, expected):
    optimizer = build_optimizer(name, [torch.nn.Parameter(torch.ones(1))], lr=0.2, weight_decay=0.5)
    assert type(optimizer) is kind
    assert {name: optimizer.param_groups[0][name] for name in expected} == expected


def test_the_encoder_and_its_probe_have_an_optimizer_each_and_the_schedule_is_the_encoders():
    encoder = build_encoder("resnet8", num_classes=3, shifts=4)
    settings = TrainingSettings(mode="semantic", optimizer="lars", lr_init=0.3, weight_decay=0.01, warmup=0, epochs=4)
    (main, probe), rate = build_optimizers(encoder, settings)
    assert type(main) is LARS and main.param_groups[0]["weight_decay"] == 0.01
    assert main.param_groups[0]["lr"] == rate.value == pytest.approx(3.0)
    group = probe.param_groups[0]
    assert type(probe) is torch.optim.Adam and (group["lr"], group["weight_decay"]) == (1e-3, 1e-6)
    assert {*map(id, group["params"])} == {*map(id, encoder.linear.parameters())}
    trained = {id(p) for optimizer in (main, probe) for p in optimizer.param_groups[0]["params"]}
    assert trained == {*map(id, encoder.parameters())}


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("device", "shape", "kernels"),
    [("cpu", (4, 3, 1, 1), "fused"), ("cpu", (4, 3, 3, 3), "fused"), ("meta", (4, 3, 1, 1), "foreach")],
)
def test_updates_are_fused_where_the_kernel_takes_the_layout(name, device, shape, kernels):
    optimizer = build_optimizer(name, [torch.nn.Parameter(torch.ones(shape, device=device))], lr=0.1, weight_decay=0.0)
    assert {key for key in ("fused", "foreach") if optimizer.defaults[key]} == {kernels}


@pytest.mark.parametrize("name", ["sgd", "adam", "lars"])
def test_an_optimizers_state_of_another_layout_is_taken_over_right(name):
    # torch's fused kernels on CPUs walk through memory, whatever the strides.
    start = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(3, 6, 5, 3, 3, generator=torch.Generator().manual_seed(1))

    def step(parameter, optimizer, gradient):
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()

    plain = torch.nn.Parameter(start.clone())
    optimizer = build_optimizer(name, [plain], lr=0.1, weight_decay=1e-2)
    for gradient in gradients[:2]:
        step(plain, optimizer, gradient)
    moved = torch.nn.Parameter(plain.detach().to(memory_format=torch.channels_last))
    resumed = build_optimizer(name, [moved], lr=0.1, weight_decay=1e-2)
    load_optimizer(resumed, deepcopy(optimizer.state_dict()))
    step(plain, optimizer, gradients[2])
    step(moved, resumed, gradients[2])
    assert all(v.stride() == moved.stride() for v in resumed.state[moved].values() if torch.is_tensor(v) and v.dim())
    torch.testing.assert_close(moved, plain, rtol=1e-6, atol=1e-6)


def test_an_optimizers_state_of_another_shape_is_refused():
    optimizer = build_optimizer("sgd", [torch.nn.Parameter(torch.ones(4))], lr=0.1, weight_decay=0.0)
    state = {**optimizer.state_dict(), "state": {0: {"momentum_buffer": torch.ones(2, 2)}}}
    with pytest.raises(ValueError, match=r"momentum_buffer of shape \(2, 2\) for a weight of \(4,\)"):
        load_optimizer(optimizer, state)
