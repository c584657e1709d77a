"""The schema keyword `items` for arrays with millions of items, as encodings files hold them.

    scale: [0.1, 0.2, ...]                    the smallest and the largest number are compared
    w: [{"bitwidth": 8, "scale": 0.1}, ...]   of objects alike but for their numbers, those with
                                              the smallest and the largest number of each key

What passes this way passes item by item too, since the schemas here limit numbers by bounds and by
whether they are whole, and by nothing else. What does not pass is looked at item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from jsonschema.exceptions import ValidationError

_NUMBER_KEYWORDS = {"type", "exclusiveMinimum", "minimum", "maximum"}
_SCALARS = (str, bool, int, float, type(None))
_MOST_FORMS = 64
_WORTHWHILE = 32

ItemsKeyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError]]


def items_keyword(ends: int | None) -> ItemsKeyword:
    """The keyword; with `ends`, of a longer array only so many items at each end are looked at.

    No schema here has `prefixItems`, which would have to be skipped.
    """

    def items(validator: Any, rule: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        if not isinstance(instance, list) or _all_numbers_fit(rule, instance):
            return
        indices: Iterable[int] = range(len(instance))
        if ends is not None and len(instance) > 2 * ends:
            indices = chain(range(ends), range(len(instance) - ends, len(instance)))
        elif len(instance) >= _WORTHWHILE:
            chosen = representatives(instance)
            if chosen and not any(list(validator.descend(item, rule)) for item in chosen):
                return
        for index in indices:
            yield from validator.descend(instance[index], rule, path=index)

    return items


def representatives(instance: list[Any]) -> list[dict[str, Any]] | None:
    """Flat objects that stand for all others, or None if the items are not flat or not alike."""
    forms: dict[Any, list[dict[str, Any]]] = {}
    for item in instance:
        if type(item) is not dict:
            return None
        form = []
        for key, value in item.items():
            kind = type(value)
            if kind is float:
                form.append((key, kind, value.is_integer()))
            elif kind in _SCALARS:
                form.append((key, kind, None if kind is int else value))
            else:
                return None
        forms.setdefault(tuple(form), []).append(item)
        if len(forms) > _MOST_FORMS:
            return None
    return [item for form, items in forms.items() for item in _extremes(form, items)]


def _extremes(form: Any, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield items[0]
    for key, kind, _ in form:
        if kind in (int, float):
            yield min(items, key=lambda item: item[key])
            yield max(items, key=lambda item: item[key])


def _all_numbers_fit(rule: Any, instance: list[Any]) -> bool:
    """Whether a rule is only about numbers and every item satisfies it."""
    if not isinstance(rule, dict) or rule.get("type") != "number" or set(rule) - _NUMBER_KEYWORDS:
        return False
    if not instance or not {type(item) for item in instance} <= {int, float}:
        return False
    low, high = min(instance), max(instance)
    return (
        low >= rule.get("minimum", low)
        and high <= rule.get("maximum", high)
        and ("exclusiveMinimum" not in rule or bool(low > rule["exclusiveMinimum"]))
    )
