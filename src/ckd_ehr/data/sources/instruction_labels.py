"""Names of diseases as instruction files write them, and the comma-separated lists they stand in.

In: text. Out: names, those of a label as we write them. Ignores: the sentences around a list. Some
names hold semicolons, commas or brackets, so known names are matched first, the longest first.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from ckd_ehr.contracts.code_patterns import plain_name
from ckd_ehr.contracts.phenotype import PHENOTYPES_25

LabelStyle = Literal["ours", "paper"]

# Where the paper (arXiv 2506.15118) names a disease otherwise than AHRQ does: CCS → its name.
PAPER_NAMES = {
    99: "Hypertension with complications",
    101: "Coronary atherosclerosis and related",
    127: "Chronic obstructive pulmonary disease",
    131: "Respiratory failure; insufficiency; arrest",
    238: "Complications of surgical/medical care",
}
NONE = "None"
_NOTHING = frozenset(("none", "nan", "null", "n/a"))
_QUOTED = r'"((?:[^"]|"")*)"'
# A comma within brackets parts nothing.
_PLAIN = r"((?:\([^()]*\)|\[[^\[\]]*\]|[^,])*)"
_END = r"(?=\s*(?:,|$))"
# What ICD titles go on with after a comma of their own: "Venous catheterization, not elsewhere …".
_CONTINUED = re.compile(
    r"(?:unspecified|not|nos|nec|so|without|with|initial|subsequent|episode|except|including|due"
    r"|type|stage|or)\b"
)
_RISKY = re.compile(r'[,."()\[\]:?!]|^and\s')


class LabelNames:
    """The names of the labels: ours, the paper's, and a site's own.

    >>> names = LabelNames()
    >>> names.ours("chronic obstructive  pulmonary disease")
    'Chronic obstructive pulmonary disease and bronchiectasis'
    >>> names.ours("Gout") is None, names.paper("Shock")
    (True, 'Shock')
    """

    def __init__(self, further: Iterable[str] = ()) -> None:
        """Take the 25 names, the paper's for them, and a site's own."""
        known = {p.name: PAPER_NAMES.get(p.ccs[0], p.name) for p in PHENOTYPES_25}
        self._paper = known
        self._ours = {plain_name(name): name for name in (*known, *further)}
        self._ours |= {plain_name(paper): name for name, paper in known.items()}
        longest_first = sorted(self._ours, key=len, reverse=True)
        names = "|".join(r"\s+".join(map(re.escape, name.split())) for name in longest_first)
        self._item = re.compile(
            rf"\s*(?:{_QUOTED}{_END}|({names}){_END}|{_PLAIN})\s*(?:,|$)", re.IGNORECASE
        )

    def ours(self, written: str) -> str | None:
        """Our name of a label, however it is written; None for what is no label."""
        return self._ours.get(plain_name(written))

    def paper(self, name: str) -> str:
        """The paper's name of a label; a name that the paper does not have, as it stands."""
        return self._paper.get(name, name)

    def nearest(self, written: str) -> str:
        """The known name that is most like this one."""
        [name] = difflib.get_close_matches(plain_name(written), self._ours, n=1, cutoff=0.0)
        return self._ours[name]

    def split(self, text: str) -> list[str]:
        """The names of a list, in order, each once; `None` and blanks are none.

        >>> LabelNames().split("Respiratory failure; insufficiency; arrest, Gout (left, old), None")
        ['Respiratory failure; insufficiency; arrest', 'Gout (left, old)']
        >>> LabelNames().split('Fall, "Heart failure, old", Asthma, unspecified')
        ['Fall', 'Heart failure, old', 'Asthma, unspecified']
        """
        found: list[str] = []
        position = 0
        while position < len(text):
            match = self._item.match(text, position)
            assert match is not None  # The last alternative matches anything.
            position = match.end()
            quoted, known, plain = match.groups()
            if quoted is not None:
                found.append(quoted.replace('""', '"'))
            elif known is None and found and _CONTINUED.match(plain) and found[-1][:1].isupper():
                found[-1] += f", {plain}"
            else:
                found.append(known or re.sub(r"^and\s+", "", plain))
        names = (" ".join(name.split()) for name in found)
        return list(dict.fromkeys(name for name in names if is_name(name)))

    def join(self, names: Sequence[str]) -> str:
        """A list that `split` reads back; `None` for no name.

        Names with a mark that could end or part the list stand in double quotes, but for labels.

        >>> LabelNames().join(["Shock", "Heart failure, unspecified"]), LabelNames().join([])
        ('Shock, "Heart failure, unspecified"', 'None')
        """
        return ", ".join(map(self._safe, names)) or NONE

    def _safe(self, name: str) -> str:
        risky = _RISKY.search(name) or _CONTINUED.match(name)
        if not risky or self.ours(name) is not None:
            return name
        return '"' + name.replace('"', '""') + '"'


def is_name(written: str) -> bool:
    """Whether this names anything: `None` and punctuation do not.

    >>> is_name("Gout"), is_name("none"), is_name("-")
    (True, False, False)
    """
    return plain_name(written) not in _NOTHING and any(map(str.isalnum, written))
