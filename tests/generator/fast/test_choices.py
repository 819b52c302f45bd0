"""The choice between kernels: made once, by clear differences alone, and found again by the next process."""

import json
import logging
import subprocess
import sys

import pytest
import torch

from zimage_ui.generator.fast import choices
from zimage_ui.generator.fast.choices import FILE_NAME, Choices, clearly_fastest, kernel_choices

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
NAMES = ("usual", "other", "third")


class Stopwatch:
    """Says how long each took, and is asked anew only when nothing is known."""

    def __init__(self, *times_ms):
        self.times_ms = dict(zip(NAMES, times_ms, strict=False))
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return self.times_ms


def ask(made, measure, question="attention of 32 tokens", candidates=NAMES):
    return made.choose(question, candidates, measure, CPU)


@pytest.mark.parametrize(
    ("times_ms", "expected"),
    [
        ((1.0, 0.995, 2.0), "usual"),
        ((1.0, 0.991, 0.991), "usual"),
        ((1.0, 0.985, 0.98), "other"),
        ((1.0, 0.98, 0.975), "other"),
        ((1.0, 0.98, 0.96), "third"),
        ((1.0,), "usual"),
    ],
)
def test_noise_decides_nothing(times_ms, expected):
    assert clearly_fastest(Stopwatch(*times_ms).times_ms) == expected


def test_a_choice_is_made_once_for_each_question_and_all_candidates():
    made, first, later = Choices(), Stopwatch(1.0, 0.5), Stopwatch(0.5, 1.0)
    assert ask(made, first) == ask(made, later) == "other"
    assert (first.asked, later.asked) == (1, 0)
    assert ask(made, later, candidates=("usual", "other")) == "usual"
    assert ask(made, later, question="attention of 64 tokens") == "usual"
    assert later.asked == 2


def test_the_next_process_finds_it(tmp_path):
    first = Choices()
    first.keep_in(tmp_path / "compiled")
    assert ask(first, Stopwatch(1.0, 0.5)) == "other"
    following, never = Choices(), Stopwatch()
    following.keep_in(tmp_path / "compiled")
    assert ask(following, never) == "other"
    assert never.asked == 0
    assert [path.name for path in (tmp_path / "compiled").iterdir()] == [FILE_NAME]


def test_another_gpu_or_another_library_chooses_for_itself(tmp_path, monkeypatch):
    for name in ("one GPU", "another GPU"):
        monkeypatch.setattr(choices, "_machine", lambda device, name=name: name)
        made, measure = Choices(), Stopwatch(1.0, 0.5)
        made.keep_in(tmp_path)
        assert ask(made, measure) == "other"
        assert measure.asked == 1
    assert len(json.loads((tmp_path / FILE_NAME).read_text())) == 2


def test_the_libraries_that_kernels_are_of_are_told_apart(monkeypatch):
    for module, name, answer in (
        (torch.cuda, "get_device_name", "H100"),
        (choices.cublaslt, "version", 130100),
        (torch.backends.cudnn, "version", 91900),
    ):
        monkeypatch.setattr(module, name, lambda *_, answer=answer: answer)
    told = choices._machine.__wrapped__(torch.device("cuda"))
    for part in ("H100", f"torch {torch.__version__}", "cuBLASLt 130100", "cuDNN 91900"):
        assert part in told


def test_processes_at_the_same_time_lose_nothing_of_each_other(tmp_path):
    one, other = Choices(), Choices()
    for made in (one, other):
        made.keep_in(tmp_path)
    ask(one, Stopwatch(1.0, 0.5), "one")
    ask(other, Stopwatch(1.0, 0.5), "two")
    assert len(json.loads((tmp_path / FILE_NAME).read_text())) == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'"usual"', b'{"a": 1}', b"its own name as a candidate that is gone"]
)
def test_what_is_none_of_ours_is_measured_anew_and_replaced(tmp_path, content):
    if content.startswith(b"its own"):
        made = Choices()
        made.keep_in(tmp_path)
        ask(made, Stopwatch(1.0))
        (tmp_path / FILE_NAME).write_text((tmp_path / FILE_NAME).read_text().replace('"usual"', '"gone"'))
    else:
        (tmp_path / FILE_NAME).write_bytes(content)
    made, measure = Choices(), Stopwatch(1.0, 0.5)
    made.keep_in(tmp_path)
    assert ask(made, measure) == "other"
    assert measure.asked == 1
    assert "other" in json.loads((tmp_path / FILE_NAME).read_text()).values()


def test_where_nothing_can_be_written_the_process_remembers(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    made, later = Choices(), Stopwatch(0.5, 1.0)
    made.keep_in(tmp_path / "file")
    with caplog.at_level(logging.WARNING, "zimage_ui"):
        assert ask(made, Stopwatch(1.0, 0.5)) == "other"
    assert "is not kept for the next start" in caplog.text
    assert ask(made, later) == "other"


def test_what_cannot_be_measured_is_not_remembered():
    def run_out():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    made = Choices()
    assert ask(made, run_out) is None
    assert ask(made, Stopwatch()) is None
    assert ask(made, Stopwatch(1.0, 0.5)) == "other"


_PROCESS = """
from zimage_ui.generator import placement
gpu = placement.Device(torch_name="cuda:0", name="a GPU", free_bytes=1, total_bytes=1, capability=(9, 0))
placement.read_device = lambda: gpu
from zimage_ui.generator.zimage import import_engine
import_engine()
import torch
from zimage_ui.generator.fast.choices import kernel_choices
measure = lambda: print("measured", end=" ") or {"usual": 1.0, "other": 0.5}
print(kernel_choices().choose("a question", ("usual", "other"), measure, torch.device("cpu")))
"""


def test_a_restart_reuses_what_lies_beside_the_compiled_code(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")

    def chosen():
        run = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=True, timeout=120)
        return run.stdout.strip()

    assert chosen() == "measured other"
    assert chosen() == "other"
    assert len(list(tmp_path.glob(f"zimage-ui/compiled/*/{FILE_NAME}"))) == 1


def test_a_process_has_one_of_them():
    assert kernel_choices() is kernel_choices()
