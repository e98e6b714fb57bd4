"""What a pharmacy calls a product → the drug's name, so that one drug is one name.

In: a drug name as ordered. Out: lower case, without brackets, strengths and dose forms; salts and
combinations stay (`metoprolol tartrate`, `piperacillin-tazobactam`). Ignores: brands and synonyms
(`vancomycin` and `vancomycin hcl` remain two names).
"""

import re

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
    "solution susp suspension syrup elixir liquid liq oint ointment cream gel jelly lotion powder "
    "drops neb nebs nebulizer inhaler inhalation mdi diskus spray patch supp suppository enema "
    "rinse ophth opht ophthalmic nasal oral topical otic iv im sc sl po pr "
    "xr xl sr cr er ec odt ir ds ss pf"
)
_FORMS = frozenset(_FORM_WORDS.split())
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
    ('metoprolol succinate', 'clonidine')
    >>> drug_name("Vitamin D"), drug_name("Lidocaine 1%/Epinephrine 1:100000")
    ('vitamin d', 'lidocaine/epinephrine')
    """
    folded = " ".join(ordered.lower().split())
    name = _MARKS.sub(" ", folded)
    for pattern in (_BRACKETS, _STRENGTH, _RATIO, _PHRASES):
        name = pattern.sub(" ", name)
    name = re.sub(r"\s*([/;-])\s*(?=\S)", r"\1", name.strip()) if "/" in name else name
    words = [word.strip(".,;") for word in name.split()]
    words = [word for word in words if word and word not in "-/+&"]
    while words and words[-1] in _FORMS:
        words.pop()
    return " ".join(words).strip(" -/,") or folded
