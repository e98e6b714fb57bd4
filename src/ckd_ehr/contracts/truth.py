"""What a simulated hospital tells of its truth, beside its records, in the folder `truth`.

Written by data/simulator, copied by the stage events, read by metrics. Real hospitals have none.
"""

import pyarrow as pa

TRUTH = "truth"  # the folder
HOSPITAL = "hospital.json"  # how the hospital was made
RISKS = "risks.parquet"
EFFECTS = "effects.csv"  # every drug and what it is given for, with its true effect

# One row for each stay that a patient left alive. Label names stand in the schema's metadata.
RISKS_SCHEMA = pa.schema(
    [
        pa.field("visit_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.int64(), nullable=False),
        # Of each label at the next stay, given the patient's true state at discharge.
        pa.field("true_probabilities", pa.list_(pa.float32()), nullable=False),
        # Given the record up to discharge alone; null where it was not estimated.
        pa.field("record_probabilities", pa.list_(pa.float32())),
        # How many equally weighted draws that estimate is worth.
        pa.field("effective_particles", pa.float32()),
    ]
)
