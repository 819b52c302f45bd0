import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import __main__ as command
from training.recipe import Options, Scale

pytestmark = pytest.mark.model


@pytest.fixture
def given(monkeypatch):
    """What the recipe was told; it is not run."""
    options = []

    class Recorded:
        def __init__(self, told: Options) -> None:
            self._told = told

        def run(self) -> None:
            options.append(self._told)

    monkeypatch.setattr("training.recipe.Training", Recorded)
    precision = torch.get_float32_matmul_precision()
    yield options
    torch.set_float32_matmul_precision(precision)


def test_by_default_it_makes_the_bundled_model(given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    command.main()
    (options,) = given
    assert options.output == Path("zimage_ui/mini")
    assert options.device == torch.device("cuda")
    assert options.scale == Scale()
    assert options.muon
    assert options.start_from is None
    assert (options.vae_minutes, options.flow_minutes, options.distil_minutes) == (4.5, 18, 3)
    assert options.processes > 0


def test_without_a_gpu_the_bundled_model_is_not_replaced_by_accident(given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cpu"):
        command.main()
    assert given == []


def test_what_is_said_arrives(given, monkeypatch):
    said = "--output a --run b --device cpu --vae-minutes 0 --flow-minutes 2.5 --start-from c --rate 0.5 --adamw"
    monkeypatch.setattr(sys, "argv", ["training", *said.split()])
    command.main()
    (options,) = given
    assert (options.output, options.run, options.start_from) == (Path("a"), Path("b"), Path("c"))
    assert (options.vae_minutes, options.flow_minutes, options.rate, options.muon) == (0, 2.5, 0.5, False)
    assert options.device == torch.device("cpu")


def test_it_says_what_can_be_said_without_loading_torch():
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "training", "--help"],
        capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "--flow-minutes" in run.stdout
    assert re.search(r"\| +argparse$", run.stderr, re.MULTILINE)
    assert not re.search(r"\| +torch$", run.stderr, re.MULTILINE)
