"""Lists of code patterns: single codes, everything under a code, ranges of categories.

In: patterns without dots and blanks (`4280`, `428*`, `E10-E14`). Out: whether one can be used, and
which lists a code is in. Ignores: code systems, and what the codes mean.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_USABLE = re.compile(r"(?P<code>[0-9A-Z]+)(?P<under>\*)?|(?P<low>[0-9A-Z]+)-(?P<high>[0-9A-Z]+)")
HOW_TO_WRITE = "write a code (4280), a code and * for all under it (428*), or a range (410-414)"


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of a code list: the codes from `low` to `high`, at the length of the two.

    `whole` codes must have that length; the others may go on after it.
    """

    low: str
    high: str
    whole: bool


def read_pattern(plain: str) -> Pattern:
    """The pattern that an entry without dots and blanks, in upper case, stands for.

    Raises:
        ValueError: it is none; the message says why and how to write one.

    >>> read_pattern("428*"), read_pattern("E10-E14").high
    (Pattern(low='428', high='428', whole=False), 'E14')
    """
    found = _USABLE.fullmatch(plain)
    if found is None:
        raise ValueError(f"'{plain}' is no code pattern; {HOW_TO_WRITE}")
    if found["code"]:
        return Pattern(found["code"], found["code"], whole=not found["under"])
    low, high = found["low"], found["high"]
    if len(low) != len(high) or low[0].isdigit() != high[0].isdigit():
        raise ValueError(f"range '{plain}': its ends must be of one form and length (E10-E14)")
    if low > high:
        raise ValueError(f"range '{plain}' is reversed; write {high}-{low}")
    return Pattern(low, high, whole=False)


def refuse_unusable(patterns: Iterable[str], *, place: str) -> None:
    """A ValueError that names the place, unless every entry is a pattern."""
    for pattern in patterns:
        try:
            read_pattern(pattern)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def refuse_numbers(entries: object, *, place: str) -> None:
    """A ValueError for an entry that YAML read as a number, and so without its zeros."""
    for entry in entries if isinstance(entries, list | tuple) else ():
        if isinstance(entry, int | float):
            raise ValueError(f'{place}: {entry} is a number; put quotes around it ("{entry}")')


def plain_code(written: str) -> str:
    """An ICD code without dots and blanks, in upper case.

    >>> plain_code(" j18. 9")
    'J189'
    """
    return "".join(written.split()).replace(".", "").upper()


def plain_name(written: str) -> str:
    """A diagnosis in words as it is compared: without regard to case and to the number of blanks.

    >>> plain_name(" Acute  Myocardial infarction")
    'acute myocardial infarction'
    """
    return " ".join(written.split()).casefold()


class PatternLists:
    """Several lists of patterns, ready for many look-ups; a list is known by its position.

    A look-up costs a hash of the code for single codes and for each length of prefix, and a walk
    over the ranges once for every distinct beginning of a code.

    >>> lists = PatternLists([["4*"], ["428"]])
    >>> [sorted(lists.having(code)) for code in ("428", "4280", "5")]
    [[0, 1], [0], []]
    """

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        """Read lists of usable patterns."""
        self._codes: dict[str, set[int]] = {}
        self._prefixes: dict[int, dict[str, set[int]]] = {}
        self._ranges: dict[int, list[tuple[Pattern, int]]] = {}
        self._walked: dict[str, set[int]] = {}
        for position, patterns in enumerate(lists):
            for written in patterns:
                self._add(read_pattern(written), position)

    def _add(self, pattern: Pattern, position: int) -> None:
        length = len(pattern.low)
        if pattern.whole:
            self._codes.setdefault(pattern.low, set()).add(position)
        elif pattern.low == pattern.high:
            prefixes = self._prefixes.setdefault(length, {})
            prefixes.setdefault(pattern.low, set()).add(position)
        else:
            self._ranges.setdefault(length, []).append((pattern, position))

    def having(self, code: str) -> set[int]:
        """The positions of the lists that a code (no dots, upper case) is in."""
        found = set(self._codes.get(code, ()))
        for length, prefixes in self._prefixes.items():
            found |= prefixes.get(code[:length], set())
        for length, ranges in self._ranges.items():
            beginning = code[:length]
            if len(beginning) < length:
                continue
            if beginning not in self._walked:
                self._walked[beginning] = {
                    position
                    for pattern, position in ranges
                    if pattern.low <= beginning <= pattern.high
                }
            found |= self._walked[beginning]
        return found
