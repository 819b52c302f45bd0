import inspect
import pickle

import pytest

from zimage_ui import errors
from zimage_ui.errors import InvalidRequestError, QueueFullError, ZImageError

ALL = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ZImageError)
]  # fmt: skip


def drawn_tree() -> dict[str, str]:
    """The tree in the module's docstring: each error's name and its parent's, read from the indentation."""
    parents: dict[str, str] = {}
    path: list[str] = []
    drawing = (errors.__doc__ or "").split("::", 1)[1].split("\n\n", 2)[1]
    for line in drawing.splitlines():
        bare = line.removeprefix("    ")
        name = bare.lstrip("│├└─ ").split()[0]
        depth = (len(bare) - len(bare.lstrip("│├└─ "))) // 4
        path[depth:] = [name]
        if depth:
            parents[name] = path[depth - 1]
    return parents


def test_the_drawing_is_the_tree():
    assert drawn_tree() == {kind.__name__: kind.__base__.__name__ for kind in ALL if kind is not ZImageError}


def test_every_error_has_a_code_of_its_own():
    codes = [kind.__dict__.get("code") for kind in ALL]
    assert None not in codes
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_says_what_happened_and_what_to_do(kind: type[ZImageError]):
    error = kind("The disk is full.", "Make room.")
    assert (error.message, error.hint) == ("The disk is full.", "Make room.")
    assert str(error) == "The disk is full. Make room."
    assert str(kind("Only this.")) == "Only this."


def test_errors_carry_what_programs_need():
    assert InvalidRequestError("no", param="width").param == "width"
    assert QueueFullError("no", retry_after_s=9).retry_after_s == 9


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_the_way_to_another_process(kind: type[ZImageError]):
    error = pickle.loads(pickle.dumps(kind("what", "hint")))
    assert (type(error), error.message, error.hint) == (kind, "what", "hint")
