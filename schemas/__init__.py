"""Writer and output schemas: package data only (see README.md in this folder)."""
