"""What design.md promises of the tree as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "diffusers", "transformers", "gradio", "pynvml", "plotly")


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "zimage_ui", "zimage_ui.jobs.service", "zimage_ui.storage.saver", "zimage_ui.telemetry.sampler",
        "zimage_ui.generator", "zimage_ui.generator.fake", "zimage_ui.generator.zimage", "zimage_ui.cli",
        "zimage_ui.runtime",
    ],
)  # fmt: skip
def test_importing_a_room_loads_nothing_heavy(module):
    assert not _modules_after(f"import {module}") & set(HEAVY)


@pytest.mark.parametrize("path", ["app.py", "prewarm.py"])
def test_the_entry_scripts_hold_no_logic(path):
    assert len((ROOT / path).read_text("utf-8").splitlines()) < (60 if path == "app.py" else 250)


def test_the_rooms_of_the_house_are_in_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    rooms = [folder.name for folder in (ROOT / "zimage_ui").iterdir() if (folder / "__init__.py").is_file()]
    assert rooms
    assert [room for room in rooms if f"`zimage_ui/{room}/`" not in readme] == []
