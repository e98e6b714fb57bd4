"""What is known of MIMIC-III in print, each figure with its source; no data, no code."""

from collections.abc import Mapping

# Johnson et al. 2016, Sci Data 3:160035: the numbers of patients and stays, and those of adults
# (16 or older). The rows are those that MIT-LCP/mimic-code checks of version 1.4; who has two
# stays or more is counted in its ADMISSIONS. All but "adults" holds 7,870 neonates' stays.
PUBLISHED: Mapping[str, float] = {
    "patients": 46_520,
    "stays": 58_976,
    "patients_with_two": 7_537,
    "rows_diagnoses": 651_047,
    "rows_procedures": 240_095,
    "rows_drugs": 4_156_450,
    "neonates": 7_870,
    "adult_patients": 38_597,
    "adult_stays": 49_785,
    "adult_died": 0.115,
    "adult_women": 0.441,
    "adult_age_q1": 52.8,
    "adult_age_median": 65.8,
    "adult_age_q3": 77.8,
    "adult_days_q1": 4.1,
    "adult_days_median": 6.9,
    "adult_days_q3": 11.9,
}
# Harutyunyan et al. 2019, Sci Data 6:96: share of adults' ICU stays (35,621 train, 6,281
# test) in hospital stays with one ICU stay and no transfer between ICUs.
BENCHMARK: Mapping[int, tuple[float, float]] = {
    157: (0.214, 0.212), 109: (0.075, 0.066), 100: (0.103, 0.108), 106: (0.321, 0.323),
    158: (0.134, 0.132), 127: (0.131, 0.126), 238: (0.207, 0.213), 105: (0.072, 0.071),
    108: (0.268, 0.268), 101: (0.322, 0.331), 50: (0.095, 0.094), 49: (0.193, 0.192),
    53: (0.291, 0.289), 98: (0.419, 0.423), 55: (0.269, 0.265), 153: (0.072, 0.079),
    99: (0.133, 0.130), 151: (0.089, 0.089), 134: (0.040, 0.043), 133: (0.051, 0.057),
    130: (0.087, 0.091), 122: (0.139, 0.135), 131: (0.181, 0.177), 2: (0.143, 0.139),
    249: (0.078, 0.082),
}  # fmt: skip
