"""Revisions of the state database, in the order of their names."""
