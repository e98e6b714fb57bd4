"""One module per kind of source; each turns its tables into one MEDS dataset."""
