"""Reference and generated reports -> NLG, clinical-efficacy and graph scores with intervals and tests."""
