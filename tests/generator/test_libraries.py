"""diffusers and transformers, imported without what nothing here needs."""

import gc
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from zimage_ui.generator.libraries import COMPANIONS, imported_leanly


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """What is frozen here is all that the other tests have made: it may go again."""
    yield
    gc.unfreeze()


def in_a_new_process(code: str, *folders: Path) -> str:
    path = os.pathsep.join([*map(str, folders), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages with all `COMPANIONS` in it, each of which breaks when it is imported."""
    for name in COMPANIONS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise OSError('made for another torch')")
        facts = tmp_path / f"{name}-99.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        (facts / "RECORD").write_text(f"{name}/__init__.py,,\n")
    return tmp_path


@pytest.mark.model
def test_the_engine_needs_no_companion_and_a_broken_one_does_not_keep_it_from_starting(site: Path) -> None:
    code = f"""
import json, sys
from zimage_ui.generator.zimage import import_engine
import_engine()
from zimage_ui.generator.loading import AutoencoderKL, Qwen3Model, ZImageTransformer2DModel
print(json.dumps([name for name in {COMPANIONS!r} if name in sys.modules]))
"""
    assert json.loads(in_a_new_process(code, site)) == []


@pytest.mark.model
def test_installed_packages_are_listed_once(site: Path) -> None:
    code = """
import importlib.metadata
calls, listed = [], importlib.metadata.packages_distributions
importlib.metadata.packages_distributions = counted = lambda: calls.append(1) or listed()
from zimage_ui.generator.zimage import import_engine
import_engine()
print(len(calls), importlib.metadata.packages_distributions is counted)
"""
    assert in_a_new_process(code, site) == "1 True\n"


def test_companions_look_as_if_not_installed_and_are_back_afterwards(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = importlib.metadata.packages_distributions
    for name in COMPANIONS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(site)
    with pytest.raises(RuntimeError, match="any failure"), imported_leanly():
        assert [name for name in COMPANIONS if importlib.util.find_spec(name)] == []
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(COMPANIONS[0])
        raise RuntimeError("any failure")
    assert [name for name in COMPANIONS if importlib.util.find_spec(name) is None] == []
    assert importlib.metadata.packages_distributions is listed


def test_packages_are_listed_once_however_often_they_are_asked_for() -> None:
    with imported_leanly():
        first = importlib.metadata.packages_distributions()
        assert importlib.metadata.packages_distributions() is first
    assert importlib.metadata.packages_distributions() is not first


def test_two_threads_come_one_after_the_other(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever came second would take the first one's list for Python's own, and lose its companions to it."""
    listed, begun, inside = importlib.metadata.packages_distributions, threading.Event(), threading.Event()

    def other() -> None:
        begun.set()
        with imported_leanly():
            inside.set()

    with imported_leanly():
        thread = threading.Thread(target=other)
        thread.start()
        assert begun.wait(10)
        assert not inside.wait(0.2)
    thread.join(10)
    assert inside.is_set()
    assert importlib.metadata.packages_distributions is listed


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ModuleType("peft")
    monkeypatch.setitem(sys.modules, "peft", here)
    with imported_leanly():
        assert sys.modules["peft"] is here
    assert sys.modules["peft"] is here
