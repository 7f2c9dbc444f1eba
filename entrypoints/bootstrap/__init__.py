"""The composition root: the only place where parts meet. Built with ordinary calls, taken down in reverse.

`roles` says what each process is made of, `desk` what a short command acts or looks with.
"""


class CannotStart(Exception):
    """One line: what is missing or wrong, and what to do."""
