"""Scenes that are wrong in one thing alone: what a judge must say no to."""

from __future__ import annotations

from dataclasses import replace

from training.world.scene import Group, Item, Lettering, Pair, Scene, Single, Subject

_SIDEWAYS = {"left of", "right of", "next to"}


def altered(scene: Scene, criterion: str, other: Scene) -> Scene | None:
    """A scene that differs from `scene` by `criterion` alone; None if `other` cannot lend the difference."""
    if criterion == "background":
        return replace(scene, background=other.background) if other.background != scene.background else None
    if criterion in ("thing", "colour"):
        subject = _with_another(scene.subject, criterion, other.items)
    else:
        subject = _arranged(scene.subject, criterion, other.subject)
    return replace(scene, subject=subject) if subject is not None else None


def _with_another(subject: Subject, field: str, lent: tuple[Item, ...]) -> Subject:
    """`subject` with the thing or the colour of the first of `lent`, which none of its own items has."""
    if not lent or not isinstance(subject, Single | Group | Pair):
        return None
    value = getattr(lent[0], field)
    items = (subject.first, subject.second) if isinstance(subject, Pair) else (subject.item,)
    if value in [getattr(item, field) for item in items]:
        return None
    changed = replace(items[0], **{field: value})
    return replace(subject, first=changed) if isinstance(subject, Pair) else replace(subject, item=changed)


def _arranged(subject: Subject, criterion: str, lent: Subject) -> Subject:
    """`subject` with the position, relation, count or word of `lent`, if that contradicts its own."""
    match criterion, subject, lent:
        case "place", Single(), Single(position=position) if position != subject.position:
            return replace(subject, position=position)
        case "place", Pair(), Pair(relation=relation) if _contradicts(relation, subject.relation):
            return replace(subject, relation=relation)
        case "count", Group(), Group(count=count) if count != subject.count:
            return replace(subject, count=count)
        case "word", Lettering(), Lettering(text=text) if text != subject.text:
            return replace(subject, text=text)
    return None


def _contradicts(relation: str, other: str) -> bool:
    return relation != other and not ("next to" in (relation, other) and {relation, other} <= _SIDEWAYS)
