"""Faults that the tests must notice: small edits that a tired person could make, applied one at a time."""
