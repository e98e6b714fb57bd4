"""How many tokens a text has, from its pieces: each is read by the tokeniser once for all texts.

In: a function that counts a whole text's tokens. Out: counts of pieces, which add up to the count
of their text where no token crosses a space that a word follows, as in WordPiece and byte-level
BPE. Whether that holds is for the caller to check now and then. Ignores: what the pieces say.
"""

from collections.abc import Callable

CountTokens = Callable[[str], int]
BEFORE = "."  # stands before a piece that is not the first


class PieceCounter:
    """Counts of pieces of one tokeniser.

    >>> counter = PieceCounter(lambda text: 2 + len(text.split()))
    >>> counter.frame, counter.first("Old woman."), counter.later(" Visit 1:")
    (2, 2, 2)
    """

    def __init__(self, count_tokens: CountTokens) -> None:
        self.whole = count_tokens
        self.frame = count_tokens("")  # special tokens, the reading position
        self._before = count_tokens(BEFORE)
        self._first: dict[str, int] = {}
        self._later: dict[str, int] = {"": 0}

    def first(self, piece: str) -> int:
        """Tokens of the piece that a text begins with."""
        known = self._first.get(piece)
        if known is None:
            known = self._first[piece] = self.whole(piece) - self.frame
        return known

    def later(self, piece: str) -> int:
        """Tokens of a piece further on, which begins with a space."""
        known = self._later.get(piece)
        if known is None:
            known = self._later[piece] = self.whole(BEFORE + piece) - self._before
        return known
