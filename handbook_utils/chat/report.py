"""What was found out about a chat template: named checks, to read in a terminal, a notebook or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal

from handbook_utils.chat.view import printable

Status = Literal["pass", "fail", "not applicable"]
Severity = Literal["error", "warning", "note"]
_SIGNS = {"pass": "ok", "not applicable": "-"}


@dataclass(frozen=True)
class TemplateCheck:
    """One check of a chat template.

    Attributes:
        name: the check's name, such as "end-trained".
        status: "pass", "fail" or "not applicable".
        severity: what a failure means: "error" spoils training, which is refused; "warning" is said before
            training; "note" matters to other tools or to untrusted input only.
        message: what was found.
        remedy: what to do where it failed, else "".
    """

    name: str
    status: Status
    severity: Severity
    message: str
    remedy: str = ""

    @property
    def sign(self) -> str:
        """The status in a word: a failure is called by its severity."""
        return _SIGNS.get(self.status, self.severity)


@dataclass(frozen=True)
class TemplateReport:
    """All checks of a chat template, in the order in which they depend on each other."""

    checks: tuple[TemplateCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether a model can be trained with this template."""
        return not self.failed("error")

    def failed(self, severity: Severity) -> list[TemplateCheck]:
        """The failed checks of a severity."""
        return [c for c in self.checks if c.status == "fail" and c.severity == severity]

    def __getitem__(self, name: str) -> TemplateCheck:
        """One check by its name."""
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        return "\n".join(_line(check) for check in self.checks)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{check.sign}</td><td>{check.name}</td><td>{escape(_said(check))}</td></tr>"
            for check in self.checks
        )
        return f"<table><tr><th></th><th>check</th><th>found</th></tr>{cells}</table>"

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def _said(check: TemplateCheck) -> str:
    return printable(f"{check.message} {check.remedy}".rstrip())


def _line(check: TemplateCheck) -> str:
    return f"{check.sign:<8}{check.name:<20}{_said(check)}"
