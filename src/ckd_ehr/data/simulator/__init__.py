"""A seeded hospital without patients, whose true risks are known. Knows no model of ours.

`catalogue` is the medicine (tables beside it), `course` what happens to the patients, `risks` the
probabilities behind it, `replay` what could be known of them from the record alone; `coding`,
`tables`, `omop` and `meds` write the record down, `hospital` writes it all into a folder.
"""
