"""The simulated hospital of the tests: few patients who come often, with short records."""

FREQUENT: dict[str, object] = {"visits_per_patient": 14, "detail": 0.2, "replayed_patients": 0}
