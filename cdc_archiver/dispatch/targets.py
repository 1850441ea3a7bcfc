"""Whose file it is: the source that a row's instance_id belongs to. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cdc_archiver.settings import SourceSettings


class Targets:
    """The targets of the sources that are ours."""

    def __init__(self, sources: Iterable[SourceSettings] = ()) -> None:
        self.set(sources)

    def set(self, sources: Iterable[SourceSettings]) -> None:
        """Other sources from now on."""
        sources = tuple(sources)
        self._exact = {target: source.name for source in sources for target in source.target}
        self._folded = {target.casefold().rstrip(): name for target, name in self._exact.items()}

    def source_of(self, instance_id: str) -> str | None:
        """The source whose target this is; None for another archiver's.

        As the database compares, and so as the polling agent did: case and trailing spaces aside.
        """
        return self._exact.get(instance_id) or self._folded.get(instance_id.casefold().rstrip())
