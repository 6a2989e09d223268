"""A network of a family is built for TensorRT for RTX; wrong arguments are told before anything is quantized."""

import pytest

from benchmarks.families import main


@pytest.mark.usefixtures("rtx")
@pytest.mark.tensorrt
def test_a_network_is_built_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "cifar_resnet20"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| cifar_resnet20 ")]
    assert "19 of 19" in row


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--target", "nope"], 2, "neither a target nor an engine"),
        (["--target", "openvino"], 2, "is for TensorRT"),
        (["--only", "zzz"], 2, "no network has 'zzz'"),
    ],
)
def test_wrong_arguments_are_told(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert said in capsys.readouterr().err
