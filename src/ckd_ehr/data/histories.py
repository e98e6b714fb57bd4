"""Visits and pairs as matrices: who has which code and which phenotype, and when.

In: the visits and pairs tables. Out: sparse 0/1 matrices, joined by visit_id. Ignores: the next
visit, and what is fitted on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.data.phenotypes import match_codes

Bools = NDArray[np.bool_]
Matrix = sparse.csr_matrix
CodeKey = tuple[str, ...]  # kind (the visits table's column), system, code
CODED = ("diagnoses", "medications", "procedures")


@dataclass(frozen=True)
class HistoryIndex:
    """Which visits (columns) belong to which pair (rows): all of its history, and the last."""

    every: Matrix  # (pairs, visits)
    last: Matrix  # (pairs, visits)

    def ever(self, of_visits: Bools) -> Bools:
        """From (visits, n) facts to (pairs, n): true at any visit of the history."""
        return np.asarray(self.every @ of_visits.astype(np.int32) > 0)

    def at_last(self, of_visits: Bools) -> Bools:
        """From (visits, n) facts to (pairs, n): true at the last visit of the history."""
        return np.asarray(self.last @ of_visits.astype(np.int32) > 0)


def index_histories(visits: pa.Table, pairs: pa.Table) -> HistoryIndex:
    """Join the pairs' histories to the rows of the visits table, by visit_id."""
    history = pairs["history"].combine_chunks()
    ids = history.flatten()
    columns = pc.index_in(ids, value_set=visits["visit_id"].combine_chunks()).to_numpy()
    lengths = pc.list_value_length(history).to_numpy()
    rows = np.repeat(np.arange(len(history)), lengths)
    lasts = np.cumsum(lengths) - 1
    shape = (len(history), visits.num_rows)
    return HistoryIndex(
        every=_indicator(rows, columns, shape), last=_indicator(rows[lasts], columns[lasts], shape)
    )


def _indicator(
    rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]
) -> Matrix:
    """A 0/1 matrix with ones at these places, however often each is named."""
    ones = np.ones(len(rows), dtype=np.float64)
    matrix = sparse.csr_matrix((ones, (rows, columns)), shape=shape)
    matrix.data[:] = 1.0
    return matrix


def visit_codes(visits: pa.Table) -> tuple[Matrix, list[CodeKey]]:
    """Presence of every (kind, system, code): a matrix (visits, codes), and those keys."""
    rows, names = [], []
    for kind in CODED:
        lists = visits[kind].combine_chunks()
        codes = lists.flatten()
        rows.append(np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy()))
        fields = [pc.struct_field(codes, name) for name in ("system", "code")]
        names.append(pc.binary_join_element_wise(kind, *fields, "//"))
    encoded = pa.chunked_array(names).combine_chunks().dictionary_encode()
    vocabulary: list[CodeKey] = [
        tuple(key.split("//", 2)) for key in encoded.dictionary.to_pylist()
    ]
    shape = (visits.num_rows, len(vocabulary))
    return _indicator(np.concatenate(rows), encoded.indices.to_numpy(), shape), vocabulary


def visit_phenotypes(visits: pa.Table, phenotypes: Sequence[Phenotype]) -> Bools:
    """Which phenotypes the diagnoses of each visit have, (visits, labels)."""
    codes, keys = visit_codes(visits)
    columns = {(key[1], key[2]): n for n, key in enumerate(keys) if key[0] == "diagnoses"}
    label_of_code = np.zeros((len(keys), len(phenotypes)))
    for match in match_codes(dict.fromkeys(columns, 1), phenotypes):
        label_of_code[columns[match.system, match.code], list(match.labels)] = 1.0
    return np.asarray(codes @ label_of_code > 0)
