"""HTML from Python: elements whose text is escaped unless it is HTML already."""

from collections.abc import Iterable
from html import escape

VOID = {"input"}


class Markup(str):
    """HTML; any other string is text, and is escaped on its way into an element."""

    __slots__ = ()

    def join(self, parts: Iterable[str]) -> "Markup":
        return Markup(super().join(map(html, parts)))


def html(*parts: str | None) -> Markup:
    """The parts one after another: Markup as it is, other text escaped, None left out."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts if part is not None))


def element(name: str, *children: str | None, **attributes: str | float | bool | None) -> Markup:
    """One element. Names of attributes are written as in Python: class_, data_tip, viewBox.

    An attribute that is True stands without a value; one that is None or False is left out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    closing = "" if name in VOID else f"</{name}>"
    return Markup(f"<{name}{written}>{html(*children)}{closing}")


def chip(status: str) -> Markup:
    """A status as a small label."""
    return element("span", status, class_=f"chip {status.replace(' ', '-')}")


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return f" {name}" if value else ""
    return f' {name}="{escape(value if isinstance(value, str) else f"{value:.6g}")}"'
