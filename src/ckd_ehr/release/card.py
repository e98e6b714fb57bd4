"""The page in a bundle that says what it is for, how good it is and what it is not.

In: a bundle's facts and scores. Out: README.md with Hugging Face's metadata. Ignores: the fields of
further reporting standards.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ckd_ehr.contracts.files import write_bytes
from ckd_ehr.release.manifest import BundleFacts

CARD = "README.md"
TEMPLATE = """\
---
license: other
library_name: ckd-ehr
pipeline_tag: text-classification
tags: [ehr, clinical-prediction, onnx]
---
# {{ facts.name }}: diseases at the next hospital visit

**Intended use.** The calibrated risk of {{ facts.labels | length }} diseases at a patient's next
hospital visit, given that there is one, from the codes of past visits; for professionals, beside
their own judgement. **Not for** diagnosis, triage, insurance, or patients unlike those of training:
where more than {{ "%.0f" | format(100 * facts.unknown_share_limit) }} % of a history's codes were
not in training, or none is known, no risk should be told.

**Data.** {{ scores.data_set }}{{ " (simulated patients)" if scores.simulated else "" }};
{% for split, count in scores.counts.items() -%}
{{ split }}: {{ count.patients }} patients, {{ count.labelled_pairs }} labelled pairs
{{- "; " if not loop.last else "." }}
{%- endfor %}
Calibrated on {{ facts.calibrated_on }}; thresholds of best F1 on tuning pairs.

**Performance** on {{ scores.scored_split }}, with 95 % intervals over patients:

| | value | interval |
|---|---|---|
{% for name in ("macro_auprc", "macro_auroc", "micro_auprc", "micro_auroc", "brier") -%}
{% set score = scores.overall[name] -%}
| {{ name }} | {{ score.value }} | {{ score.low }} to {{ score.high }} |
{% endfor %}
The scores are those of the student in fp32 PyTorch; `metrics.json` has each label's, and how far
each graph here is from it.

**Limits.** Codes are of billing: what was not coded is not known. Evidence says what the model's
risk rests on, not what causes a disease. A site should check calibration on its own records.

**Graphs.** {% for name, graph in facts.graphs.items() -%}
{{ name }}: opset {{ graph.opset }}, IR {{ graph.ir_version }}, {{ graph.fused_attention }} fused
attention, {{ graph.int8_products }} products of int8{{ "; " if not loop.last else "." }}
{%- endfor %}
"""


def write_card(folder: Path, facts: BundleFacts, scores: Mapping[str, Any]) -> None:
    """Write the bundle's README.md."""
    environment = Environment(undefined=StrictUndefined, autoescape=False)  # no HTML
    page = environment.from_string(TEMPLATE).render(facts=facts, scores=scores)
    write_bytes(folder / CARD, page.encode())
