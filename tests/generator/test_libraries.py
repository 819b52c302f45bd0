"""diffusers and transformers, imported without what nothing here needs."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from zimage_ui.generator.libraries import COMPANIONS, imported_leanly


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


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ModuleType("peft")
    monkeypatch.setitem(sys.modules, "peft", here)
    with imported_leanly():
        assert sys.modules["peft"] is here
    assert sys.modules["peft"] is here
