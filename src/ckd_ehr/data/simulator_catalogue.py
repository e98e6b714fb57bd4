"""What the simulated hospital knows of medicine: conditions, what follows them, how they are coded.

Plain tables, no behaviour: `simulator.py` lives by them, `simulator_tables.py` writes them down.
Log-odds are per visit. Rounded by hand so that the phenotypes' frequencies resemble a hospital's
and codes have short titles; nothing here is fitted to a real data set.
"""

from dataclasses import dataclass
from typing import Literal

System = Literal["heart", "metabolic", "kidney", "lung", "gut", "acute"]
SYSTEMS: tuple[System, ...] = ("heart", "metabolic", "kidney", "lung", "gut", "acute")


@dataclass(frozen=True)
class Condition:
    """One CCS category as a state a patient is in or not.

    `onset` is the log-odds of being in it at a visit for a 65-year-old woman without anything
    else, `persistence` what having had it at the visit before adds, `lethality` what it adds to
    the log-odds of dying in hospital. `codes` are ICD-9-CM with weights, `drugs` and `procedures`
    come with the probability that the condition brings them about.
    """

    ccs: int
    system: System
    onset: float
    persistence: float
    per_decade: float
    male: float
    lethality: float
    codes: tuple[tuple[str, float], ...]
    drugs: tuple[tuple[str, float], ...] = ()
    procedures: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Trait:
    """A lasting property of a patient that is coded now and then and raises some risks."""

    frequency: float
    codes: tuple[str, ...]
    raises: tuple[tuple[int, float], ...] = ()


# Codes of weight 0.04 or less are non-leaf or outdated ones, such as real tables hold.
CONDITIONS: tuple[Condition, ...] = (
    Condition(49, "metabolic", -3.2, 4.2, 0.0, 0.1, 0.0,
        (("25000", 0.45), ("79029", 0.3), ("79021", 0.25)),
        (("Insulin", 0.35), ("Metformin", 0.35))),
    Condition(50, "metabolic", -4.1, 4.4, 0.0, 0.1, 0.1,
        (("25060", 0.4), ("24941", 0.2), ("25012", 0.2), ("25040", 0.2)),
        (("Insulin", 0.6), ("Gabapentin", 0.15))),
    Condition(53, "metabolic", -3.2, 4.0, 0.1, 0.2, -0.1,
        (("2720", 0.4), ("2722", 0.3), ("2724", 0.3)),
        (("Atorvastatin", 0.45), ("Simvastatin", 0.25))),
    Condition(98, "heart", -2.4, 3.9, 0.15, 0.0, -0.1,
        (("4019", 0.7), ("4011", 0.3)),
        (("Lisinopril", 0.25), ("Amlodipine", 0.25))),
    Condition(99, "kidney", -4.1, 4.0, 0.1, 0.1, 0.1,
        (("40290", 0.3), ("40591", 0.25), ("4372", 0.2), ("4010", 0.2), ("40390", 0.05)),
        (("Hydralazine", 0.3), ("Labetalol", 0.25))),
    Condition(101, "heart", -4.2, 4.4, 0.3, 0.6, 0.1,
        (("4139", 0.3), ("41401", 0.25), ("412", 0.2), ("4111", 0.15), ("V4581", 0.1)),
        (("Aspirin", 0.4), ("Clopidogrel", 0.2)), (("8856", 0.12), ("3722", 0.08))),
    Condition(100, "heart", -4.1, 0.6, 0.2, 0.4, 0.7,
        (("41071", 0.8), ("41061", 0.2)),
        (("Aspirin", 0.4), ("Metoprolol", 0.4)), (("0066", 0.35), ("8856", 0.25))),
    Condition(106, "heart", -3.2, 3.0, 0.4, 0.2, 0.2,
        (("42731", 0.65), ("42732", 0.2), ("7850", 0.15)),
        (("Warfarin", 0.3), ("Amiodarone", 0.3), ("Diltiazem", 0.15)), (("9962", 0.08),)),
    Condition(105, "heart", -4.6, 3.6, 0.3, 0.2, 0.1,
        (("V4501", 0.4), ("4264", 0.3), ("4263", 0.3)),
        (), (("8952", 0.2), ("3783", 0.1))),
    Condition(108, "heart", -3.7, 3.4, 0.3, 0.1, 0.4,
        (("4280", 0.45), ("42822", 0.2), ("42832", 0.2), ("4281", 0.15)),
        (("Furosemide", 0.55), ("Carvedilol", 0.2)), (("8872", 0.2),)),
    Condition(109, "heart", -4.4, 1.2, 0.3, 0.0, 0.8,
        (("431", 0.3), ("4321", 0.25), ("43411", 0.25), ("436", 0.2)),
        (("Nimodipine", 0.25), ("Levetiracetam", 0.3)), (("8703", 0.4),)),
    Condition(55, "kidney", -2.8, 0.6, 0.1, -0.1, 0.2,
        (("2768", 0.25), ("2767", 0.2), ("2762", 0.2), ("27651", 0.2), ("2761", 0.11),
         ("2765", 0.04)),
        (("Magnesium Sulfate", 0.3), ("Sodium Bicarbonate", 0.15))),
    Condition(157, "kidney", -3.3, 0.8, 0.2, 0.2, 0.5,
        (("5849", 0.75), ("586", 0.2), ("5845", 0.05)),
        (("Calcium Gluconate", 0.2),), (("3995", 0.15),)),
    Condition(158, "kidney", -4.5, 4.8, 0.2, 0.2, 0.2,
        (("5859", 0.36), ("5856", 0.2), ("5851", 0.2), ("V4511", 0.2), ("585", 0.04)),
        (("Calcium Acetate", 0.25), ("Epoetin Alfa", 0.25)), (("3995", 0.25),)),
    Condition(127, "lung", -3.8, 4.6, 0.15, 0.1, 0.2,
        (("4928", 0.35), ("496", 0.35), ("4919", 0.3)),
        (("Albuterol", 0.4), ("Tiotropium", 0.25))),
    Condition(122, "lung", -3.1, 0.7, 0.15, 0.1, 0.5,
        (("486", 0.7), ("4829", 0.2), ("485", 0.1)),
        (("Levofloxacin", 0.5), ("Ceftriaxone", 0.2)), (("8744", 0.12),)),
    Condition(131, "lung", -3.5, 1.0, 0.1, 0.0, 1.2,
        (("51881", 0.6), ("51883", 0.2), ("7991", 0.1), ("V462", 0.06), ("5185", 0.04)),
        (("Propofol", 0.3), ("Fentanyl", 0.2)), (("9604", 0.35), ("9390", 0.2))),
    Condition(130, "lung", -3.4, 0.9, 0.0, 0.1, 0.2,
        (("5119", 0.5), ("5180", 0.3), ("51289", 0.16), ("5128", 0.04)),
        (("Furosemide", 0.3),), (("3491", 0.35),)),
    Condition(133, "lung", -3.3, 1.2, 0.0, 0.0, -0.1,
        (("78605", 0.5), ("7862", 0.25), ("78607", 0.25)),
        (("Prednisone", 0.4), ("Guaifenesin", 0.3))),
    Condition(134, "lung", -4.3, 2.0, -0.1, 0.1, 0.1,
        (("V440", 0.35), ("7847", 0.35), ("4786", 0.3)),
        (("Dexamethasone", 0.4),)),
    Condition(2, "acute", -3.4, 0.9, 0.1, 0.1, 1.0,
        (("99591", 0.35), ("0389", 0.35), ("7907", 0.3)),
        (("Vancomycin", 0.5), ("Meropenem", 0.25)), (("3893", 0.3),)),
    Condition(249, "acute", -4.3, 0.4, 0.1, 0.1, 1.6,
        (("78552", 0.5), ("78551", 0.3), ("78550", 0.2)),
        (("Norepinephrine", 0.6), ("Phenylephrine", 0.2)), (("3891", 0.3),)),
    Condition(153, "gut", -3.4, 1.3, 0.1, 0.1, 0.4,
        (("5781", 0.4), ("5789", 0.3), ("5780", 0.3)),
        (("Pantoprazole", 0.55),), (("4513", 0.35), ("9904", 0.2))),
    Condition(151, "gut", -3.9, 3.6, -0.1, 0.1, 0.5,
        (("78959", 0.35), ("5722", 0.25), ("5723", 0.25), ("570", 0.15)),
        (("Lactulose", 0.4), ("Spironolactone", 0.3)), (("5491", 0.25),)),
    Condition(238, "acute", -3.0, 1.0, 0.0, 0.1, 0.2,
        (("99883", 0.3), ("78062", 0.3), ("99859", 0.25), ("5121", 0.15)),
        (("Cefazolin", 0.4),), (("8622", 0.15),)),
)  # fmt: skip

# What having one condition adds to the log-odds of another at the next visit.
PROGRESSIONS: tuple[tuple[int, int, float], ...] = (
    (98, 108, 0.7), (98, 109, 1.2), (98, 99, 1.3), (98, 101, 0.5), (98, 158, 0.4),
    (99, 158, 1.3), (99, 108, 1.2), (99, 109, 0.9),
    (49, 50, 2.2), (49, 101, 0.5), (49, 53, 0.6),
    (50, 158, 1.8), (50, 157, 0.7), (50, 101, 0.7), (50, 238, 0.6), (50, 2, 0.6), (50, 55, 0.6),
    (53, 101, 1.1), (53, 100, 0.5),
    (101, 100, 2.0), (101, 108, 0.6), (101, 106, 0.4),
    (100, 108, 2.2), (100, 106, 1.2), (100, 249, 0.9), (100, 101, 2.5),
    (106, 109, 1.4), (106, 108, 0.6), (106, 105, 1.5), (105, 106, 0.8),
    (108, 130, 1.5), (108, 157, 1.0), (108, 106, 0.9), (108, 131, 0.7), (108, 55, 0.7),
    (108, 249, 0.8), (158, 55, 1.7), (158, 157, 1.3), (158, 99, 1.2), (158, 2, 0.5),
    (157, 158, 1.5), (157, 55, 1.2), (157, 249, 0.5),
    (127, 122, 1.7), (127, 131, 1.3), (127, 133, 1.0), (127, 134, 0.8),
    (122, 131, 1.6), (122, 2, 1.1), (122, 130, 1.3), (122, 133, 0.7),
    (131, 134, 1.8), (131, 122, 0.8), (131, 249, 0.9), (130, 131, 0.6), (133, 127, 0.6),
    (2, 249, 2.2), (2, 157, 1.2), (2, 131, 0.9), (249, 157, 1.5), (249, 2, 1.2), (249, 131, 0.9),
    (151, 153, 1.9), (151, 55, 0.9), (151, 2, 0.7), (151, 157, 0.7), (153, 249, 1.0),
    (109, 122, 1.0), (109, 134, 0.8), (238, 2, 1.2), (238, 249, 0.6), (101, 238, 0.5),
)  # fmt: skip

# The few drugs that truly help: what they add to the persistence of a condition they were given
# for. Every other drug of this hospital does nothing.
EFFECTIVE: tuple[tuple[str, int, float], ...] = (
    ("Levofloxacin", 122, -1.4),
    ("Vancomycin", 2, -1.4),
    ("Pantoprazole", 153, -1.5),
    ("Amiodarone", 106, -1.4),
    ("Furosemide", 130, -1.2),
    ("Prednisone", 133, -1.2),
    ("Lactulose", 151, -1.3),
)

TRAITS: tuple[Trait, ...] = (
    Trait(0.25, ("3051", "V1582"), ((127, 0.9), (101, 0.4), (122, 0.3))),
    Trait(0.20, ("27800", "27801"), ((49, 0.9), (98, 0.4), (53, 0.4))),
    Trait(0.08, ("5712", "5715"), ((151, 1.8), (153, 0.8))),
    Trait(0.12, ("2449",)),
    Trait(0.12, ("311", "30000")),
    Trait(0.12, ("53081",)),
    Trait(0.08, ("2749", "73300")),
)

# Written down now and then, whatever the patient has.
BACKGROUND_CODES = ("5990", "2859", "2875", "28860", "78079")

# Given to many, whatever they have: the probability for a patient with three conditions.
UBIQUITOUS_DRUGS: tuple[tuple[str, float], ...] = (
    ("Potassium Chloride", 0.18),
    ("Heparin", 0.15),
    ("Acetaminophen", 0.14),
    ("Docusate Sodium", 0.1),
)
BASE_DRUGS = ("D5W", "0.9% Sodium Chloride", "Iso-Osmotic Dextrose", "NS")
DOSES: dict[str, str] = {
    "Furosemide": "40mg Tab",
    "Metoprolol": "25mg Tab",
    "Lisinopril": "10mg Tab",
    "Amlodipine": "5mg Tab",
    "Atorvastatin": "20mg Tab",
    "Aspirin": "81mg Tab",
    "Warfarin": "5mg Tab",
    "Metformin": "500mg Tab",
    "Prednisone": "20mg Tab",
    "Pantoprazole": "40mg Tab",
    "Levofloxacin": "500mg Tab",
    "Acetaminophen": "325mg Tab",
}

ETHNICITIES: tuple[tuple[str, float], ...] = (
    ("WHITE", 0.7),
    ("BLACK/AFRICAN AMERICAN", 0.11),
    ("HISPANIC OR LATINO", 0.05),
    ("ASIAN", 0.04),
    ("OTHER", 0.03),
    ("UNKNOWN/NOT SPECIFIED", 0.07),
)
INSURANCES = ("Medicare", "Private", "Medicaid", "Government")
MARITAL_STATUSES = ("MARRIED", "SINGLE", "WIDOWED", "DIVORCED")
