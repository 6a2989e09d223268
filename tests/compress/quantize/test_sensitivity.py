from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.models.model import Model
from compress.quantize.calibrate import Calibrated, calibrate
from compress.quantize.fallback import keep_accuracy
from compress.quantize.sensitivity import Sensitivities, sensitivities, sqnr
from compress.quantize.store import load_calibrated, save_calibrated

Make = Callable[[str], nn.Module]
FRAGILE = "layer2.0.conv1"


@pytest.fixture
def fragile(make: Make, images: list[Tensor]) -> Calibrated:
    """A network with one layer that INT8 ruins: one weight of each channel dwarfs the others."""
    net = make("option B")
    with torch.no_grad():
        weight = net.get_submodule(FRAGILE).weight
        assert isinstance(weight, Tensor)
        weight[:, 0, 0, 0] += 100 * weight.abs().max()
    return calibrate(net, images, "ort-x86", correction="none")


@pytest.fixture
def found(fragile: Calibrated, images: list[Tensor]) -> Sensitivities:
    return sensitivities(fragile, torch.cat(images))


def test_the_ruined_layer_is_found(fragile: Calibrated, found: Sensitivities) -> None:
    assert len(found.layers) == len(fragile.quantizers.weights)
    assert found.worst_first()[0] == FRAGILE
    assert min(found.layers, key=lambda s: s.alone).layer == FRAGILE
    assert f"| {FRAGILE} |" in found.to_markdown().splitlines()[4]


def test_what_is_added_to_a_layers_output_in_place_is_not_taken_for_it(make: Make, images: list[Tensor]) -> None:
    calibrated = calibrate(make("resnet18"), images, "ort-x86")
    for layer in sensitivities(calibrated, torch.cat(images)).layers:
        assert layer.output > 10, layer


def test_leaving_a_layer_in_float_is_what_the_table_says(
    fragile: Calibrated, found: Sensitivities, images: list[Tensor]
) -> None:
    mixed = fragile.leaving([FRAGILE])
    assert FRAGILE not in {w.layer for w in mixed.quantizers.weights}
    ratio = sqnr(fragile.float_net, mixed.fake(), torch.cat(images))
    assert ratio == pytest.approx(next(s.without for s in found.layers if s.layer == FRAGILE))
    assert ratio > found.whole


@pytest.mark.parametrize("target", ["ort-x86", "tensorrt"])
def test_a_layer_alone_has_its_input_quantized_beyond_a_pooling(make: Make, images: list[Tensor], target: str) -> None:
    calibrated = calibrate(make("resnet18"), images, target, correction="none")
    for layer, source in (("fc", "avgpool"), ("layer1.0.conv1", "relu")):
        only = calibrated.only(layer).quantizers
        assert [w.layer for w in only.weights] == [layer]
        assert [a.source for a in only.activations] == [source]
    left = calibrated.leaving(["fc"]).quantizers
    assert ("avgpool" in {a.source for a in left.activations}) == (target == "ort-x86")


def test_everything_in_float_is_float(fragile: Calibrated, images: list[Tensor]) -> None:
    mixed = fragile.leaving([w.layer for w in fragile.quantizers.weights])
    assert not mixed.quantizers.weights
    assert sqnr(fragile.float_net, mixed.fake(), images[0]) > 30  # the adds' inputs are still rounded


def test_the_fewest_layers_are_left_in_float(fragile: Calibrated, found: Sensitivities, images: list[Tensor]) -> None:
    def lost(net: nn.Module) -> float:
        return -sqnr(fragile.float_net, net, torch.cat(images))

    order = found.worst_first()
    _, none = keep_accuracy(fragile, order, lost, max_drop=lost(fragile.fake()))
    assert none == ()
    mixed, layers = keep_accuracy(fragile, order, lost, max_drop=lost(fragile.fake()) - 1)
    assert layers == (FRAGILE,)
    assert lost(mixed.fake()) <= lost(fragile.fake()) - 1


def test_a_drop_that_cannot_be_had_is_an_error(fragile: Calibrated, found: Sensitivities) -> None:
    with pytest.raises(ModelError, match="even with every layer in float"):
        keep_accuracy(fragile, found.worst_first(), lambda net: 1.0, max_drop=0.5)


def test_a_calibrated_network_comes_back_from_its_files(make: Make, images: list[Tensor], tmp_path: Path) -> None:
    from calibration.preprocess import Preprocess

    net = make("option B")
    calibrated = calibrate(net, images, "tensorrt")
    preprocess = Preprocess(size=32, resize=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    save_calibrated(Model(net, "cifar_resnet20_b", preprocess, tuple("abcde")), calibrated, tmp_path)
    back = load_calibrated(tmp_path)
    assert back.quantizers == calibrated.quantizers
    with torch.no_grad():
        assert torch.equal(back.fake()(images[0]), calibrated.fake()(images[0]))
        assert torch.equal(back.float_net(images[0]), calibrated.float_net(images[0]))
