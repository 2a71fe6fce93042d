"""models/convolution.py: the weight gradient by matrix products against torch's own, and where it is taken."""

import pytest
import torch
from torch import nn

from models import build_encoder
from models.convolution import CHANNELS, MAP, Conv2d, weight_gradient

SHAPES = [  # image, kernel, stride, padding
    ((4, 4), (3, 3), (1, 1), (1, 1)),
    ((8, 8), (3, 3), (2, 2), (1, 1)),
    ((7, 8), (3, 3), (2, 2), (1, 1)),
    ((2, 2), (3, 3), (1, 1), (1, 1)),
    ((1, 1), (3, 3), (1, 1), (1, 1)),  # eight of the nine places see nothing but padding
    ((2, 5), (1, 3), (1, 2), (0, 2)),
    ((6, 5), (2, 4), (3, 1), (0, 1)),
    ((5, 5), (3, 3), (1, 1), (0, 0)),
]


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def gradients(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, gradient of the input and gradient of the weight."""
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(draw(*output.shape, seed=2).to(output.dtype))
    return output.detach(), x.grad, layer.weight.grad


def pair(*arguments, **settings) -> tuple[nn.Conv2d, Conv2d]:
    """torch's layer and ours with the same weights."""
    theirs = nn.Conv2d(*arguments, bias=False, **settings)
    ours = Conv2d(*arguments, bias=False, **settings).to(theirs.weight.dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), SHAPES)
def test_equals_torchs_gradient_for_any_geometry(image, kernel, stride, padding):
    x, layer = draw(3, 5, *image), nn.Conv2d(5, 7, kernel, stride=stride, padding=padding, bias=False).double()
    output = layer(x)
    came = draw(*output.shape, seed=1)
    output.backward(came)
    found = weight_gradient(x, came, kernel=kernel, stride=stride, padding=padding)
    assert found.dtype == torch.float64 and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, layer.weight.grad, rtol=1e-12, atol=1e-12)


def test_a_bf16_gradient_is_handed_over_in_float32():
    x, came = draw(2, 5, 4, 4, dtype=torch.bfloat16), draw(2, 7, 4, 4, dtype=torch.bfloat16)
    found = weight_gradient(x, came, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)


def test_a_second_derivative_is_refused():
    layer = Conv2d(CHANNELS, 4, 3, padding=1, bias=False)
    x = draw(2, CHANNELS, MAP, MAP, dtype=torch.float32).requires_grad_()
    [gradient] = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_single_image_without_a_batch_is_torchs():
    theirs, ours = pair(CHANNELS, 4, 3, padding=1)
    x = draw(CHANNELS, MAP, MAP, dtype=torch.float32)
    for expected, found in zip(gradients(theirs, x), gradients(ours, x)):
        torch.testing.assert_close(found, expected)


def taken(layer: Conv2d, x: torch.Tensor) -> bool:
    """Whether the layer's backward pass would take products."""
    return "WithProducts" in type(layer(x).grad_fn).__name__


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "stride"), [(MAP, 1), (4 * MAP, 2), (4 * MAP - 1, 2), (2 * MAP, 2)])
def test_a_layer_gives_what_torchs_gives(layout, size, stride):
    theirs, ours = (layer.to(memory_format=layout) for layer in pair(CHANNELS, 24, 3, stride=stride, padding=1))
    x = draw(4, CHANNELS, size, size, dtype=torch.float32).to(memory_format=layout)
    assert taken(ours, x)
    for expected, found in zip(gradients(theirs, x), gradients(ours, x)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert ours.weight.grad.stride() == ours.weight.stride()  # what fused optimizers rely on


def test_under_autocast_it_is_as_near_to_float32_as_torchs():
    theirs, ours = pair(CHANNELS, CHANNELS, 3, padding=1)
    x = draw(8, CHANNELS, MAP, MAP, dtype=torch.float32)
    exact = gradients(theirs, x)
    theirs.weight.grad = None
    errors = []
    for layer in (theirs, ours):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(layer, x)
        assert found[0].dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(found, exact)])
    assert max(errors[1]) < 1e-2
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


def test_the_inputs_gradient_is_left_out_where_nobody_asks_for_it():
    theirs, ours = pair(CHANNELS, 8, 3, padding=1)
    x = draw(2, CHANNELS, MAP, MAP, dtype=torch.float32)
    theirs(x).sum().backward()
    output = ours(x).sum()
    with torch.profiler.profile() as profile:
        output.backward()
    assert "aten::convolution_backward" not in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"in_channels": CHANNELS - 1, "padding": 1}, MAP),
        ({"in_channels": CHANNELS, "padding": 1}, MAP + 1),
        ({"in_channels": CHANNELS, "padding": 1, "stride": 2}, 4 * MAP + 1),
        ({"in_channels": CHANNELS, "padding": 1, "groups": 2}, MAP),
        ({"in_channels": CHANNELS, "padding": 2, "dilation": 2}, MAP),
        ({"in_channels": CHANNELS, "padding": "same"}, MAP),
        ({"in_channels": CHANNELS, "padding": 1, "padding_mode": "reflect"}, MAP),
        ({"in_channels": CHANNELS, "padding": 1, "bias": True}, MAP),
    ],
)
def test_all_else_is_torchs(settings, size):
    layer = Conv2d(out_channels=8, kernel_size=3, **{"bias": False, **settings})
    assert not taken(layer, draw(2, settings["in_channels"], size, size, dtype=torch.float32))


def test_an_encoder_that_only_looks_takes_torchs_convolution():
    layer = Conv2d(CHANNELS, 8, 3, padding=1, bias=False)
    x = draw(2, CHANNELS, MAP, MAP, dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        assert layer(x).grad_fn is None
    layer.requires_grad_(False)
    assert not taken(layer, x)


def test_a_compiled_step_takes_torchs_convolution():
    layer = Conv2d(CHANNELS, 8, 3, padding=1, bias=False)
    seen = []

    def look(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(layer, backend=look)(draw(2, CHANNELS, MAP, MAP, dtype=torch.float32))
    torch.compiler.reset()
    assert any("conv2d" in name for name in seen) and not any("autograd_function" in name for name in seen)


def test_resnet18_uses_it_where_it_pays_and_nowhere_else():
    encoder = build_encoder("resnet18", num_classes=10, shifts=1, seed=0)
    took = {}

    def note(name: str):
        return lambda layer, inputs, output: took.update({name: "WithProducts" in type(output.grad_fn).__name__})

    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note(name))
    encoder.train()(draw(2, 3, 32, 32, dtype=torch.float32))
    expected = {"layer3.0.conv1", "layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"}
    assert {name for name, does in took.items() if does} == expected
