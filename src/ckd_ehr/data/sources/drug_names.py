"""What a pharmacy calls a product → the drug's name, so that one drug is one name.

In: a drug name as ordered. Out: lower case, without brackets, strengths and dose forms; salts and
combinations stay (`metoprolol tartrate`, `piperacillin-tazobactam`), and so does the route, in one
word at the end (`ciprofloxacin ophthalmic`): by another route a drug treats another disease.
Ignores: brands and synonyms (`vancomycin` and `vancomycin hcl` remain two names).
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from ckd_ehr.contracts.records import DRUG_NAME, Code, Visit

_MARKS = re.compile(r"\*[a-z]+\*")
_BRACKETS = re.compile(r"\([^()]*\)?|\[[^\[\]]*\]?")
_UNIT = r"(?:mcg|mg|gm|g|kg|ml|l|units?|iu|meq|mmol|mm)"
_PER = rf"(?:\s*/\s*(?:\d+(?:\.\d+)?\s*)?(?:{_UNIT}|hr|h|hour|actuation|act|dose|puff)\b)?"
_STRENGTH = re.compile(
    rf"(?<![\w.])\d*[.,]?\d+\s*(?:%|{_UNIT}\b{_PER})(?:\s*/\s*\d*[.,]?\d+\s*{_UNIT}\b)?"
)
_RATIO = re.compile(r"(?<![\w.])1:\d+(?:,\d{3})*\b")
_FORM_WORDS = (
    "tab tabs tablet tablets cap caps capsule capsules inj injection injectable vial soln sol "
    "solution susp suspension syrup elixir liquid liq powder drops spray rinse iv im sc sl "
    "xr xl sr cr er ec odt ir ds ss pf"
)
_FORMS = frozenset(_FORM_WORDS.split())
# The most telling first: an ophthalmic ointment is ophthalmic, a rectal cream rectal.
_ROUTE_WORDS = {
    "ophthalmic": "ophthalmic ophth opht",
    "otic": "otic",
    "nasal": "nasal intranasal",
    "rectal": "rectal pr enema supp supps suppository suppositories",
    "inhaled": "inhaled inhaler inhalation neb nebs nebulizer mdi diskus",
    "oral": "oral po",
    "topical": "topical cream oint ointment gel jelly lotion patch transdermal",
}
_ROUTES = {word: route for route, words in _ROUTE_WORDS.items() for word in words.split()}
_PHRASES = re.compile(
    r"\b(?:p\.f\.?|preserv(?:\.|ative)? free|extended[- ]release|sustained[- ]release"
    r"|immediate[- ]release|oral disintegrating|sugar free)"
)


def drug_name(ordered: str) -> str:
    """The drug's name in what was ordered; the text itself, folded, where nothing would be left.

    >>> drug_name("Furosemide 20 mg Tab")
    'furosemide'
    >>> drug_name("Heparin Flush (10 units/ml)"), drug_name("Acetylcysteine 20%")
    ('heparin flush', 'acetylcysteine')
    >>> drug_name("Metoprolol Succinate XL"), drug_name("Clonidine Patch 0.1 mg/24 hr")
    ('metoprolol succinate', 'clonidine topical')
    >>> drug_name("Vitamin D"), drug_name("Lidocaine 1%/Epinephrine 1:100000")
    ('vitamin d', 'lidocaine/epinephrine')
    """
    name = " ".join(ordered.lower().split())
    while (folded := _fold(name)) != name:  # what one pass strips may bare more
        name = folded
    return name


def _fold(folded: str) -> str:
    name = _MARKS.sub(" ", folded)
    bracketed = re.findall(r"[a-z]+", " ".join(_BRACKETS.findall(name)))
    for pattern in (_BRACKETS, _STRENGTH, _RATIO, _PHRASES):
        name = pattern.sub(" ", name)
    name = re.sub(r"\s*([/;-])\s*(?=\S)", r"\1", name.strip()) if "/" in name else name
    words = [word.strip(".,;") for word in name.split()]
    words = [word for word in words if word and word not in "-/+&"]
    routes = {_ROUTES[word] for word in bracketed if word in _ROUTES}
    while words and (words[-1] in _FORMS or words[-1] in _ROUTES):
        word = words.pop()
        routes |= {_ROUTES[word]} if word in _ROUTES else set()
    drug = " ".join(words).strip(" -/,")
    route = [route for route in _ROUTE_WORDS if route in routes][:1]
    return " ".join([drug, *route]) if drug else folded


def fold_drugs(history: Sequence[Visit]) -> tuple[Visit, ...]:
    """One name a drug and visit, folded as the sources fold theirs; other fields as they are."""

    def folded(drug: Code) -> Code:
        return replace(drug, code=drug_name(drug.code)) if drug.system == DRUG_NAME else drug

    return tuple(
        replace(visit, medications=tuple(dict.fromkeys(map(folded, visit.medications))))
        for visit in history
    )
