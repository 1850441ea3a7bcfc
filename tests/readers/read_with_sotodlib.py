"""Reads an archive with sotodlib's own functions and prints what it found as JSON. Runs in sotodlib's environment.

Arguments: the archive, a directory for its database.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
logging.disable(logging.ERROR)
from sotodlib.io.load_smurf import ChanAssignments, Files, G3tSmurf, TimeCodes, Tunes

FROM = 1_000_000_000  # the first time with ten digits
archive, database = sys.argv[1], Path(sys.argv[2]) / "frames.db"
reader = G3tSmurf(archive, db_path=str(database), meta_path=archive, make_db=not database.exists())
session = reader.Session()
actions = [[action, stream, ctime] for action, stream, ctime, _ in reader.search_metadata_actions(min_ctime=FROM)]
files = [[name, stream, path] for name, stream, _, path in reader.search_metadata_files(min_ctime=FROM)]
reader.index_archive(stop_at_error=True, show_pb=False, session=session)
reader.index_metadata(min_ctime=FROM, stop_at_error=True, session=session)
reader.index_timecodes(min_ctime=FROM, session=session)
for assignment in session.query(ChanAssignments).all():
    reader.add_channels_from_assignment(assignment, session)
tunes = session.query(Tunes).order_by(Tunes.name).all()
print(
    json.dumps(
        {
            "actions": sorted(actions),
            "files": sorted(files),
            "channels": {
                each.name: sorted(channel.channel for channel in each.channels)
                for each in session.query(ChanAssignments).all()
            },
            "tunes": [each.name for each in tunes],
            "tune_assignments": [
                [found.name for found in reader._assign_set_from_file(each.path, session=session)] for each in tunes
            ],
            "data_files": session.query(Files).count(),
            "timecodes": sorted(
                [each.timecode, each.stream_id, int(each.suprsync_type), each.agent]
                for each in session.query(TimeCodes).all()
            ),
        }
    )
)
