"""A site's own guideline digest for the tests: one statement for patients with heart failure."""

from pathlib import Path

STATEMENT = "Heart failure increases the risk of stroke and of kidney failure"
DIGEST = f"""---
id: own_heart_failure
title: Our own words on heart failure
doi: 10.1000/own
conditions: [108]
---

- {STATEMENT}.
"""


def write_site(folder: Path) -> str:
    """Write the digest into a new folder; its path."""
    folder.mkdir()
    (folder / "heart_failure.md").write_text(DIGEST, encoding="utf-8")
    return str(folder)
