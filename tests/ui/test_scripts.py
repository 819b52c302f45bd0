"""What can be told of the scripts and style sheets without a browser."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

ASSETS = {entry.name: entry.read_text("utf-8") for entry in files("zimage_ui.ui").joinpath("assets").iterdir()}
SCRIPTS = sorted(name for name in ASSETS if name.endswith(".js"))
# Text from a request must never be read as HTML or as a program.
DANGEROUS = re.compile(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc)\b")


def without_comments(script: str) -> str:
    return re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", script, flags=re.DOTALL)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_put_text_in_as_text(name: str) -> None:
    assert not DANGEROUS.search(without_comments(ASSETS[name]))


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_nothing_names_another_origin(name: str) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"')]*", without_comments(ASSETS[name])))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of SVG; nothing is fetched from it


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_imports_is_there(name: str) -> None:
    for names, module in re.findall(r"import (?:\{([^}]*)\} from )?\"\./([\w.]+)\"", ASSETS[name]):
        exported = set(re.findall(r"export (?:async )?(?:const|function|class) (\w+)", ASSETS[module]))
        assert {part.strip() for part in names.split(",") if part.strip()} <= exported


def test_every_script_is_reached_from_the_first() -> None:
    reached, waiting = set(), ["studio.js"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += [each for each in re.findall(r"import [^;]*\"\./([\w.]+)\"", ASSETS[name]) if each not in reached]
    assert reached == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_imported_names_and_exports_are_used(name: str) -> None:
    script = without_comments(ASSETS[name])
    for names in re.findall(r"import \{([^}]*)\} from", script):
        for part in names.split(","):
            if part.strip():
                assert len(re.findall(rf"\b{re.escape(part.strip())}\b", script)) > 1, part
    others = "\n".join(text for other, text in ASSETS.items() if other != name and other.endswith(".js"))
    for exported in re.findall(r"export (?:async )?(?:const|function|class) (\w+)", script):
        assert re.search(rf"\b{exported}\b", others), exported


def test_every_element_is_defined_once() -> None:
    defined = re.findall(r'customElements\.define\("([\w-]+)"', "\n".join(ASSETS[name] for name in SCRIPTS))
    assert len(defined) == len(set(defined))
    assert all(name.startswith("zi-") for name in defined)
