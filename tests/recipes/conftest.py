"""What the tests of all recipes share: the recipe, imported from its file as ``python`` would run it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """Import a recipe by its name, for a while."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def recipe(request) -> Iterator[ModuleType]:
    """The recipe that the test module names as ``RECIPE``."""
    with imported(request.module.RECIPE.stem) as module:
        yield module


@pytest.fixture
def recipe_of():
    """What imports another recipe by its name, for a while."""
    return imported


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Tables of `datasets` go to a folder of their own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
