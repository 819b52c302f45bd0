import json
from pathlib import Path

import pytest

from bench import engine, engine_parts, players


def test_everything_is_measured_unless_parts_are_named(tmp_path: Path):
    options = engine.parse([str(tmp_path)])
    assert tuple(options.parts) == engine.PARTS
    assert options.players == ["stock", "stock-compiled", "exact", "fp8"]
    assert options.sizes[0] == (1024, 1024)
    assert {(512, 512), (768, 768), (1536, 1536), (832, 1248)} < set(options.sizes)
    assert options.result.name == "engine.json"
    chosen = engine.parse([str(tmp_path), "--parts", "peak", "--sizes", "512x512", "768x768", "--tiny"])
    assert (chosen.parts, chosen.sizes) == (["peak"], [(512, 512), (768, 768)])
    assert chosen.players == ["stock", "stock-compiled", "exact"]
    assert set(players.MODES) == {"exact", "fp8", "int8", "nf4"}
    assert chosen.result == tmp_path.with_suffix(".engine.json")


def test_whoever_is_stored_is_not_only_beside(tmp_path: Path):
    options = engine.parse([str(tmp_path), "--players", "exact", "nf4", "--beside", "exact", "stock"])
    assert (options.players, options.beside) == (["exact", "nf4"], ["stock"])


def test_files_are_read_to_their_ends(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights").write_bytes(b"x" * (2**24 + 1))
    (tmp_path / "config.json").write_bytes(b"{}")
    assert engine_parts.read_through(tmp_path) == 2**24 + 3


@pytest.mark.parametrize(
    ("ratios", "lost"),
    [
        ([1.02, 1.0, 1.02, 1.0], 1.0),
        ([1.01, 0.99, 1.01, 0.99, 1.01, 0.99], 0.0),  # whoever comes second is a percent slower: nothing is lost
        ([0.99, 1.01, 0.99, 1.01, 0.99], 0.0),
        ([1.0, 1.0, 1.3, 1.0, 1.0, 1.0], 0.0),
    ],
)
def test_who_begins_loses_nothing_by_it(ratios, lost):
    assert engine_parts.lost_pct(ratios) == pytest.approx(lost)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    common = [str(folder), "--tiny", "--sizes", "64x64", "--commit", "abc", "--warm-only"]
    engine.main([*common, "--parts", "memory", "--players", "exact"])
    arguments = "--parts first peak sizes steady instruments --runs 2 --pictures 3"
    engine.main([*common, *arguments.split()])
    return folder


@pytest.mark.model
@pytest.mark.service  # starts processes of its own
@pytest.mark.timeout(400)
class TestATinyModelOnTheCpu:
    def stored(self, folder: Path) -> dict:
        return json.loads(folder.with_suffix(".engine.json").read_text("utf-8"))

    def test_every_part_is_there_with_its_call(self, folder: Path):
        result = self.stored(folder)
        call, told = list(result["calls"].items())[-1]
        assert (told["commit"], told["model"]["trained"]) == ("abc", False)
        parts = result["parts"]
        assert set(parts) == {"memory", "first", "peak", "sizes", "steady", "instruments"}
        assert (len(result["summary"]["rows"]) > 0, result["summary"]["bars"]) == (True, [])
        assert set(parts["memory"]["exact"]["sizes"]) == {"64x64"}
        for part in (parts["first"]["exact"]["64x64"], parts["peak"]["64x64"], parts["steady"]["exact"]["64x64"]):
            assert part["call"] == call
            assert "No NVIDIA GPU" in part["conditions"]["note"] or "gpu" in part["conditions"]
        assert len(parts["first"]["exact"]["64x64"]["pictures_ms"]) == 10
        assert parts["steady"]["exact"]["64x64"]["total_ms"]["count"] == 3
        assert len(parts["instruments"]["exact"]["64x64"]["ratios"]) == 2
        assert parts["peak"]["64x64"]["tokens"] == 16 + 16 + 64

    def test_all_players_drew_the_same_pictures_in_turns(self, folder: Path):
        drawn = self.stored(folder)["parts"]["sizes"]["64x64"]
        assert set(drawn) == set(engine.TINY_PLAYERS)
        for name, figures in drawn.items():
            assert set(figures["in_turns_with"]) == set(engine.TINY_PLAYERS) - {name}
            times = figures["times_ms"]
            assert times["total"]["count"] == 2
            for row in range(2):
                parts = sum(figures["rounds_ms"][stage][row] for stage in ("encode", "sample", "decode"))
                assert parts == pytest.approx(figures["rounds_ms"]["total"][row], rel=0.2)
                assert figures["rounds_ms"]["forwards"][row] <= figures["rounds_ms"]["sample"][row]
            assert figures["tflops"]["total"] >= 0
            assert 57 <= figures["prompt_tokens"]["min"] <= figures["prompt_tokens"]["max"] <= 64
        assert drawn["exact"]["mean_difference_to_stock_of_255"] <= 1
        assert drawn["stock-compiled"]["mean_difference_to_stock_of_255"] <= 1
        assert "times_as_fast_as_stock" not in drawn["stock"]
        ours_ms, theirs_ms = (drawn[name]["times_ms"]["total"]["median"] for name in ("exact", "stock"))
        assert drawn["exact"]["stock_times_ms"]["total"] == pytest.approx(theirs_ms, rel=1e-3)
        assert drawn["stock"]["exact_times_ms"]["total"] == pytest.approx(ours_ms, rel=1e-3)
        forwards_ms = drawn["exact"]["times_ms"]["forwards"]["median"]
        assert drawn["stock"]["exact_times_ms"]["forwards"] == pytest.approx(forwards_ms, rel=1e-3)
        assert drawn["stock"]["mean_difference_to_exact_of_255"] == drawn["exact"]["mean_difference_to_stock_of_255"]

    def test_a_later_call_adds_its_part_and_keeps_the_others(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        before = self.stored(folder)
        arguments = "--tiny --parts sizes --players stock exact --sequential --sizes 80x64 --runs 1"
        engine.main([str(folder), *arguments.split()])
        parts = self.stored(folder)["parts"]
        assert parts["sizes"]["64x64"] == before["parts"]["sizes"]["64x64"]
        assert {name: each["in_turns_with"] for name, each in parts["sizes"]["80x64"].items()} == {
            "stock": [], "exact": [],
        }  # fmt: skip
        assert len(self.stored(folder)["calls"]) == len(before["calls"]) + 1
        beside = "--tiny --parts sizes --players stock --beside exact --sizes 80x64 --runs 2"
        engine.main([str(folder), *beside.split()])
        again = self.stored(folder)["parts"]["sizes"]["80x64"]
        assert again["exact"] == parts["sizes"]["80x64"]["exact"]
        assert again["stock"]["in_turns_with"] == ["exact"]
        assert again["stock"]["times_ms"]["total"]["count"] == 2
        printed = capsys.readouterr().out
        assert "80x64  exact" in printed
        assert "Bars are of the full size" in printed
        assert "MISSED" not in printed

    def test_no_part_begins_when_the_time_is_up(self, folder: Path):
        before = self.stored(folder)
        with pytest.raises(SystemExit, match="left out: peak/64x64, sizes/64x64"):
            engine.main([str(folder), "--tiny", "--minutes", "0", "--parts", "peak", "sizes", "--sizes", "64x64"])
        assert self.stored(folder)["parts"] == before["parts"]

    def test_who_cannot_draw_is_left_out_and_the_others_are_measured(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no compiler")

        monkeypatch.setattr(players.CompiledStock, "draw", fail)
        with pytest.raises(SystemExit, match="left out: sizes/96x64/stock-compiled"):
            arguments = "--tiny --parts sizes --players stock stock-compiled --sizes 96x64 --runs 1"
            engine.main([str(folder), *arguments.split()])
        assert set(self.stored(folder)["parts"]["sizes"]["96x64"]) == {"stock"}
        assert "RuntimeError: no compiler" in capsys.readouterr().out

    @pytest.mark.parametrize("warm_sizes", [[], [(96, 64), (64, 64)]], ids=["all sizes", "some sizes"])
    def test_a_generator_becomes_ready_in_a_process_of_its_own(self, folder: Path, warm_sizes: list[tuple[int, int]]):
        seen = engine_parts.ready_generator(folder, "exact", warm_sizes)["seconds_to"]
        assert list(seen) == ["imported", "loaded", "ready", "prepared"]
        assert sorted(seen.values()) == list(seen.values())


@pytest.mark.model
def test_the_warm_up_can_be_kept_to_the_sizes_that_are_measured(tmp_path: Path):
    from zimage_ui.generator.profiles import MINI, PROFILES
    from zimage_ui.generator.untrained import build_untrained_model

    ours = players.Ours(build_untrained_model(tmp_path / "tiny"), [(64, 64)])
    assert ours.info.profile.sizes == ((64, 64),)
    assert PROFILES["mini"] is MINI
    ours.close()


@pytest.mark.model
def test_a_picture_of_a_cached_prompt_is_no_measurement(tmp_path: Path):
    from zimage_ui.generator.untrained import build_untrained_model

    ours = players.Ours(build_untrained_model(tmp_path / "tiny"))
    ours.draw("a red fox", 64, 64, seed=1)
    with pytest.raises(SystemExit, match="comparison is void"):
        ours.draw("a red fox", 64, 64, seed=2)
    ours.close()
