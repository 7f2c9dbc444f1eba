"""Faults injected for real, and what must be true after each.

Rows and invariants are those of the fault matrix (docs/reliability.md). A test of a row starts real processes
(`fleet`), writes down everything a client did (`journal`), and lets the checker judge (`invariants`).
"""
