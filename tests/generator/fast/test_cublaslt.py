"""cuBLASLt where it is not, and by a library that stands in for it. What it is on a GPU, tests/gpu shows."""

import ctypes
import logging

import pytest
import torch

from zimage_ui.generator.fast import cublaslt

pytestmark = pytest.mark.model

CUDA = torch.device("cuda:0")
# Number of an attribute of an algorithm, and which of its eight words has it here.
WORDS = {0: 0, 1: 1, 2: 2, 5: 3, 8: 4}
FAMILY, TILE, SPLITS, OPTION, CLUSTER = range(5)
NVJET = 66


class Library:
    """Proposes kernels as tiles, split in so many sums, with so many bytes of workspace; all else it takes.

    Attributes:
        tiles: (tile, splits, bytes), the best first.
        asked: the most bytes of workspace that it was asked for, call by call.
        refused: what it answers when it has nothing to propose.
        family: number of the kernels that it proposes.
        accepted: (tile, cluster, option) of kernels that it has besides, with so many bytes of workspace.
        checked: how often it was asked for one of those.
    """

    def __init__(self, *tiles, refused=15, family=NVJET, accepted=None):
        self.tiles, self.refused, self.asked = tiles, refused, []
        self.family, self.accepted, self.checked = family, accepted or {}, 0

    def __getattr__(self, name):
        return lambda *arguments: 0

    def cublasLtMatmulPreferenceSetAttribute(self, preference, attribute, value, size):  # noqa: N802
        self.asked.append(value._obj.value)
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments):  # noqa: N802
        *_, most, proposals, count = arguments
        fitting = [tile for tile in self.tiles if tile[2] <= self.asked[-1]][:most]
        for place, (tile, splits, size) in enumerate(fitting):
            words = proposals[place].algorithm.data
            words[FAMILY], words[TILE], words[SPLITS] = self.family, tile, splits
            proposals[place].workspace_bytes = size
        count._obj.value = len(fitting)
        return 0 if fitting else self.refused

    def cublasLtMatmulAlgoConfigGetAttribute(self, algorithm, attribute, value, size, written):  # noqa: N802
        value._obj.value = algorithm._obj.data[WORDS[attribute]] if attribute in WORDS else 0
        return 0

    def cublasLtMatmulAlgoConfigSetAttribute(self, algorithm, attribute, value, size):  # noqa: N802
        algorithm._obj.data[WORDS[attribute]] = value._obj.value
        return 0

    def cublasLtMatmulAlgoCheck(self, *arguments):  # noqa: N802
        self.checked += 1
        *_, algorithm, result = (getattr(each, "_obj", each) for each in arguments)
        words = algorithm.data
        needed = self.accepted.get((words[TILE], words[CLUSTER], words[OPTION]))
        result.workspace_bytes = needed or 0
        return 15 if needed is None else 0


@pytest.fixture
def library(monkeypatch):
    """Puts a library in the place of CUDA's; nothing is remembered of other tests, nor by them."""
    caches = (cublaslt._problem, cublaslt._handle, cublaslt._is_there)

    def forget():
        for cached in caches:
            cached.cache_clear()

    def put(stand_in):
        monkeypatch.setattr(cublaslt, "_library", lambda: stand_in)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode())
    monkeypatch.setattr(cublaslt, "_hopper_processors", lambda device: 132)
    forget()
    yield put
    forget()


def proposed(tokens=32, outputs=16):
    """The kernels for so many tokens and a matrix of so many outputs, but for what all have: the family at the end."""
    problem = cublaslt._problem(cublaslt._Size(tokens, outputs, 8, torch.bfloat16, CUDA))
    return [name.replace(" id 66", "") for name in problem.algorithms] if problem else []


def test_a_cpu_has_no_kernels_of_it(noise):
    weight = noise(16, 8)
    assert cublaslt.kernel_names(32, weight) == ()
    assert cublaslt.product(noise(2, 8), weight, "cublasLt tile 29") is None


def test_a_proposal_is_laid_out_as_the_header_says():
    """96 bytes in CUDA 12 and 13: the algorithm's 64, then size, state, waves and reserved words."""
    assert ctypes.sizeof(cublaslt._Proposal) == 96
    assert cublaslt._Proposal.workspace_bytes.offset == 64
    assert cublaslt._Proposal.state.offset == 72
    assert cublaslt._Proposal.waves.offset == 76


def test_only_kernels_that_need_no_workspace_are_asked_for(library):
    stand_in = Library((29, 1, 4), (209, 1, 0), (21, 1, 0))
    library(stand_in)
    assert proposed() == ["cublasLt tile 209", "cublasLt tile 21"]
    assert stand_in.asked == [0]


def test_a_kernel_is_named_once(library):
    library(Library((29, 1, 0), (29, 1, 0), (405, 1, 0), accepted={(405, 3, 1): 0}))
    assert proposed(1088, 3840) == ["cublasLt tile 29", "cublasLt tile 405", "cublasLt tile 405 cluster 3 option 1"]


def test_sums_that_are_split_are_left_out(library):
    library(Library((29, 3, 0), (209, 1, 0), (21, 2, 0)))
    assert proposed() == ["cublasLt tile 209"]


ACCEPTED = {(405, 3, 1): 4, (405, 5, 3): 2**20, (202, 3, 4): 0, (405, 4, 1): 0, (30, 3, 1): 0}


def test_where_all_need_a_workspace_there_are_none(library):
    library(Library((29, 1, 4), accepted=ACCEPTED))
    assert proposed(1088, 3840) == []


def test_tiles_that_suit_the_size_are_kernels_too_where_the_library_accepts_them(library):
    """Of 1088 tokens: eight times 136, and 176 x 192 falls into 132 tiles. One needs more than it can spare."""
    library(Library((29, 1, 0), accepted=ACCEPTED))
    assert proposed(1088, 3840) == [
        "cublasLt tile 29", "cublasLt tile 202 cluster 3 option 4", "cublasLt tile 405 cluster 3 option 1"
    ]  # fmt: skip
    assert proposed(4160, 3840) == ["cublasLt tile 29"]


def test_a_tile_is_set_and_nothing_else_of_the_best_proposal_changed(library):
    stand_in = Library((29, 1, 0), (31, 1, 0), accepted=ACCEPTED)
    library(stand_in)
    problem = cublaslt._problem(cublaslt._Size(1088, 3840, 8, torch.bfloat16, CUDA))
    algorithms = {name: tuple(algorithm.data)[:5] for name, algorithm in problem.algorithms.items()}
    assert algorithms["cublasLt tile 29 id 66"] == (NVJET, 29, 1, 0, 0)
    assert algorithms["cublasLt tile 405 cluster 3 option 1 id 66"] == (NVJET, 405, 1, 1, 3)
    assert stand_in.checked == 16  # four tiles in four settings, like one proposal and not like each


def test_an_older_library_that_knows_no_such_tile_keeps_its_proposals(library, monkeypatch, caplog):
    stand_in = Library((29, 1, 0), accepted=ACCEPTED)
    library(stand_in)
    monkeypatch.setattr(stand_in, "cublasLtMatmulAlgoConfigSetAttribute", lambda *arguments: 7)
    assert proposed(1088, 3840) == ["cublasLt tile 29"]
    assert not caplog.records


@pytest.mark.parametrize("family", [0, 71])
def test_kernels_of_another_family_have_other_tiles(library, family):
    library(Library((29, 1, 0), accepted=ACCEPTED, family=family))
    assert len(proposed(1088, 3840)) == 1


def test_other_cards_have_no_tiles_of_hoppers(library, monkeypatch):
    library(Library((29, 1, 0), accepted=ACCEPTED))
    monkeypatch.setattr(cublaslt, "_hopper_processors", lambda device: None)
    assert proposed(1088, 3840) == ["cublasLt tile 29"]


def test_a_library_without_a_kernel_is_no_fault(library, caplog):
    library(Library())
    assert proposed() == []
    assert not caplog.records


class Refusing:
    def __getattr__(self, name):
        return lambda *arguments: 14


@pytest.mark.parametrize(
    ("stand_in", "told"),
    [
        (Refusing(), "cublasLtMatmulDescCreate answered 14"),
        (Library(refused=14), "cublasLtMatmulAlgoGetHeuristic answered 14"),
    ],
    ids=["a refusal", "no proposals"],
)
def test_a_library_that_fails_is_told_of_once(library, caplog, stand_in, told):
    library(stand_in)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert proposed() == []
    (record,) = caplog.records
    assert "torch's choice of kernels" in record.message
    assert told in record.message


def test_its_version_is_asked_for_where_it_is(library, monkeypatch):
    stand_in = Library()
    library(stand_in)
    monkeypatch.setattr(stand_in, "cublasLtGetVersion", lambda: 130100, raising=False)
    assert cublaslt.version() == 130100
    cublaslt._is_there.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cublaslt.version() == 0


def test_a_library_that_is_missing_is_told_of_once(library, monkeypatch, caplog):
    def missing():
        raise OSError("libcublasLt.so.13: cannot open shared object file")

    monkeypatch.setattr(cublaslt, "_library", missing)
    for tokens in (32, 64):
        assert cublaslt._problem(cublaslt._Size(tokens, 16, 8, torch.bfloat16, CUDA)) is None
    (record,) = caplog.records
    assert "libcublasLt.so.13" in record.message
