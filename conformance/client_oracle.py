"""How others read the same bytes: Rubin's lsst-alert-packet its frames, AMPEL's loader a night of ZTF; prints counts.

usage: client_oracle.py FOLDER

FOLDER holds frames NUMBER.bin with what we read from them in NUMBER.json (`fields`: the pruned fields, `alert`: their
values), and night.tar.gz with the ids that we read from it, in order, in night.json.
"""

import json
import struct
import sys
from pathlib import Path

import fastavro
import lsst.alert.packet as packet
from ampel.alert.load.TarAlertLoader import TarAlertLoader


def pruned(record: object, fields: object) -> object:
    """The fields out of a whole record; null where the record has none."""
    if record is None or isinstance(fields, str):
        return record
    if isinstance(fields, list):
        return [pruned(item, fields[0]) for item in record]
    return {name: pruned(record.get(name), wanted) for name, wanted in fields.items()}


def by_rubin(frame: bytes) -> dict:
    """By the schema that Rubin's package holds for this id, such as 1101 for 11.1."""
    version = divmod(struct.unpack_from(">I", frame, 1)[0], 100)
    folder = Path(str(packet.get_schema_path(*version)))
    schema = packet.Schema.from_file(str(folder / f"lsst.v{version[0]}_{version[1]}.alert.avsc"))
    return schema.deserialize(frame[5:])


folder = Path(sys.argv[1])
n_frames = n_same = 0
for path in sorted(folder.glob("*.bin")):
    ours = json.loads(path.with_suffix(".json").read_text())
    theirs = json.dumps(pruned(by_rubin(path.read_bytes()), ours["fields"]), sort_keys=True)
    n_frames += 1
    n_same += theirs == json.dumps(ours["alert"], sort_keys=True)  # as text: NaN equals itself

loader = TarAlertLoader(file_path=str(folder / "night.tar.gz"), file_obj=None)
found = [[a["objectId"], a["candid"]] for member in loader for a in fastavro.reader(member)]
ours = json.loads((folder / "night.json").read_text())
same_night = sum(a == b for a, b in zip(found, ours, strict=False)) if len(found) == len(ours) else 0
print(json.dumps({"lsst": [n_same, n_frames], "ztf": [same_night, len(found)]}))
