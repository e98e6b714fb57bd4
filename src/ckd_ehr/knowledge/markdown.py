"""Markdown → statements: single pieces of plain text, each with the lines it stands in.

In: the text of a digest. Out: its sentences and list items; a list of short items is one statement
with what opens it. Left out: tables, quotes (notes on calculators), code, and sections on limits,
algorithms and references. Ignores: what the statements say.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from markdown_it import MarkdownIt
from markdown_it.token import Token

LONGEST_PARAGRAPH = 10_000  # characters; the time to read one may grow with its square
SHORT_ITEM, SHORT_STATEMENT, FRAGMENT, LONG_STATEMENT = 12, 6, 12, 60  # words
_SKIPPED = ("table", "blockquote")
_PASSED_OVER = re.compile(r"\b(limitations?|algorithms?|references?|see also)\b", re.IGNORECASE)
# Classes of disease (NYHA, Killip) and stages of encephalopathy (Grade III) are no such grades.
# No longer than 200 characters before and after: unclosed ones would take ages in a long line.
_INSIDE = r"[^()\[\]]{0,200}"
_GRADE = re.compile(
    rf" ?[(\[](?!{_INSIDE}(?:\b(?:NYHA|Killip|WHO)\b|\bGrade [IV]+\b))"
    rf"{_INSIDE}\b(?:Grade|Class|COR|LOE|Level|Graded|Conditional|Ungraded|Evidence|"
    rf"Strong|Recommendations?)\b{_INSIDE}[)\]]"
)
_NUMBERED = re.compile(r"^Recommendations?\s+[\d.]+[a-z]?\s*:\s*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
# Openings that leave unsaid whose risk it is: the heading says it.
_BARE = re.compile(
    r"(?:(?:additional |common |independent )?risk factors(?: include)?:|mechanisms include|"
    r"(?:very )?(?:high|low|increased) risk|exacerbations:|most frequently)",
    re.IGNORECASE,
)
_FENCE = "---"
_BREAKS, _UNSEEN = ("softbreak", "hardbreak"), ("html_inline", "image")


@dataclass(frozen=True, slots=True)
class Statement:
    """A piece of text, the lines it stands in (from 1, the last included), its headings."""

    text: str
    first_line: int
    last_line: int
    headings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph (depth 0) or the paragraph of a list item (depth of its list)."""

    text: str
    first_line: int
    last_line: int
    depth: int
    headings: tuple[str, ...]

    @property
    def words(self) -> int:
        return len(self.text.split())


def statements_of(text: str, *, lines_before: int = 0, apart: bool = False) -> list[Statement]:
    """The statements of a Markdown text, in its order.

    Args:
        text: without front matter.
        lines_before: lines of the file that stand before the text.
        apart: each sentence and each item a statement of its own, but for the short items of a list
            that an opening needs.

    Raises:
        ValueError: a paragraph is too long to be a statement; names its first line.

    >>> text = "# Risk\\n\\nFactors that raise it:\\n\\n- **age**\\n- diabetes (Grade 1B)\\n"
    >>> [(s.text, s.first_line, s.last_line) for s in statements_of(text)]
    [('Factors that raise it: age; diabetes', 3, 6)]
    """
    blocks = [
        block
        for block in _blocks(text, lines_before)
        if not any(_PASSED_OVER.search(heading) for heading in block.headings)
    ]
    return [
        Statement(part, block.first_line, block.last_line, block.headings)
        for block in map(_told_alone, _joined(blocks, apart=apart))
        if block.words >= SHORT_STATEMENT
        for part in _parts(block, apart=apart)
    ]


def split_front_matter(text: str) -> tuple[str | None, int, str]:
    """The front matter (None if there is none), the lines it takes, and what follows.

    One without an end is None, too, and takes all lines.

    >>> split_front_matter("---\\nid: a\\n---\\n# Risk")
    ('id: a', 3, '# Risk')
    """
    lines = re.split(r"\r\n?|\n", text)  # The lines of Markdown, fewer than those of splitlines.
    if lines[0].rstrip() != _FENCE:
        return None, 0, text
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip() == _FENCE:
            return "\n".join(lines[1:number]), number + 1, "\n".join(lines[number + 1 :])
    return None, len(lines), ""


@cache
def _readers() -> tuple[MarkdownIt, MarkdownIt]:
    """One for blocks, and one for the words inside them: most are in tables, and never needed."""
    blocks = MarkdownIt("commonmark").enable("table")
    return blocks.disable("inline"), MarkdownIt("commonmark")


def _blocks(text: str, lines_before: int) -> Iterator[_Block]:
    reader, words_reader = _readers()
    links: dict[str, object] = {}
    headings: list[tuple[int, str]] = []
    depth = skipped = 0
    heading_level = 0
    for token in reader.parse(text, links):
        name, _, edge = token.type.rpartition("_")
        step = {"open": 1, "close": -1}.get(edge, 0)
        if name in _SKIPPED:
            skipped += step
        elif name in ("bullet_list", "ordered_list"):
            depth += step
        elif name == "heading":
            heading_level = int(token.tag[1:]) if step > 0 else 0
        elif token.type == "inline" and token.map and not skipped:
            if len(token.content) > LONGEST_PARAGRAPH:
                line = token.map[0] + lines_before + 1
                raise ValueError(f"line {line}: a paragraph of {len(token.content):,} characters")
            words = _plain(words_reader.parseInline(token.content, links)[0])
            if heading_level:
                headings = [h for h in headings if h[0] < heading_level]
                headings.append((heading_level, words))
            elif words:
                first, last = (line + lines_before for line in token.map)
                yield _Block(words, first + 1, last, depth, tuple(h for _, h in headings))


def _plain(token: Token) -> str:
    """The words of an inline token: no marks, no grades of evidence, one line."""
    pieces = [
        " " if child.type in _BREAKS else "" if child.type in _UNSEEN else child.content
        for child in token.children or ()
    ]
    words = "".join(pieces)
    if not words.isprintable():
        words = "".join(c if c.isprintable() else " " for c in words)
    words = " ".join(words.split())
    return " ".join(_NUMBERED.sub("", _GRADE.sub("", words)).split())


def _joined(blocks: Sequence[_Block], *, apart: bool) -> Iterator[_Block]:
    """Lists of short items as one block with their opening; other blocks as they are.

    A heading opens a list too; where statements are wanted apart, one of mere fragments.
    """
    number = 0
    while number < len(blocks):
        block = blocks[number]
        opens = block.text.endswith(":")
        depth = block.depth + 1 if opens else 1
        start = number + 1 if opens else number
        items = _items(blocks[start:], depth, block.headings)
        fragments = all(item.words < SHORT_STATEMENT for item in items)
        headed = len(items) > 1 and bool(_heading_of(block)) and (fragments or not apart)
        if items and max(item.words for item in items) <= SHORT_ITEM and (opens or headed):
            opening = block.text if opens else f"{_heading_of(block)}:"
            told = _within(items, LONG_STATEMENT - len(opening.split()))
            listed = "; ".join(item.text.rstrip(".;,") for item in told)
            last = told[-1].last_line
            yield _Block(f"{opening} {listed}", block.first_line, last, block.depth, block.headings)
            number = start + (len(told) if apart else len(items))
        else:
            yield _with_heading(block) if block.depth and block.words <= FRAGMENT else block
            number += 1


def _within(items: Sequence[_Block], most_words: int) -> Sequence[_Block]:
    """The first items that fit together, one at least."""
    ends = accumulate(item.words for item in items)
    fit = sum(end <= most_words for end in ends)
    return items[: max(fit, 1)]


def _told_alone(block: _Block) -> _Block:
    """With its heading, if it would not be understood without; an opening of nothing cut off."""
    sentences = _SENTENCE.split(block.text)
    if block.text.endswith(":") and len(sentences) > 1:
        block = replace(block, text=" ".join(sentences[:-1]))
    return _with_heading(block) if _BARE.match(block.text) else block


def _with_heading(block: _Block) -> _Block:
    """A short item with its heading before it: alone it says too little."""
    heading = _heading_of(block)
    told = not heading or block.text.startswith(heading)
    return block if told else replace(block, text=f"{heading}: {block.text}")


def _heading_of(block: _Block) -> str:
    return block.headings[-1] if block.headings else ""


def _items(blocks: Sequence[_Block], depth: int, headings: tuple[str, ...]) -> list[_Block]:
    """The items at this depth that follow one another, none of them with a list of its own."""
    items: list[_Block] = []
    for block in blocks:
        if block.depth < depth or block.headings != headings:
            break
        if block.depth > depth:
            return []
        items.append(block)
    return items


def _parts(block: _Block, *, apart: bool) -> list[str]:
    """A long text by sentences."""
    if block.words <= LONG_STATEMENT and not apart:
        return [block.text]
    return [part for part in _SENTENCE.split(block.text) if len(part.split()) >= SHORT_STATEMENT]
