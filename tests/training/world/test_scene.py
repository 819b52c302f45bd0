"""Things have usual colours, which can be seen where they are, and which training knows."""

import random

import pytest

from training.world.layout import place
from training.world.scene import (
    Group,
    Item,
    Lettering,
    Pair,
    Scene,
    Single,
    draw_scene,
    draw_training_scene,
    in_usual_colours,
    is_held_out_pair,
    is_held_out_relation,
    is_held_out_word,
    usual_colour,
)
from training.world.vocabulary import (
    BACKGROUNDS,
    CONTAINERS,
    PASTEL_COLOURS,
    RELATIONS,
    SCENERY_COLOURS,
    SURFACES,
    THINGS,
    USUAL_COLOURS,
)


def hidden(background: str) -> tuple[str, ...]:
    return SCENERY_COLOURS.get(background, (background,))


def test_everything_has_usual_colours_that_training_meets() -> None:
    assert set(USUAL_COLOURS) == {*THINGS, *SURFACES}
    for thing in THINGS:
        assert not any(is_held_out_pair(thing, colour) for colour in USUAL_COLOURS[thing]), thing


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_there_is_a_usual_colour_in_front_of_every_background(background: str) -> None:
    for thing in THINGS:
        assert usual_colour(Scene(None, background), Item(thing, "")) not in (None, *hidden(background)), thing
    for surface in SURFACES:
        assert usual_colour(Scene(None, background), Lettering(surface, "", "A")) not in (None, *hidden(background))


def test_the_second_colour_takes_over_where_the_first_is_hidden() -> None:
    cloud = Item("cloud", "red")
    found = [usual_colour(Scene(None, background), cloud) for background in ("black", "day", "white", "snow")]
    assert found == ["white", "gray", "gray", "blue"]


def test_what_is_inside_something_of_its_usual_colour_has_its_second() -> None:
    scene = in_usual_colours(Scene(Pair(Item("heart", "blue"), "inside", Item("circle", "green")), "white"))
    assert scene.subject == Pair(Item("heart", "pink"), "inside", Item("circle", "red"))


def test_pastel_has_pastel_colours_only() -> None:
    for thing in THINGS:
        assert usual_colour(Scene(None, "red", "pastel"), Item(thing, "")) in (None, *PASTEL_COLOURS)


def test_a_fifth_of_the_things_have_their_usual_colour() -> None:
    rng = random.Random(31)
    usual = [
        item.colour == usual_colour(scene, item)
        for scene in (draw_training_scene(rng) for _ in range(8_000))
        for item in scene.items
    ]
    assert 0.18 < sum(usual) / len(usual) < 0.27


def test_no_thing_is_drawn_where_it_cannot_be_seen() -> None:
    rng = random.Random(32)
    for _ in range(8_000):
        scene = draw_training_scene(rng)
        assert not {item.colour for item in scene.items} & set(hidden(scene.background))
        match scene.subject:
            case Pair(first, relation, second):
                assert (first.thing, first.colour) != (second.thing, second.colour)
                assert relation != "inside" or first.colour != second.colour


@pytest.mark.parametrize("seed", range(20))
def test_the_first_of_two_next_to_each_other_stands_on_the_left(seed: int) -> None:
    first, second = Item("cat", "red"), Item("fish", "blue")
    placed = place(Scene(Pair(first, "next to", second), "white"), 256, 256, random.Random(seed))
    assert [one.item for one in sorted(placed, key=lambda one: one.x)] == [first, second]


Layout = frozenset[tuple[str, int, int, bool]]


def layout(scene: Scene) -> Layout:
    """What a viewer sees of two things: which stands where, and which is around the other; no names of relations."""
    placed = place(scene, 256, 256, random.Random(7))
    return frozenset((one.item.thing, round(4 * one.x), round(4 * one.y), one.radius > 0.25) for one in placed)


def test_no_layout_that_is_kept_for_the_test_is_seen_in_training() -> None:
    rng = random.Random(33)
    drawn = (draw_training_scene(rng) for _ in range(40_000))
    seen = {layout(scene) for scene in drawn if isinstance(scene.subject, Pair)}
    kept = {
        layout(Scene(Pair(Item(first, "red"), relation, Item(second, "blue")), "white"))
        for relation in RELATIONS
        for first in THINGS
        for second in (CONTAINERS if relation == "inside" else THINGS)
        if is_held_out_relation(first, relation, second)
    }
    assert len(seen) > 2_000
    assert len(kept) > 200
    assert not seen & kept


def test_a_tenth_of_the_relations_is_kept_from_whichever_side() -> None:
    kept = {
        relation: sum(is_held_out_relation(first, relation, second) for first in THINGS for second in THINGS)
        for relation in RELATIONS
    }
    assert kept["left of"] == kept["right of"] == kept["next to"]
    assert kept["above"] == kept["below"]
    assert all(0.07 < count / len(THINGS) ** 2 < 0.13 for count in kept.values())
    assert is_held_out_relation("cat", "below", "house") is is_held_out_relation("house", "above", "cat")


def test_some_boards_stay_empty() -> None:
    rng = random.Random(34)
    empty = sum(
        isinstance(scene.subject, Lettering) and not scene.subject.text
        for scene in (draw_training_scene(rng) for _ in range(10_000))
    )
    assert 60 < empty < 140
    assert not is_held_out_word("")
    assert isinstance(draw_scene(rng, lambda _: True, "board").subject, Lettering)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_group_always_stands_alike(count: int) -> None:
    scene = Scene(Group(Item("cat", "red"), count), "white")
    layouts = [place(scene, 320, 192, random.Random(seed)) for seed in range(30)]
    for other in layouts[1:]:
        for one, two in zip(layouts[0], other, strict=True):
            assert abs(one.x - two.x) < 0.12
            assert abs(one.y - two.y) < 0.12


def test_a_single_thing_of_no_usual_colour_keeps_its_own() -> None:
    cloud = Scene(Single(Item("mountain", "red")), "blue", "pastel")
    assert in_usual_colours(cloud) == cloud
