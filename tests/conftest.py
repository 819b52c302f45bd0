"""For all tests: the libraries are set up as the program sets them up, before any of them is imported."""

import os
from collections.abc import MutableMapping

import pytest

from zimage_ui.settings import tame_third_parties

tame_third_parties()

# What tells a compiler of kernels where to keep its work, and whether to.
_COMPILERS_VARIABLES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "QUACK_CACHE_DIR",
    "QUACK_CACHE_ENABLED",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED",
    "CUTE_DSL_CACHE_DIR",
    "CUTE_DSL_DISABLE_FILE_CACHING",
)


@pytest.fixture
def compilers_environment(monkeypatch: pytest.MonkeyPatch) -> MutableMapping[str, str]:
    """An environment that tells no compiler anything yet; answers itself."""
    for name in _COMPILERS_VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back as it was, whoever sets it meanwhile
        monkeypatch.delenv(name)
    return os.environ
