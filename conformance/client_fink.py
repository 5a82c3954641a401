"""fink-client's own consumer over the topics of the outlets `fink` and `fink-ai`; prints counts as JSON.

usage: client_fink.py SERVERS SURVEY TOPIC N AI_TOPIC
"""

import json
import sys

import confluent_kafka
from fink_client.consumer import AlertConsumer
from fink_client.scripts.finkctl_transfer import _decode_prediction


def alerts(servers: str, survey: str, topic: str, n: int) -> int:
    """Alerts that AlertConsumer gives, until n or ten seconds without one."""
    config = {"bootstrap.servers": servers, "group.id": f"conformance-{topic}"}
    found = 0
    with AlertConsumer([topic], config, survey) as consumer:
        while found < n:
            _, alert, _ = consumer.poll(10)
            if alert is None:
                break
            assert alert["t2b"]["model_version"]
            found += 1
    return found


def predictions(servers: str, topic: str) -> int:
    """Rows that the transfer service's decoder makes of the results of an AI model."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": f"conformance-{topic}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    found = 0
    while message := consumer.poll(8):
        row = _decode_prediction(message)
        assert row is not None
        assert row["model"] == "t2b-1@1"
        assert 0 <= row["prediction"] <= 1
        found += 1
    consumer.close()
    return found


if __name__ == "__main__":
    servers, survey, topic, n, ai = sys.argv[1:]
    print(json.dumps({"AlertConsumer": alerts(servers, survey, topic, int(n)), "fink-ai": predictions(servers, ai)}))
