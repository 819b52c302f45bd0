"""Measuring in turns, with a clock that stands in for a card: kernels are faster after a pause than at work."""

import itertools

import pytest
import torch

from zimage_ui.generator.fast import timing
from zimage_ui.generator.fast.choices import clearly_fastest
from zimage_ui.generator.fast.giving_way import GaveWayError, giving_way
from zimage_ui.generator.fast.timing import in_turns_ms

CPU = torch.device("cpu")


class Card:
    """Takes for each kernel one time while it is fresh, and another after some work."""

    def __init__(self):
        self.now_ms = 0.0
        self.recorders = 0
        self.replayed = {}
        self.tires_after_ms = 40

    def kernel(self, name, fresh_ms, tired_ms):
        def run():
            self.replayed[name] = self.replayed.get(name, 0) + 1
            self.now_ms += fresh_ms if self.now_ms < self.tires_after_ms else tired_ms

        return run


class Mark:
    """Where the card's clock stands."""

    def __init__(self, card):
        self.at_ms = card.now_ms

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.at_ms - self.at_ms


@pytest.fixture
def card(monkeypatch):
    made = Card()

    class Recorder:
        def __init__(self, device):
            made.recorders += 1

        def record(self, run):
            run.check() if hasattr(run, "check") else None
            return run, None

    monkeypatch.setattr(timing, "CudaRecorder", Recorder)
    monkeypatch.setattr(timing, "_mark", lambda: Mark(made))
    return made


def failing(error):
    def run():
        pytest.fail("what cannot be recorded is not replayed")

    def check():
        raise error

    run.check = check
    return run


def test_what_counts_is_the_time_at_work(card):
    """The hare is the fastest after a pause; at work the tortoise is."""
    card.tires_after_ms = 120
    runs = {"hare": card.kernel("hare", 0.9, 1.2), "tortoise": card.kernel("tortoise", 1.0, 1.1)}
    assert in_turns_ms(runs, CPU) == pytest.approx({"hare": 1.2, "tortoise": 1.1})
    assert card.recorders == 1


def test_the_hopeless_are_not_measured_for_long(card):
    runs = {
        "good": card.kernel("good", 1.0, 1.1),
        "better": card.kernel("better", 0.95, 1.0),
        "hopeless": card.kernel("hopeless", 2.0, 2.0),
    }
    assert in_turns_ms(runs, CPU) == pytest.approx({"good": 1.1, "better": 1.0})
    assert card.replayed["hopeless"] < card.replayed["good"] / 3


def test_who_falls_behind_at_work_drops_out(card):
    """The hare is near after a pause; how far behind it is at work, a few rounds show."""
    card.tires_after_ms = 180
    runs = {
        "usual": card.kernel("usual", 1.0, 1.2),
        "tortoise": card.kernel("tortoise", 1.0, 1.0),
        "hare": card.kernel("hare", 0.95, 1.1),
    }
    assert in_turns_ms(runs, CPU) == pytest.approx({"usual": 1.2, "tortoise": 1.0})
    assert card.replayed["hare"] < card.replayed["tortoise"] / 1.5


def test_one_that_is_far_ahead_needs_no_turns(card):
    runs = {"only": card.kernel("only", 1.0, 1.0), "slow": card.kernel("slow", 3.0, 3.0)}
    assert in_turns_ms(runs, CPU) == pytest.approx({"only": 1.0})


def test_the_usual_one_keeps_its_turns_however_slow_it_looks(card):
    """A card that was idle comes up slowly: the first would seem to be hopeless, and never be chosen again."""
    runs = {"usual": card.kernel("usual", 2.0, 1.0), "other": card.kernel("other", 1.0, 1.0)}
    measured = in_turns_ms(runs, CPU)
    assert list(measured) == ["usual", "other"]
    assert measured == pytest.approx({"usual": 1.0, "other": 1.0})
    assert clearly_fastest(measured) == "usual"


def test_each_has_its_turn_for_as_long(card):
    runs = {name: card.kernel(name, ms, ms) for name, ms in (("usual", 0.1), ("short", 0.1), ("long", 0.105))}
    in_turns_ms(runs, CPU)
    assert card.replayed["short"] == pytest.approx(card.replayed["long"] * 1.05, rel=0.03)


def test_whoever_comes_next_to_another_is_its_neighbour_in_both_orders(card):
    """A thrifty kernel lets the clock rise for the one after it: no one has that for itself."""
    last = []

    def replay(name, ms):
        def run():
            card.now_ms += ms * (0.94 if last[-1:] == ["thrifty"] else 1.0)
            last.append(name)

        return run

    runs = {name: replay(name, 1.0) for name in ("usual", "thrifty", "favoured")}
    measured = in_turns_ms(runs, CPU)
    assert measured["usual"] == pytest.approx(measured["favoured"], rel=0.01)


def test_whoever_begins_a_round_does_not_pay_for_its_launch(card, monkeypatch):
    """A card that has done all it was given stands idle until the host has launched the next."""
    is_idle = []
    monkeypatch.setattr(Mark, "synchronize", lambda mark: is_idle.append(True))

    def replay():
        card.now_ms += 1.0 + (1.0 if is_idle else 0.0)
        is_idle.clear()

    assert in_turns_ms({"usual": replay, "other": replay}, CPU) == pytest.approx({"usual": 1.0, "other": 1.0})


@pytest.mark.parametrize("asked_before", [1, 3, 6, 10, 19])
def test_it_gives_way_at_any_time_and_measures_all_the_next(card, asked_before):
    """Between two candidates, before the turns and between two rounds of them."""
    runs = {name: card.kernel(name, 1.0, 1.0) for name in ("usual", "other", "third")}
    times_asked = []

    def somebody_waits():
        times_asked.append(card.now_ms)
        return len(times_asked) == asked_before

    with giving_way(somebody_waits), pytest.raises(GaveWayError):
        in_turns_ms(runs, CPU)
    with giving_way(lambda: False):
        assert list(in_turns_ms(runs, CPU)) == [*runs]


def test_it_asks_often(card):
    """A round of all is the longest that anybody waits, but for what gets the clock up."""
    runs = {name: card.kernel(name, 1.0, 1.0) for name in ("usual", "other", "third")}
    asked_at_ms = [0.0]
    with giving_way(lambda: asked_at_ms.append(card.now_ms) or False):
        in_turns_ms(runs, CPU)
    pauses_ms = sorted(later - earlier for earlier, later in itertools.pairwise(asked_at_ms))
    assert pauses_ms[-1] == pytest.approx(timing._BUSY_MS + 7, abs=1)
    assert pauses_ms[-2] <= 3 * timing._TURN_MS + 1


def test_outside_of_such_a_context_nobody_waits(card):
    with giving_way(lambda: True):
        pass
    assert in_turns_ms({"only": card.kernel("only", 1.0, 1.0)}, CPU) == pytest.approx({"only": 1.0})


def test_what_cannot_be_recorded_is_left_out_and_spoils_nothing(card, caplog):
    runs = {
        "first": card.kernel("first", 1.0, 1.0),
        "broken": failing(RuntimeError("no such tile")),
        "second": card.kernel("second", 0.9, 0.9),
    }
    assert set(in_turns_ms(runs, CPU)) == {"first", "second"}
    assert "broken is left out: RuntimeError: no such tile" in caplog.text
    assert card.recorders == 1


def test_where_nothing_works_nothing_is_answered(card):
    assert in_turns_ms({"broken": failing(RuntimeError("no such tile"))}, CPU) == {}


def test_a_full_memory_is_the_callers(card):
    with pytest.raises(torch.OutOfMemoryError):
        in_turns_ms({"large": failing(torch.OutOfMemoryError("CUDA out of memory."))}, CPU)
