"""What a person gets who installs the wheel: all of the program, wherever it is started."""

import json
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("zimage_ui-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and the libraries of this one, but not the source tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = Path(subprocess.check_output(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )  # fmt: skip
    # A plain path line: the .pth files over there (this project's editable install among them) are not read.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder / "bin"


def test_the_wheel_holds_the_package_with_all_its_files_and_nothing_else(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "zimage_ui").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files
    assert {"zimage_ui/py.typed", "zimage_ui/ui/assets/studio.js"} <= names


def test_the_installed_program_makes_a_picture(installed: Path, tmp_path: Path):
    run = subprocess.run(
        [installed / "zimage-ui", "generate", "a boat", "--model", "fake", "--seed", "3", "--json"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    (file,) = json.loads(run.stdout)["files"]
    assert Path(file).is_file()
    assert tmp_path in Path(file).parents


def test_the_installed_program_is_not_this_source_tree(installed: Path, tmp_path: Path):
    where = subprocess.check_output(
        [installed / "python", "-c", "import zimage_ui; print(zimage_ui.__file__)"], text=True, cwd=tmp_path
    )
    assert ROOT not in Path(where.strip()).parents
