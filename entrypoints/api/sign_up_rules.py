"""The operator's rules for sign-ups that are well-formed: nothing in them depends on what is stored.

So what they say is the same for an address that is taken and one that is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import structlog

from application.commands import RegisterUser
from application.doubtful_domains import is_disposable, meant_domain
from application.passwords import check_words
from application.unfit import Unfit
from entrypoints.api.parts import DomainPolicy, SignUpPolicy
from entrypoints.api.problems import FieldError, HttpProblem
from entrypoints.api.responses import Hint
from infrastructure.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

DISPOSABLE: Final = "addresses at this domain are disposable; use one that you keep"


class SignUpRules:
    """See the module's docstring."""

    def __init__(self, policy: SignUpPolicy, metrics: Metrics) -> None:
        self._disposable = policy.disposable
        self._misspelt = policy.misspelt
        self._service_names = policy.service_names
        self._metrics = metrics

    def check(self, command: RegisterUser) -> Hint | None:
        """What to tell the registrant, None in most cases. A misspelt domain comes before a disposable one.

        Raises:
            HttpProblem: a rule refuses it; with every reason.
        """
        hint, errors = self._judged(command)
        if errors:
            raise HttpProblem("invalid-request", errors=errors)
        return hint

    def hint(self, command: RegisterUser) -> Hint | None:
        """`check` for a repeat of what was accepted before: a rule that came since refuses nothing."""
        return self._judged(command)[0]

    def _judged(self, command: RegisterUser) -> tuple[Hint | None, list[FieldError]]:
        errors = list(self._errors_of_password(command))
        hint = None
        local, _, domain = command.email.rpartition("@")
        if self._misspelt != "off" and (meant := meant_domain(domain)) is not None:
            says = f"its domain looks misspelt; did you mean {meant}?"
            hint = self._doubt("misspelt-domain", self._misspelt, says, errors, suggestion=f"{local}@{meant}")
        if self._disposable != "off" and is_disposable(domain):
            other = self._doubt("disposable-domain", self._disposable, DISPOSABLE, errors)
            hint = hint or other
        return hint, errors

    def _errors_of_password(self, command: RegisterUser) -> Iterable[FieldError]:
        if command.password is not None:
            try:
                check_words(command.password.get_secret_value(), self._service_names, "the name of this service")
            except Unfit as reason:
                yield FieldError("password", reason.code, str(reason))

    def _doubt(
        self,
        doubt: Literal["misspelt-domain", "disposable-domain"],
        policy: DomainPolicy,
        says: str,
        errors: list[FieldError],
        suggestion: str | None = None,
    ) -> Hint | None:
        """Count and log it, without the domain, which may be one person's; what the policy makes of it."""
        self._metrics.doubtful_address(doubt, policy)
        log.info("registration.doubtful_address", doubt=doubt, policy=policy)
        if policy == "refuse":
            errors.append(FieldError("email", doubt, says))
        return Hint(doubt, says, suggestion) if policy == "hint" else None
