"""The Kafka of docker-compose.yml: the embedded one, under its service's name, with the topics that are replayed to."""

from broker.embedded import serve

if __name__ == "__main__":
    serve(9092, None, host="kafka", topics={"demo-ztf": 2, "demo-lsst": 2, "demo-elasticc": 2})
