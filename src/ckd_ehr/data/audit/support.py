"""Is everything in a history known from an event of its time?

In: the tables of `tables.open_cohort` and the MEDS dataset of the events stage. Out: one result a
check. Ignores: stays that no history holds, and titles. An event without a time holds for its
whole stay.
"""

from pathlib import Path

import duckdb

from ckd_ehr.contracts.records import DIAGNOSIS, DISCHARGE, MEDICATION, PROCEDURE
from ckd_ehr.data.audit.findings import CheckResult, SqlCheck, run_checks
from ckd_ehr.data.audit.structure import STAGE
from ckd_ehr.data.audit.tables import ITEM_KEY, scan
from ckd_ehr.data.sources.dataset import event_files

_KINDS = {DIAGNOSIS: "diagnosis", MEDICATION: "medication", PROCEDURE: "procedure"}
_NOT_KNOWN = (
    "a code recorded after discharge must not enter its stay: check the source's times, delete "
    "the folders of the stages events and cohort, and run again"
)
CHECKS = (
    SqlCheck(
        "events after prediction_time",
        "codes of history visits have no event by the visit's discharge",
        _NOT_KNOWN,
        "SELECT 1 FROM items SEMI JOIN used USING (visit_no) "
        "ANTI JOIN supported USING (visit_no, item)",
    ),
    SqlCheck(
        "discharges as recorded",
        "history visits end at a time at which no discharge event of theirs is",
        _NOT_KNOWN,
        "SELECT 1 FROM stays SEMI JOIN used USING (visit_no) "
        "ANTI JOIN discharges USING (visit_id, discharge_time)",
    ),
)


def support_checks(connection: duckdb.DuckDBPyConnection, events: Path) -> list[CheckResult]:
    """Codes of history visits without an event of that visit at or before its discharge.

    Args:
        events: the folder of the MEDS dataset; its codes are ROLE//SYSTEM//CODE.
    """
    kinds = " ".join(f"WHEN '{role}' THEN '{kind}'" for role, kind in _KINDS.items())
    connection.execute(f"""
        CREATE VIEW events AS {scan(event_files(events))};
        CREATE TABLE event_codes AS
            SELECT written, {ITEM_KEY} AS item FROM (
                SELECT DISTINCT code AS written,
                    CASE split_part(written, '//', 1) {kinds} END AS kind,
                    nullif(split_part(written, '//', 2), '') AS system,
                    nullif(regexp_extract(written, '^[^/]+//[^/]+//(.+)$', 1), '') AS code
                FROM events)
            WHERE kind IS NOT NULL AND code IS NOT NULL;
        CREATE TABLE used AS
            SELECT DISTINCT visit_no, visit_id FROM histories JOIN stays USING (visit_id);
        CREATE VIEW supported AS
            SELECT visit_no, item FROM events JOIN event_codes ON written = events.code
                JOIN stays USING (visit_id)
            WHERE time IS NULL OR time <= discharge_time;
        CREATE VIEW discharges AS
            SELECT visit_id, time AS discharge_time FROM events
            WHERE split_part(code, '//', 1) = '{DISCHARGE}';""")
    return run_checks(connection, CHECKS, STAGE)
