"""hop-client over a topic of the outlet `hop`; prints counts as JSON. usage: client_hop.py SERVERS TOPIC"""

import json
import sys

from hop import Stream
from hop.io import StartPosition
from hop.models import AvroBlob

servers, topic = sys.argv[1:]
found = 0
stream = Stream(auth=False, start_at=StartPosition.EARLIEST, until_eos=True)
with stream.open(f"kafka://conformance@{servers}/{topic}", "r") as messages:
    for message in messages:
        assert isinstance(message, AvroBlob), type(message)
        assert message.content["classifierName"] == "t2b-1@1"
        found += 1
print(json.dumps({"hop-client": found}))
