import pytest

from compress.config import load_config
from compress.data import preprocess_of
from compress.errors import ConfigError


@pytest.mark.parametrize("setting", ["std=[1, nan, 1]", "std=[inf, 1, 1]", "mean=[0, inf, 0]", "mean=[nan, 0, 0]"])
def test_mean_and_std_must_be_finite(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.(mean|std) .* must be finite"):
        preprocess_of(load_config(None, [f"data.{setting}"]).data)
