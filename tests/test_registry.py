"""Registry: names in, entries out, and the nearest name where there is none."""

import pytest

from bp.errors import ConfigurationError
from bp.registry import Registry


@pytest.fixture
def registry():
    made = Registry("data set")
    made.register("mnist")(int)
    made.register("digits")(float)
    return made


def test_entries_are_found_by_name(registry):
    assert registry.get("mnist") is int and "mnist" in registry and "minst" not in registry
    assert list(registry) == ["digits", "mnist"]


def test_an_unknown_name_names_the_nearest(registry):
    with pytest.raises(
        ConfigurationError, match=r"no data set 'minst'; did you mean 'mnist'\? \(known: digits, mnist\)"
    ):
        registry.get("minst")
    with pytest.raises(ConfigurationError, match=r"no data set 'xyz' \(known: digits, mnist\)"):
        registry.get("xyz")
    with pytest.raises(ConfigurationError, match=r"\(known: none\)"):
        Registry("model").get("mlp")


def test_a_name_is_given_once(registry):
    with pytest.raises(ConfigurationError, match="data set 'mnist' is registered already"):
        registry.register("mnist")
