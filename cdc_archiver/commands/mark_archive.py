"""`cdc-archiver mark-archive`: makes the archive at data_dir the one that the service writes to."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from cdc_archiver.commands.archive_access import archive_of
from cdc_archiver.commands.context import open_context
from cdc_archiver.commands.marking import side_table_errors
from cdc_archiver.commands.output import confirm
from cdc_archiver.database.archives import KnownArchive, enter_archive, known_archive, read_archives
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.settings import Settings

HELP: Final = """
Make the archive at data_dir this service's own.

The service writes only to the archive whose id the database knows, so that neither a bare mount point nor another disk is taken for
it. Use this command after a move to a new archive, or after a restore without the marker. Run it as the service's user, with the
service's settings. A running service takes it up at its next sweep.

Exit status: 0 done; 2 wrong usage or configuration; 3 not done; 4 the database or the archive cannot be reached.
"""


def mark_archive(
    settings: Settings,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for a confirmation.")] = False,
) -> ExitStatus:
    if not settings.targets:
        raise Misconfigured("no target is set", "--target, or [[sources]] in the file of --config")
    archive = archive_of(settings)
    archive.require_directory()
    with open_context(settings) as context, context.database.connect() as connection:
        known = known_archive(connection, context.files.name, settings.targets, archive.data_dir)
        archive.expect(KnownArchive())
        marker = archive.recognise(renew=True)
        print(f"archive:  {archive.data_dir}")
        print(f"its id:   {marker.id + ' (' + marker.where + ')' if marker else 'none; it gets one'}")
        for target in settings.targets:
            entry = known.entries.get(target)
            print(f"{target}: {f'{entry.archive_id}, at {entry.data_dir}' if entry else 'no archive is known'}")
        if not confirm("Archive the files of these targets there from now on?", yes=yes):
            return ExitStatus.INCOMPLETE
        with side_table_errors("archives"):
            read_archives(connection, context.files.name, settings.targets)
            archive.prepare(KnownArchive(), renew=True)
            archive.renew_marker()
            enter_archive(connection, context.files.name, settings.targets, archive.as_entry())
    print(f"{archive.data_dir} is the archive {archive.as_entry().archive_id}")
    return ExitStatus.DONE
