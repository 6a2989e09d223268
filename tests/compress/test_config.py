import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.utils import canonicalize_name

from compress.config import Config, describe_config, load_config
from compress.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_every_key_has_a_default() -> None:
    assert load_config(None) == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid(path: Path) -> None:
    load_config(path)


def test_a_printed_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config(None, ["prune.macs=40%", "train.step_epochs=[3, 5]", "prune.keep=['layer1.*']"])
    path = tmp_path / "c.toml"
    path.write_text(describe_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune.mac=50%", r"unknown key 'prune\.mac'; did you mean 'macs'"),
        ("prun.macs=50%", r"unknown key 'prun'; did you mean 'prune'"),
        ("target.engine=tensorflow", r"target\.engine: unknown engine 'tensorflow'; did you mean 'tensorrt'"),
        ("train.lr=fast", r"train\.lr: .*valid number"),
        ("train.lr=-1", r"train\.lr: .*greater than 0"),
        ("run.seed=-1", r"run\.seed: .*greater than or equal to 0"),
        ("run.name=a/b", r"run\.name: .*pattern"),
        ("prune.macs=0", "not a macs budget"),
        ("prune.macs=150%", "not a macs budget"),
        ("prune.latency=4", "write '50%' or '4.0 ms'"),
        ("prune", "expected section.key=value"),
    ],
)
def test_a_wrong_key_or_value_says_what_is_right(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    assert caught.value.exit_code == 2


def test_a_latency_may_be_capped_in_macs_and_params_but_a_ratio_stands_alone() -> None:
    budgets = load_config(None, ["prune.params=50%", "prune.latency=4 ms", "prune.macs=60%"]).prune.budgets()
    assert [budget.kind for budget in budgets] == ["latency", "macs", "params"]
    with pytest.raises(ConfigError, match="give it alone, not with macs"):
        load_config(None, ["prune.macs=50%", "prune.ratio=50%"])


@pytest.mark.parametrize("override", ["prune.importance=obs", "prune.latency=50%"])
def test_without_repair_there_is_neither_a_surgeon_nor_a_latency_budget(override: str) -> None:
    with pytest.raises(ConfigError, match="repair"):
        load_config(None, ["prune.repair=false", "prune.importance=norm", override])


@pytest.mark.parametrize("override", ["prune.params=30%", "prune.ratio=60%", "prune.macs=40%"])
def test_a_budget_on_the_command_line_replaces_the_files(tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[prune]\nmacs = "50%"\n')
    kind = override.removeprefix("prune.").partition("=")[0]
    assert load_config(path, [override]).prune.budgets()[0].kind == kind


def test_a_config_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[target]\nthreads = 4\nbatch = 2\n")
    config = load_config(path, ["target.threads=1", "model.weights=1.pth"])
    assert (config.target.threads, config.target.batch, config.model.weights) == (1, 2, "1.pth")


def test_a_section_within_a_section_is_overridden_described_and_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[target.tensorrt]\nworkspace_mb = 512\n")
    config = load_config(path, ["target.tensorrt.version_compatible=true", "target.tensorrt.dla_core=1"])
    settings = config.target.tensorrt
    assert (settings.workspace_mb, settings.version_compatible, settings.dla_core) == (512, True, 1)
    path.write_text(describe_config(config))
    assert load_config(path) == config
    with pytest.raises(ConfigError, match=r"unknown key 'target\.tensorrt\.workspace'; did you mean 'workspace_mb'"):
        load_config(None, ["target.tensorrt.workspace=1"])


@given(st.integers(1, 100))
def test_a_percentage_is_a_fraction_of_the_unpruned_cost(percent: int) -> None:
    budget = load_config(None, [f"prune.params={percent}%"]).prune.budgets()[0]
    assert (budget.kind, budget.fraction, budget.limit) == ("params", percent / 100, None)


@pytest.mark.parametrize(("text", "limit"), [("900M", 900e6), ("1.5G", 1.5e9), ("250k", 250e3), ("12345", 12345.0)])
def test_an_absolute_budget_takes_si_suffixes(text: str, limit: float) -> None:
    budget = load_config(None, [f"prune.macs={text}"]).prune.budgets()[0]
    assert (budget.fraction, budget.limit) == (None, limit)


def test_a_latency_budget_is_a_fraction_or_milliseconds() -> None:
    assert load_config(None, ["prune.latency=50%"]).prune.budgets()[0].fraction == 0.5
    assert load_config(None, ["prune.latency=4.0 ms"]).prune.budgets()[0].limit == 4.0


def test_direct_dependencies_are_pinned_as_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name, _, version = requirement.partition("==")
        assert pinned.get(canonicalize_name(name)) == version


@pytest.mark.parametrize(
    ("override", "name", "engine", "device"),
    [
        ("target.name=ort-x86", "ort-x86", "onnxruntime", "cpu"),
        ("target.engine=openvino", "openvino", "openvino", "cpu"),
        ("target.threads=2", "tensorrt", "tensorrt", "cuda"),
    ],
)
def test_an_overriding_target_takes_the_place_of_the_files(
    tmp_path: Path, override: str, name: str, engine: str, device: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[target]\nengine = "tensorrt"\ndevice = "cuda"\n')
    target = load_config(path, [override]).target
    assert (target.name, target.engine, target.device) == (name, engine, device)
