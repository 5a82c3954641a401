"""A real Kafka that asks for a login: SCRAM with and without TLS, and rights by ACL, as Rubin's stream does."""

import datetime
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from broker.embedded import EmbeddedKafka, free_port

USER, PASSWORD = "rubin-t2", 'correct "horse" \\ battery'
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass(frozen=True)
class Guarded:
    """kafka: as seen by its master, without login; scram, tls: HOST:PORT for others; authority: the CA's PEM file."""

    kafka: EmbeddedKafka
    scram: str
    tls: str
    authority: Path

    def allow(self, kind: ResourceType, name: str, *operations: AclOperation, user: str = USER) -> None:
        """Rights on one topic or group."""
        bindings = [
            AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{user}", "*", operation, AclPermissionType.ALLOW)
            for operation in operations
        ]
        admin = AdminClient({"bootstrap.servers": self.kafka.bootstrap_servers})
        for done in admin.create_acls(bindings).values():
            done.result(30)


@contextmanager
def guarded(folder: Path) -> Iterator[Guarded]:
    """One Kafka, one user with a password and no right."""
    plain, scram, tls, controller = (free_port() for _ in range(4))
    authority = certificate(folder)
    where = {"PLAINTEXT": plain, "SASL_PLAINTEXT": scram, "SASL_SSL": tls}
    properties: dict[str, str | int] = {
        "listeners": ",".join(f"{n}://127.0.0.1:{p}" for n, p in (*where.items(), ("CONTROLLER", controller))),
        "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in where.items()),
        "listener.security.protocol.map": ",".join(f"{n}:{n}" for n in where) + ",CONTROLLER:PLAINTEXT",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": SCRAM,
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": SCRAM,
        "listener.name.sasl_ssl.ssl.keystore.type": "PEM",
        "listener.name.sasl_ssl.ssl.keystore.location": str(folder / "server.pem"),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with EmbeddedKafka(plain, properties=properties) as kafka:
        login = UserScramCredentialUpsertion(
            USER, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), PASSWORD.encode()
        )
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        for done in admin.alter_user_scram_credentials([login]).values():
            done.result(30)
        yield Guarded(kafka, f"127.0.0.1:{scram}", f"127.0.0.1:{tls}", authority)


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself: server.pem for Kafka; gives authority.pem, for clients."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "t2-broker tests")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    text = signed.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + text)
    authority = folder / "authority.pem"
    authority.write_bytes(text)
    return authority
