"""Compiled code outlives the process: in the user's own folder, for one torch and one GPU, bounded."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compilers_environment: object) -> Iterator[Path]:
    """Where compiled code goes."""
    from torch.compiler import config

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    with config.patch(job_id=None):
        yield tmp_path / "zimage-ui" / "compiled"


def test_it_is_kept_in_a_folder_of_its_own_that_others_cannot_write(compiled: Path) -> None:
    from zimage_ui.generator.compile_cache import keep_compiled

    folder = keep_compiled(GPU)
    assert folder is not None
    assert folder.parent == compiled
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)


def test_the_folder_is_for_one_gpu_one_torch_and_one_version_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from zimage_ui.generator import compile_cache
    from zimage_ui.generator.compile_cache import folder_name

    names = {folder_name(GPU), folder_name("../../A/B: \n")}
    monkeypatch.setattr(torch, "__version__", "2.99.0+cu999")
    names.add(folder_name(GPU))
    monkeypatch.setattr(compile_cache, "__version__", "77.0")
    names.add(folder_name(GPU))
    assert len(names) == 4
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)
    assert any(name.startswith("zimage-ui-77.0-torch-2.99.0-") for name in names)


def test_whatever_the_person_chose_stays(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.compiler import config

    from zimage_ui.generator.compile_cache import keep_compiled, note_what_varies

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    config.job_id = "mine"
    assert keep_compiled(GPU) == Path("/somewhere")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere"
    note_what_varies("0123")
    assert config.job_id == "mine"


def test_what_varies_is_noted_for_each_model(compiled: Path) -> None:
    from torch.compiler import config

    from zimage_ui.generator.compile_cache import note_what_varies

    note_what_varies("0123")
    assert config.job_id == "zimage-ui-0123"


def test_folders_that_were_not_used_for_longest_go(compiled: Path) -> None:
    from zimage_ui.generator.compile_cache import keep_compiled

    for age in range(6):
        old = compiled / f"old-{age}"
        (old / "triton").mkdir(parents=True)
        os.utime(old, (1e9 - age, 1e9 - age))
    folder = keep_compiled(GPU)
    assert folder is not None
    assert {path.name for path in compiled.iterdir()} == {folder.name, "old-0", "old-1", "old-2"}


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_without_a_place_for_it_torch_takes_its_own(
    compiled: Path, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from zimage_ui.generator import compile_cache

    if place == "a file":
        compiled.parent.mkdir()
        compiled.write_text("in the way")
    else:

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(compile_cache, "user_cache_folder", homeless)
    with caplog.at_level(logging.WARNING, "zimage_ui"):
        assert compile_cache.keep_compiled(GPU) is None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == ""
    assert os.environ["QUACK_CACHE_ENABLED"] == "0"
    assert "compiled code is not kept" in caplog.text


def test_without_a_place_of_ours_the_persons_serves(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from zimage_ui.generator.compile_cache import keep_compiled

    compiled.parent.mkdir()
    compiled.write_text("in the way")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    with caplog.at_level(logging.WARNING, "zimage_ui"):
        assert keep_compiled(GPU) == tmp_path / "mine"
    assert os.environ["QUACK_CACHE_DIR"] == str(tmp_path / "mine" / "quack")
    assert caplog.text == ""


# As on a GPU: imports the engine, then compiles for 4, 6 and 8 rows; says how often.
_PROCESS = """
import os, sys
from zimage_ui.generator import placement
from zimage_ui.generator.compile_cache import folder_name, note_what_varies
from zimage_ui.generator.zimage import import_engine
gpu = placement.Device(torch_name="cuda:0", name="a GPU", free_bytes=1, total_bytes=1, capability=(9, 0))
placement.read_device = lambda: gpu
import_engine()
assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith(folder_name("a GPU"))
import torch
from torch._dynamo.utils import counters
note_what_varies(sys.argv[1])
doubled = torch.compile(lambda rows: 2 * rows, backend="eager")
for rows in (4, 6, 8):
    doubled(torch.zeros(rows, 3))
print(counters["stats"]["unique_graphs"])
"""


def test_the_next_process_compiles_at_once_for_the_sizes_that_vary(compiled: Path) -> None:
    def compilations(fingerprint: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", _PROCESS, fingerprint], capture_output=True, text=True, check=True, timeout=120
        )
        return int(run.stdout)

    assert compilations("one") == 2
    assert compilations("one") == 1
