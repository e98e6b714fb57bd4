"""The diseases to predict: how one is defined, and the 25 of the paper.

In: CCS categories, code lists, names, from a config. Out: checked definitions. Ignores: how codes
are matched (data/phenotypes.py).
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ckd_ehr.contracts.code_patterns import plain_code, plain_name, refuse_numbers, refuse_unusable

CODE_LISTS = ("icd9cm", "icd10cm", "exclude_icd9cm", "exclude_icd10cm")


PlainCode = Annotated[str, AfterValidator(plain_code)]
PlainName = Annotated[str, AfterValidator(plain_name)]


class Phenotype(BaseModel):
    """A disease to predict: CCS categories, lists of codes or of names, or several of these.

    Code lists hold single codes (`428.0`), all codes under one (`428*`) and ranges of categories
    (`E10-E14`). What `exclude_icd9cm` and `exclude_icd10cm` name is taken out again, of a CCS
    category too. `names` are diagnoses that are words, compared without regard to case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ccs: tuple[int, ...] = ()
    icd9cm: tuple[PlainCode, ...] = ()
    icd10cm: tuple[PlainCode, ...] = ()
    exclude_icd9cm: tuple[PlainCode, ...] = ()
    exclude_icd10cm: tuple[PlainCode, ...] = ()
    names: tuple[PlainName, ...] = ()

    @field_validator(*CODE_LISTS, "names", mode="before")
    @classmethod
    def _are_texts(cls, written: object, info: ValidationInfo) -> object:
        refuse_numbers(written, place=f"phenotype '{info.data.get('name')}', {info.field_name}")
        return written

    @model_validator(mode="after")
    def _is_defined_and_usable(self) -> "Phenotype":
        mine = f"phenotype '{self.name}'"
        if not self.ccs and not any((*self.icd9cm, *self.icd10cm, *self.names)):
            raise ValueError(f"{mine} has no definition; give it ccs, icd9cm or icd10cm, or names")
        for field in CODE_LISTS:
            refuse_unusable(getattr(self, field), place=f"{mine}, {field}")
        if not all(self.names):
            raise ValueError(f"{mine}, names: an entry is empty; leave it out")
        return self


def _phenotypes(rows: Sequence[tuple[int, str]]) -> tuple[Phenotype, ...]:
    return tuple(Phenotype(name=name, ccs=(ccs,)) for ccs, name in rows)


# The 25 acute-care phenotypes of Harutyunyan et al. 2019 (doi 10.1038/s41597-019-0103-9),
# each one single-level CCS category of AHRQ.
PHENOTYPES_25 = _phenotypes(
    [
        (157, "Acute and unspecified renal failure"),
        (109, "Acute cerebrovascular disease"),
        (100, "Acute myocardial infarction"),
        (106, "Cardiac dysrhythmias"),
        (158, "Chronic kidney disease"),
        (127, "Chronic obstructive pulmonary disease and bronchiectasis"),
        (238, "Complications of surgical procedures or medical care"),
        (105, "Conduction disorders"),
        (108, "Congestive heart failure; nonhypertensive"),
        (101, "Coronary atherosclerosis and other heart disease"),
        (50, "Diabetes mellitus with complications"),
        (49, "Diabetes mellitus without complication"),
        (53, "Disorders of lipid metabolism"),
        (98, "Essential hypertension"),
        (55, "Fluid and electrolyte disorders"),
        (153, "Gastrointestinal hemorrhage"),
        (99, "Hypertension with complications and secondary hypertension"),
        (151, "Other liver diseases"),
        (134, "Other upper respiratory disease"),
        (133, "Other lower respiratory disease"),
        (130, "Pleurisy; pneumothorax; pulmonary collapse"),
        (122, "Pneumonia"),
        (131, "Respiratory failure; insufficiency; arrest (adult)"),
        (2, "Septicemia (except in labor)"),
        (249, "Shock"),
    ]
)
