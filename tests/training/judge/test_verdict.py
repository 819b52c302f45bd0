"""Verdicts on real renders, as a network without fault would see them."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.judge.altered import altered
from training.judge.examples import COLOUR_NAMES, LABELS, Column, Examples, Layer, examples_of
from training.judge.network import Output
from training.judge.sight import SeenGlyph, SeenThing, Sight, read_output
from training.judge.targets import layer_targets
from training.judge.verdict import CRITERIA, Verdict, judge_sight, position_of, stands
from training.world.scene import Group, Item, Lettering, Pair, Scene, Single, draw_scene
from training.world.vocabulary import BACKGROUNDS, COLOURS, POSITIONS, RELATIONS

SIDE = 256


def render(*scenes: Scene) -> Examples:
    return examples_of(scenes, SIDE, random.Random(3))


def perfect_output(objects: Tensor, backgrounds: Tensor, height: int, width: int) -> Output:
    """What a network without fault would say: the targets as logits."""
    heat: dict[Layer, Tensor] = {}
    colours: dict[Layer, Tensor] = {}
    log_radii: dict[Layer, Tensor] = {}
    for layer in LABELS:
        target = layer_targets(objects, layer, height, width)
        heat[layer] = torch.logit(target.heat, eps=1e-4)
        if layer is Layer.GLYPH:
            continue
        pictures, _, rows, columns = target.heat.shape
        colours[layer] = torch.zeros((pictures, len(COLOUR_NAMES), rows, columns), device=objects.device)
        colours[layer][target.picture, target.colour, target.row, target.column] = 10.0
        log_radii[layer] = torch.zeros((pictures, rows, columns), device=objects.device)
        log_radii[layer][target.picture, target.row, target.column] = target.log_radius
    return Output(heat, colours, log_radii, 10.0 * functional.one_hot(backgrounds, len(BACKGROUNDS)).float())


def sights_of(examples: Examples) -> list[Sight]:
    output = perfect_output(
        torch.from_numpy(examples.objects), torch.from_numpy(examples.backgrounds), *examples.pictures.shape[1:3]
    )
    return read_output(output)


def sight_of(scene: Scene) -> Sight:
    return sights_of(render(scene))[0]


def wrong(verdict: Verdict) -> set[str]:
    return {name for name in CRITERIA if getattr(verdict, name) is False}


@pytest.mark.model
def test_a_perfect_network_finds_every_scene_right_and_every_altered_one_wrong():
    rng = random.Random(11)
    examples = render(*(draw_scene(rng, lambda scene: True) for _ in range(150)))
    refused = 0
    for scene, sight in zip(examples.scenes, sights_of(examples), strict=True):
        assert wrong(judge_sight(sight, scene)) == set(), scene
        for criterion in CRITERIA:
            other = altered(scene, criterion, draw_scene(rng, lambda one: True))
            if other is not None:
                refused += 1
                assert criterion in wrong(judge_sight(sight, other)), (criterion, scene, other)
    assert refused > 150


@pytest.mark.model
def test_swapped_colours_are_wrong_colours_and_nothing_else():
    star, boat = Item("star", "red"), Item("boat", "blue")
    swapped = Pair(replace(star, colour="blue"), "left of", replace(boat, colour="red"))
    sight = sight_of(Scene(swapped, "white"))
    assert wrong(judge_sight(sight, Scene(Pair(star, "left of", boat), "white"))) == {"colour"}


@pytest.mark.model
def test_two_things_with_one_name_are_told_apart_by_their_colours():
    scene = Scene(Pair(Item("cat", "red"), "above", Item("cat", "green")), "white")
    turned = replace(scene, subject=Pair(Item("cat", "green"), "above", Item("cat", "red")))
    sight = sight_of(scene)
    assert wrong(judge_sight(sight, scene)) == set()
    assert wrong(judge_sight(sight, turned)) == {"place"}


@pytest.mark.model
@pytest.mark.parametrize("inner", ["star", "circle"])
def test_a_thing_inside_another_is_seen_even_if_they_are_of_a_kind(inner: str):
    scene = Scene(Pair(Item(inner, "red", "small"), "inside", Item("circle", "blue", "big")), "white")
    sight = sight_of(scene)
    assert [(seen.thing, seen.colour) for seen in sorted(sight.things, key=lambda seen: seen.radius)] == [
        (inner, "red"),
        ("circle", "blue"),
    ]
    assert wrong(judge_sight(sight, scene)) == set()


@pytest.mark.model
@pytest.mark.parametrize(
    ("shown", "asked", "faults"),
    [
        (Group(Item("fish", "red"), 3), Group(Item("fish", "red"), 4), {"count"}),
        (Group(Item("fish", "red"), 4), Group(Item("fish", "red"), 3), {"count", "clean"}),
        (Single(Item("sun", "red"), "top left"), Single(Item("sun", "red"), "top"), {"place"}),
        (Single(Item("sun", "red")), Single(Item("moon", "red")), {"thing", "colour", "place", "clean"}),
        (Lettering("sign", "red", "OPEN"), Lettering("sign", "red", "0PEN"), {"word"}),
        (Lettering("sign", "red", "AA"), Lettering("sign", "red", "AAA"), {"word"}),
        (Lettering("sign", "red", ""), Lettering("sign", "red", ""), set()),
        (Lettering("sign", "red", "A"), Lettering("sign", "red", ""), {"word"}),
        (Lettering("sign", "red", ""), Lettering("sign", "red", "OPEN"), {"word"}),
        (None, Single(Item("sun", "red")), {"thing", "colour", "place"}),
        (Single(Item("sun", "red")), None, {"clean"}),
    ],
)
def test_what_differs_is_what_is_wrong(shown, asked, faults):
    assert wrong(judge_sight(sight_of(Scene(shown, "white")), Scene(asked, "white"))) == faults


@pytest.mark.model
def test_another_background_is_wrong_alone():
    scene = Scene(Single(Item("sun", "red")), "meadow")
    assert wrong(judge_sight(sight_of(scene), replace(scene, background="sea"))) == {"background"}


@pytest.mark.model
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("size", ["small", "medium", "big"])
def test_every_position_is_recognised_at_every_size(position: str, size: str):
    (seen,) = sight_of(Scene(Single(Item("house", "red", size), position), "white")).things
    assert position_of(seen) == position


@pytest.mark.model
def test_what_is_unsure_is_not_believed():
    examples = render(Scene(Single(Item("sun", "red")), "white"))
    output = perfect_output(torch.from_numpy(examples.objects), torch.from_numpy(examples.backgrounds), SIDE, SIDE)
    output.heat[Layer.THING].clamp_(max=-1.0)
    assert read_output(output)[0].things == ()


def seen_at(x: float, y: float, thing: str = "cat", radius: float = 0.1) -> SeenThing:
    return SeenThing(thing, "red", x, y, radius, 1.0)


@pytest.mark.parametrize(
    ("x", "y", "relations"),
    [
        (0.2, 0.5, {"left of", "next to"}),
        (0.8, 0.5, {"right of", "next to"}),
        (0.5, 0.2, {"above"}),
        (0.5, 0.8, {"below"}),
        (0.52, 0.5, {"inside"}),
        (0.1, 0.2, {"left of", "next to"}),
    ],
)
def test_relations_go_by_the_centres(x: float, y: float, relations: set[str]):
    other = seen_at(0.5, 0.5, radius=0.2)
    assert {name for name in RELATIONS if stands(seen_at(x, y), name, other)} == relations


def test_a_further_thing_spoils_a_count_and_a_letter_spoils_cleanness():
    scene = Scene(Group(Item("cat", "red"), 2), "white")
    two = (seen_at(0.3, 0.5), seen_at(0.7, 0.5))
    assert wrong(judge_sight(Sight(two, (), "white"), scene)) == set()
    assert wrong(judge_sight(Sight((*two, seen_at(0.5, 0.1, "hat")), (), "white"), scene)) == {"count", "clean"}
    assert wrong(judge_sight(Sight(two, (SeenGlyph("A", 0.5, 0.9, 1.0),), "white"), scene)) == {"clean"}


def test_letters_are_read_from_left_to_right():
    glyphs = tuple(SeenGlyph(character, x, 0.5, 1.0) for character, x in (("B", 0.6), ("A", 0.3), ("1", 0.9)))
    assert Sight((), glyphs, "white").text == "AB1"


@pytest.mark.model
def test_rows_say_what_stands_where():
    examples = render(Scene(Pair(Item("leaf", "red", "small"), "inside", Item("ring", "blue", "big")), "white"))
    rows = examples.objects[0]
    assert [Layer(int(row[Column.LAYER])) for row in rows[:3]] == [Layer.CONTAINER, Layer.THING, Layer.NONE]
    assert list(COLOURS)[int(rows[0][Column.COLOUR])] == "blue"
