"""What design.md promises of the tree as a whole."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Of the extra `flash4`, and installed only where there is a GPU for them.
OPTIONAL = {"flash_attn": "flash-attn-4", "quack": "quack-kernels"}
# torch's builds for NVIDIA GPUs bring it, in the one version that goes with them; other builds have none.
COMES_WITH_TORCH = {"triton"}
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


def test_every_library_that_is_imported_is_declared():
    known = packages_distributions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared, optional = (
        distributions(project["dependencies"]),
        distributions(project["optional-dependencies"]["flash4"]),
    )
    imported = {
        name.split(".")[0]
        for path in [*(ROOT / "zimage_ui").rglob("*.py"), ROOT / "app.py", ROOT / "prewarm.py"]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in names_of(node)
    }
    foreign = imported - sys.stdlib_module_names - {"zimage_ui"}
    assert {"torch", "gradio", "fastapi"} <= foreign
    assert set(OPTIONAL.values()) <= optional
    undeclared = {
        name
        for name in foreign - OPTIONAL.keys() - COMES_WITH_TORCH
        if not declared & {canonical(found) for found in known.get(name, ())}
    }
    assert undeclared == set()


def test_the_engine_is_imported_without_what_not_every_torch_has():
    modules = _modules_after("import zimage_ui.generator.engine")
    assert "zimage_ui.generator.fast.parts" in modules
    fast = (ROOT / "zimage_ui" / "generator" / "fast").glob("*.py")
    of_triton = {path.stem for path in fast if re.search(r"^import triton$", path.read_text("utf-8"), re.M)}
    assert of_triton
    assert not {f"zimage_ui.generator.fast.{name}" for name in of_triton} & modules


def distributions(lines: list[str]) -> set[str]:
    return {canonical(re.split(r"[<>=!~ \[;]", line, maxsplit=1)[0]) for line in lines}


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    return []
