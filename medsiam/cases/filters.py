"""A filter in words to tests on columns: checked, and never handed on as it was written.

    modality = 'MR' and age between 40 and 60
    not (sex = 'F') or grade in ('II', 'III')
    acquired >= '2023-01-01' and outcome is not null

    any   := every { "or" every }
    every := one { "and" one }
    one   := "not" one | "(" any ")" | column test
    test  := ("=" | "!=" | "<" | "<=" | ">" | ">=") value | ["not"] "between" value "and" value
           | ["not"] "in" "(" value { "," value } ")" | "is" ["not"] "null"

An unknown value passes no test but `is null`, also not behind a `not`: so it is in SQL,
and every engine is made to agree.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal, NamedTuple, NoReturn, TypeAlias

from medsiam.cases.case import ASKABLE, LABEL_PREFIX, day_of
from medsiam.errors import FilterRefused

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "in", "not in", "known", "unknown"]
Value = str | float

# A filter is typed by a person; more is a mistake or an attack.
LONGEST_FILTER = 2000
DEEPEST_NESTING = 20
MOST_VALUES = 500

_NEGATED: dict[Operator, Operator] = {
    "=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">",
    "in": "not in", "not in": "in", "known": "unknown", "unknown": "known",
}  # fmt: skip
_WORDS = frozenset({"and", "or", "not", "between", "in", "is", "null"})
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_.]*)|(?P<sign><=|>=|!=|<>|[=<>(),]))"
)


@dataclass(frozen=True)
class Test:
    """One column against values.

    column      as it is stored
    is_number   whether numbers are compared; a label's text is read as one
    values      one, for "in" and "not in" any number, for "known" and "unknown" none
    """

    column: str
    operator: Operator
    values: tuple[Value, ...] = ()
    is_number: bool = False

    @property
    def is_label(self) -> bool:
        """Whether the column is one of the user's own."""
        return self.column.startswith(LABEL_PREFIX)


@dataclass(frozen=True)
class Every:
    """All parts hold; of no parts it always holds."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Some:
    """At least one part holds."""

    parts: tuple[Filter, ...]


Filter: TypeAlias = Test | Every | Some


def parse(text: str, labels: Collection[str] = ()) -> Filter:
    """The filter that a text means.

    labels  names of the user's own columns

    Raises FilterRefused, with the place and what would do.
    """
    if len(text) > LONGEST_FILTER:
        raise FilterRefused(f"the filter has {len(text)} letters, {LONGEST_FILTER} at most; make it shorter")
    return _Parser(text, labels).whole()


def every(*parts: Filter | None) -> Filter:
    """All of the parts that are there."""
    return Every(tuple(part for part in parts if part is not None))


def equal(column: str, value: str) -> Test:
    """Column is this text."""
    return Test(column, "=", (value,))


def one_of(column: str, values: Collection[str]) -> Test:
    """Column is one of these texts."""
    return Test(column, "in", tuple(values))


def differs(column: str, value: str) -> Filter:
    """Column is not this text; an unknown one is not either."""
    return Some((Test(column, "!=", (value,)), Test(column, "unknown")))


class _Token(NamedTuple):
    kind: str
    text: str
    place: int


class _Parser:
    def __init__(self, text: str, labels: Collection[str]) -> None:
        self._text, self._labels = text, labels
        self._tokens = self._split()
        self._next = 0
        self._depth = 0

    def whole(self) -> Filter:
        found = self._any(negated=False)
        if self._peek().kind != "end":
            self._refuse("an end, `and` or `or`")
        return found

    def _split(self) -> list[_Token]:
        tokens, place = [], 0
        end = len(self._text.rstrip())
        while place < end:
            match = _TOKEN.match(self._text, place)
            if match is None:
                raise FilterRefused(
                    f"the filter cannot be read from {self._text[place : place + 20].strip()!r} on; "
                    "write tests such as modality = 'MR' and age between 40 and 60"
                )
            kind, told = match.lastgroup or "", match[match.lastgroup or 0]
            is_word = kind == "name" and told.lower() in _WORDS
            tokens.append(
                _Token("word", told.lower(), match.start()) if is_word else _Token(kind, told, place)
            )
            place = match.end()
        return [*tokens, _Token("end", "", len(self._text))]

    def _any(self, *, negated: bool) -> Filter:
        parts = [self._every(negated=negated)]
        while self._take("word", "or"):
            parts.append(self._every(negated=negated))
        # not (a or b) is (not a) and (not b)
        return parts[0] if len(parts) == 1 else Every(tuple(parts)) if negated else Some(tuple(parts))

    def _every(self, *, negated: bool) -> Filter:
        parts = [self._one(negated=negated)]
        while self._take("word", "and"):
            parts.append(self._one(negated=negated))
        return parts[0] if len(parts) == 1 else Some(tuple(parts)) if negated else Every(tuple(parts))

    def _one(self, *, negated: bool) -> Filter:
        self._depth += 1
        if self._depth > DEEPEST_NESTING:
            raise FilterRefused(f"the filter nests deeper than {DEEPEST_NESTING}; make it flatter")
        try:
            if self._take("word", "not"):
                return self._one(negated=not negated)
            if self._take("sign", "("):
                found = self._any(negated=negated)
                self._need("sign", ")")
                return found
            return self._test(negated=negated)
        finally:
            self._depth -= 1

    def _test(self, *, negated: bool) -> Filter:
        token = self._peek()
        if token.kind != "name":
            self._refuse("the name of a column")
        self._next += 1
        column, kind = self._column(token.text)
        if self._take("word", "is"):
            operator: Operator = "known" if self._take("word", "not") else "unknown"
            self._need("word", "null")
            return Test(column, _NEGATED[operator] if negated else operator)
        negated ^= self._take("word", "not")
        if self._take("word", "between"):
            low = self._value()
            self._need("word", "and")
            return _between(column, kind, low, self._value(), negated=negated)
        if self._take("word", "in"):
            parts = tuple(_test(column, kind, "=", value, negated=negated) for value in self._values())
            return Every(parts) if negated else Some(parts)
        return _test(column, kind, self._sign(), self._value(), negated=negated)

    def _column(self, name: str) -> tuple[str, str]:
        known = name.lower().removeprefix("label.")
        if known in ASKABLE and not name.lower().startswith("label."):
            return known, ASKABLE[known]
        if known in self._labels:
            return LABEL_PREFIX + known, "label"
        every_name = [*ASKABLE, *sorted(self._labels)]
        near = difflib.get_close_matches(known, every_name, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise FilterRefused(
            f"there is no column {name[:40]!r} in this index; {hint}known: {', '.join(every_name)}"
        )

    def _sign(self) -> Operator:
        token = self._peek()
        signs: dict[str, Operator] = {
            "=": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="
        }  # fmt: skip
        if token.kind != "sign" or token.text not in signs:
            self._refuse("=, !=, <, <=, >, >=, between, in or is")
        self._next += 1
        return signs[token.text]

    def _values(self) -> list[Value]:
        self._need("sign", "(")
        values = [self._value()]
        while self._take("sign", ","):
            values.append(self._value())
            if len(values) > MOST_VALUES:
                raise FilterRefused(f"`in` takes {MOST_VALUES} values at most; make several filters")
        self._need("sign", ")")
        return values

    def _value(self) -> Value:
        token = self._peek()
        if token.kind not in ("text", "number"):
            self._refuse("a number or a 'text' in single quotes")
        self._next += 1
        if token.kind == "text":
            return token.text[1:-1].replace("''", "'")
        if not math.isfinite(float(token.text)):
            raise FilterRefused(f"{token.text[:30]} is too large a number; write a smaller one")
        return float(token.text)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, kind: str, text: str) -> bool:
        token = self._peek()
        is_it = token.kind == kind and token.text == text
        self._next += is_it
        return is_it

    def _need(self, kind: str, text: str) -> None:
        if not self._take(kind, text):
            self._refuse(f"`{text}`")

    def _refuse(self, wanted: str) -> NoReturn:
        token = self._peek()
        seen = repr(token.text[:30]) if token.kind != "end" else "the end"
        raise FilterRefused(f"the filter has {seen} at letter {token.place + 1}; there must be {wanted}")


def _between(column: str, kind: str, low: Value, high: Value, *, negated: bool) -> Filter:
    ends = (
        _test(column, kind, ">=", low, negated=negated),
        _test(column, kind, "<=", high, negated=negated),
    )
    return Some(ends) if negated else Every(ends)


def _test(column: str, kind: str, operator: Operator, value: Value, *, negated: bool) -> Filter:
    """One comparison, checked for type; a day means all of it."""
    operator = _NEGATED[operator] if negated else operator
    if kind == "date":
        return _dated(operator, value)
    if kind == "number" and isinstance(value, str):
        raise FilterRefused(f"{column} is a number, {value[:30]!r} is text; write it without quotes")
    if kind == "text" and not isinstance(value, str):
        raise FilterRefused(f"{column} is text; write '{value:g}' in single quotes")
    if isinstance(value, str):
        if operator not in ("=", "!="):
            raise FilterRefused(f"text is compared by = and != only, not by {operator}; use `in` for several")
        if not value.isprintable() or "\0" in value:
            raise FilterRefused("the filter holds letters that cannot be shown; write plain text")
    return Test(column, operator, (value,), is_number=not isinstance(value, str))


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _dated(operator: Operator, value: Value) -> Filter:
    try:
        moment = datetime.fromisoformat(str(value))
        is_whole_day = _is_day(str(value))
    except ValueError:
        raise FilterRefused(f"{str(value)[:30]!r} is no date; write acquired >= '2023-05-31'") from None
    start = day_of(moment.replace(tzinfo=None).isoformat())
    assert start is not None
    end = start + 1.0 if is_whole_day else start
    before, after = Test("acquired_day", "<", (start,), True), Test("acquired_day", ">=", (end,), True)
    if operator in ("=", "!="):
        inside: tuple[Filter, ...] = (_flipped(before), _flipped(after))
        if not is_whole_day:
            return Test("acquired_day", operator, (start,), True)
        return Every(inside) if operator == "=" else Some((before, after))
    if operator == "<":
        return before
    if operator == ">=":
        return _flipped(before)
    if not is_whole_day:
        return Test("acquired_day", operator, (start,), True)
    return after if operator == ">" else _flipped(after)


def _flipped(test: Test) -> Test:
    return Test(test.column, _NEGATED[test.operator], test.values, test.is_number)
