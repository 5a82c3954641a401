"""Released models as package data (`broker.models` in an installation): one folder per model, name-version."""
