"""Source: what is known of a published file before it is there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A published file: its name, size in bytes, sha256, and the URLs that hold it, the canonical one first."""

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...]
