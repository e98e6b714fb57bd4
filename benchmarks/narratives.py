"""How long the knowledge stage takes at 50,000 pairs: efficacy, narratives of both readers, audit.

Both readers are told efficacy and guidelines within 512 tokens, by the tokenisers of the embedded
models. Records are whole ones, as of MIMIC-III, most of them cut to the budget or near it.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path
from time import perf_counter

import pyarrow.compute as pc
import pyarrow.parquet as pq

from _cohorts import run
from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.files import write_json, write_table
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.contracts.records import EFFICACY, GUIDELINES, NARRATIVES, TITLES, Reader
from ckd_ehr.data.audit.narratives import narrative_findings
from ckd_ehr.knowledge.efficacy import count_efficacy
from ckd_ehr.knowledge.facts import EFFICACY_FILE, GUIDELINES_FILE, KnowledgeBase, snippets_table
from ckd_ehr.knowledge.ontology import words_of
from ckd_ehr.knowledge.pieces import CountTokens
from ckd_ehr.knowledge.stage import TITLES_FILE, read_digests, titles_of
from ckd_ehr.knowledge.telling import tell_all
from ckd_ehr.learning.weights import token_counter

PATIENTS = 58_000
PAIRS = 50_000
TOLD = {"max_tokens": 512, "efficacy": True, "guidelines": True}
SETTINGS = {
    "name": "narratives",
    "data": {
        "source": "simulated",
        "simulator": {"patients": PATIENTS, "seed": 1, "replayed_patients": 0},
    },
    "knowledge": {"teacher": TOLD, "student": TOLD},
}


def main() -> None:
    """Measure once; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    out = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(json.dumps(SETTINGS), encoding="utf-8")
        run("run", str(config), "--out", f"{folder}/run", "--until", "cohort")
        figures = measure(Path(folder), build_config(SETTINGS))
    for name, value in figures.items():
        print(f"{name:<28} {value:>15,}")
    if out:
        about = {"name": "narratives", "commit": commit(), "machine": machine_facts()}
        data = f"{PAIRS:,} pairs of a simulated hospital with whole records"
        write_json(out, {**about, "data": data, "seed": 1, "figures": figures})


def measure(folder: Path, config: RunConfig) -> dict[str, float]:
    """Seconds of each part, one after the other as in the stage."""
    cohort, out = folder / "run" / "02_cohort", folder / "knowledge"
    counts: dict[Reader, CountTokens] = {
        "teacher": token_counter(config.teacher.model),
        "student": token_counter(config.student.model),
    }
    visits = pq.read_table(cohort / "visits.parquet")
    pairs = pq.read_table(cohort / "pairs.parquet").slice(0, PAIRS)
    started = perf_counter()
    efficacy = count_efficacy(visits, pairs, config.labels.selected)
    write_table(efficacy.table, out / EFFICACY_FILE, EFFICACY)
    counted = perf_counter()
    digests = read_digests(config.knowledge.guidelines)
    write_table(snippets_table(digests.snippets), out / GUIDELINES_FILE, GUIDELINES)
    base = KnowledgeBase(
        efficacy=efficacy.table,
        snippets=digests.snippets,
        phenotypes=config.labels.selected,
        settings=config.knowledge,
    )
    titles = titles_of(visits, pairs)
    write_table(titles, out / TITLES_FILE, TITLES)
    told = tell_all(visits, pairs, base, counts)
    for reader, (table, _) in told.items():
        write_table(table, out / f"{reader}.parquet", NARRATIVES)
    written = perf_counter()
    write_table(pairs, cohort / "pairs.parquet", pairs.schema)
    audited = perf_counter()
    if narrative_findings(out, cohort, words_of=words_of):
        raise SystemExit("the audit found a leak in the narratives")
    return {
        "pairs": pairs.num_rows,
        "labelled_pairs": pc.count(pairs["labels"]).as_py(),
        "narratives": sum(table.num_rows for table, _ in told.values()),
        "facts_told": sum(int(facts["knowledge"]) for _, facts in told.values()),
        "seconds_efficacy": round(counted - started, 2),
        "seconds_narratives": round(written - counted, 2),
        "seconds_audit": round(perf_counter() - audited, 2),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    main()
