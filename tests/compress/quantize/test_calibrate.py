from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress import targets
from compress.errors import CheckpointError, DataError, ModelError
from compress.models.registry import build
from compress.quantize.calibrate import calibrate
from compress.quantize.correct import Correction
from compress.quantize.fakequant import FakeWeight, Scales, fake_quantized, trained
from compress.quantize.pairs import overflowing
from compress.quantize.quantizer import Quantizers, Weight
from compress.quantize.rounding import quantize_weight

Make = Callable[[str], nn.Module]


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("target", ["ort-x86", "tensorrt"])
def test_int8_stays_close_to_float(make: Make, images: list[Tensor], target: str) -> None:
    net = make("option B")
    calibrated = calibrate(net, images, target)
    assert {w.layer for w in calibrated.quantizers.weights} == {
        name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    with torch.no_grad():
        assert 0 < error(calibrated.fake()(images[0]), net(images[0])) < 0.1


def test_resnet18_gets_the_quantizers_that_its_integer_kernels_need(make: Make, images: list[Tensor]) -> None:
    quantizers = calibrate(make("resnet18"), images, "ort-x86").quantizers
    assert len(quantizers.weights) == 21
    assert len(quantizers.activations) == 30  # input, 17 relus, 8 + 3 add inputs, pooled
    assert all(a.zero_point == 0 for a in quantizers.activations if "relu" in a.source)


def test_a_deep_network_is_no_deeper_for_python(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = build("cifar_resnet110", 5).eval()
    assert len(calibrate(net, images, "ort-x86", correction="none").quantizers.weights) == 110


def test_the_same_images_give_the_same_bits(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    first, second = (calibrate(make("functional"), images, "ort-x86") for _ in range(2))
    first.quantizers.save(tmp_path / "a.json")
    second.quantizers.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert all(torch.equal(a, second.net.state_dict()[key]) for key, a in first.net.state_dict().items())


def test_the_batch_size_does_not_move_the_ranges(make: Make, images: list[Tensor]) -> None:
    singles = [image[None] for batch in images for image in batch]
    a, b = (calibrate(make("functional"), sample, "ort-x86").quantizers for sample in (images, singles))
    for one, other in zip(a.activations, b.activations, strict=True):
        assert one.scale == pytest.approx(other.scale, rel=1e-4)


def test_quantizers_come_back_from_json_exactly(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    quantizers = calibrate(make("functional"), images, "tensorrt").quantizers
    quantizers.save(tmp_path / "q.json")
    assert Quantizers.load(tmp_path / "q.json") == quantizers
    (tmp_path / "q.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="schema version 99"):
        Quantizers.load(tmp_path / "q.json")


def test_calibrating_leaves_the_net_alone_and_says_nothing(
    make: Make, images: list[Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    net = make("functional")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    calibrate(net, images, "ort-x86")
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_no_images_is_an_error(make: Make) -> None:
    with pytest.raises(DataError, match="empty"):
        calibrate(make("functional"), [], "ort-x86")


def test_nan_pixels_are_an_error(make: Make, images: list[Tensor]) -> None:
    images[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="batch 1"):
        calibrate(make("functional"), images, "ort-x86")


def test_nan_weights_are_an_error_that_names_them(make: Make, images: list[Tensor]) -> None:
    net = make("functional")
    with torch.no_grad():
        net.a.weight[0, 0, 0, 0] = float("nan")  # type: ignore[index, operator, union-attr]
    with pytest.raises(ModelError, match=r"'a\.weight'"):
        calibrate(net, images, "ort-x86")


def test_activations_that_overflow_are_an_error_that_names_the_layer(make: Make, images: list[Tensor]) -> None:
    net = make("functional")
    with torch.no_grad():
        net.stem.weight.fill_(1e30)  # type: ignore[operator, union-attr]
        net.a.weight.fill_(1e30)  # type: ignore[operator, union-attr]
    with pytest.raises(ModelError, match="output of 'a'"):
        calibrate(net, images, "ort-x86")


def test_a_tensor_that_is_always_zero_leaves_the_other_layers_alone(make: Make, images: list[Tensor]) -> None:
    net = make("functional")
    with torch.no_grad():
        net.a.weight.zero_()  # type: ignore[operator, union-attr]
        net.a.bias.fill_(-1.0)  # type: ignore[operator, union-attr]
    calibrated = calibrate(net, images, "ort-x86")
    assert min(a.scale for a in calibrated.quantizers.activations) < 1e-20
    with torch.no_grad():
        assert error(calibrated.fake()(images[0]), net(images[0])) < 0.05


def test_inputs_too_large_to_square_are_an_error_that_names_the_layer(make: Make, images: list[Tensor]) -> None:
    net = make("functional")
    with torch.no_grad():
        net.stem.weight.mul_(1e22)  # type: ignore[operator, union-attr]
    with pytest.raises(ModelError, match=r"inputs of '(a|short)'"):
        calibrate(net, images, "ort-x86")


def test_a_batch_of_another_size_is_an_error(make: Make, images: list[Tensor]) -> None:
    with pytest.raises(ModelError, match=r"images of shape \(4, 32, 32\)"):
        calibrate(make("functional"), [images[0], torch.randn(2, 4, 32, 32)], "ort-x86")


def test_images_that_do_not_fit_are_an_error(make: Make) -> None:
    with pytest.raises(ModelError, match=r"images of shape \(4, 32, 32\)"):
        calibrate(make("functional"), [torch.randn(2, 4, 32, 32)], "ort-x86")


@pytest.mark.parametrize("scales", ["frozen", "learned"])
def test_qat_trains_the_weights_through_the_rounding_and_they_come_back(
    make: Make, images: list[Tensor], scales: Scales
) -> None:
    calibrated = calibrate(make("functional"), images, "ort-x86")
    fake = fake_quantized(calibrated.net, calibrated.quantizers, scales)
    fake.train()
    optimizer = torch.optim.SGD(fake.parameters(), lr=0.05)
    target = torch.randint(0, 5, (4,), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(fake(images[0]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    net, quantizers = trained(calibrated.net, calibrated.quantizers, fake)
    assert net.state_dict().keys() == calibrated.net.state_dict().keys()
    assert (quantizers == calibrated.quantizers) == (scales == "frozen")
    assert endangered(net, quantizers) == []
    with torch.no_grad():
        assert error(fake_quantized(net, quantizers).eval()(images[0]), fake.eval()(images[0])) < 1e-5


def endangered(net: nn.Module, quantizers: Quantizers) -> list[str]:
    """Layers with a pair of weights whose products can overflow int16."""
    weights = {w.layer: quantize_weight(w, net.get_parameter(f"{w.layer}.weight").detach()) for w in quantizers.weights}
    return [layer for layer, integers in weights.items() if overflowing(integers.numpy()).any()]


@pytest.mark.parametrize(
    ("name", "target", "correction"),
    [
        ("functional", "ort-x86", "gptq"),  # odd widths
        ("functional", "openvino", "bias"),
        ("option A", "ort-x86", "none"),
        ("resnext", "openvino", "gptq"),
    ],
)
def test_no_pair_of_a_network_for_x86_overflows(
    make: Make, images: list[Tensor], name: str, target: str, correction: Correction
) -> None:
    calibrated = calibrate(make(name), images, target, correction=correction)
    assert endangered(calibrated.net, calibrated.quantizers) == []


def test_targets_that_add_exactly_keep_the_full_range(make: Make, images: list[Tensor]) -> None:
    assert [n for n in targets.names() if targets.profile(n).pair_sums == "int16"] == ["openvino", "ort-x86"]
    calibrated = calibrate(make("resnet18"), images, "tensorrt")
    assert endangered(calibrated.net, calibrated.quantizers)


@pytest.mark.parametrize("scales", ["frozen", "learned"])
def test_no_pair_overflows_however_far_the_parameters_move(make: Make, images: list[Tensor], scales: Scales) -> None:
    calibrated = calibrate(make("functional"), images, "ort-x86")
    fake = fake_quantized(calibrated.net, calibrated.quantizers, scales).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in fake.parameters():
            value.mul_(1 + torch.rand(value.shape, generator=generator))  # pushes many pairs beyond the limit
    net, quantizers = trained(calibrated.net, calibrated.quantizers, fake)
    assert endangered(net, quantizers) == []
    with torch.no_grad():
        assert error(fake_quantized(net, quantizers).eval()(images[0]), fake.eval()(images[0])) < 1e-5


def test_a_weight_out_of_range_does_not_limit_its_neighbour() -> None:
    weight = torch.tensor([[200.0, -60.0]], requires_grad=True)
    rounded = FakeWeight(Weight("layer", (1.0,), pairs_fit=True))(weight)
    assert rounded.tolist() == [[127.0, -60.0]]
    rounded[0, 1].backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0]]


def test_depthwise_layers_keep_the_full_range(images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    found = {w.layer: w.pairs_fit for w in calibrate(net, images, "openvino").quantizers.weights}
    assert found == {"0": True, "2": False, "4": True}


def test_the_gradient_stops_at_the_limits_of_a_weight_and_of_a_pair() -> None:
    fake = FakeWeight(Weight("layer", (1.0,), pairs_fit=True))
    weight = torch.tensor([[130.0, -5.0, 100.0, 60.0, 10.0, 20.0]], requires_grad=True)
    rounded = fake(weight)
    assert rounded.tolist() == [[127.0, -5.0, 84.0, 44.0, 10.0, 20.0]]
    (rounded * torch.tensor([[1.0, 1.0, 3.0, 1.0, 1.0, 1.0]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 1.0, 1.0, -1.0, 1.0, 1.0]]  # what one of a pair at its limit gains, one loses
