"""No plain text off the machine by accident, no password on a screen."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from ares_stream.errors import SettingsError
from ares_stream.streaming.connection import KafkaConnection


@pytest.mark.parametrize("host", ["localhost:9092", "127.0.0.1:1,127.0.0.2:2", "[::1]:9092"])
def test_plain_text_is_fine_on_this_machine(host: str) -> None:
    assert KafkaConnection(bootstrap=host).client_arguments()["bootstrap_servers"] == host


@pytest.mark.parametrize("host", ["kafka:9092", "10.0.0.5:9092", "127.0.0.1:1,kafka:9092"])
def test_plain_text_to_another_machine_is_refused_unless_allowed(host: str) -> None:
    with pytest.raises(ValidationError, match="would send conversations readable"):
        KafkaConnection(bootstrap=host)
    assert KafkaConnection(bootstrap=host, allow_plaintext=True).bootstrap == host


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"protocol": "SASL_SSL"}, "needs username and password_file"),
        ({"protocol": "SSL", "certificate_file": "c.pem"}, "belong together"),
        ({"protocol": "SASL_PLAINTEXT"}, "needs username and password_file"),
        ({"protocol": "SASL_SSL", "mechanism": "PLAIN"}, "PLAIN needs username"),
        ({"protocol": "SASL_SSL", "mechanism": "GSSAPI"}, "Input should be"),
        (
            {"protocol": "SASL_PLAINTEXT", "bootstrap": "kafka:1", "username": "a"},
            "readable over the network",
        ),
        ({"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}, "token_file or token_endpoint"),
        (
            {
                "protocol": "SASL_SSL",
                "mechanism": "OAUTHBEARER",
                "token_file": "t",
                "token_endpoint": "https://idp/token",
            },
            "and not both",
        ),
        (
            {
                "protocol": "SASL_SSL",
                "mechanism": "OAUTHBEARER",
                "token_endpoint": "https://idp/token",
            },
            "token_client_id and token_client_secret_file",
        ),
        (
            {
                "protocol": "SASL_SSL",
                "mechanism": "OAUTHBEARER",
                "token_endpoint": "http://idp/token",
                "token_client_id": "c",
                "token_client_secret_file": "s",
            },
            "use https",
        ),
        ({"bootstrap": ""}, "at least 1 character"),
        ({"bootstap": "x"}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        KafkaConnection.model_validate(fields)


def test_a_password_comes_from_its_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    connection = KafkaConnection(
        bootstrap="kafka:9093", protocol="SASL_SSL", username="ares", password_file=file
    )

    arguments = connection.client_arguments()

    assert arguments["sasl_plain_password"].value() == "hunter2"
    assert arguments["sasl_mechanism"] == "SCRAM-SHA-512"
    assert arguments["ssl_context"].value().check_hostname
    assert "hunter2" not in repr(connection) + connection.model_dump_json()


def test_a_secret_that_cannot_be_read_names_its_field_and_file(tmp_path: Path) -> None:
    connection = KafkaConnection(
        protocol="SASL_SSL", username="ares", password_file=tmp_path / "none"
    )
    with pytest.raises(SettingsError, match=r"kafka\.password_file: .*none: cannot be read"):
        connection.client_arguments()


def test_certificates_that_cannot_be_loaded_are_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    connection = KafkaConnection(protocol="SSL", ca_file=tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match="certificates cannot be loaded"):
        connection.client_arguments()


@pytest.mark.parametrize(
    "bootstrap",
    ["localhost:", "localhost:x", "localhost:0", "localhost:65536", "localhost:99999999",
     "localhost:9092,", ",localhost:9092", "localhost:9092,,localhost:9093", "localhost 9092",
     "kafka://localhost:9092", "user:word@localhost:9092", "::1:9092", "[::1:9092", "a;b",
     "localhost:9092;localhost:9093", " "],
)  # fmt: skip
def test_servers_that_are_none_are_refused_by_their_place_and_not_shown(bootstrap: str) -> None:
    with pytest.raises(ValidationError, match=r"server \d of \d: expected host:port") as caught:
        KafkaConnection(bootstrap=bootstrap)
    assert "word" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "bootstrap", ["localhost", "localhost:9092, 127.0.0.1:9093", "[::1]:9092", "[::1]", "127.0.0.1"]
)
def test_servers_of_this_machine_need_no_security(bootstrap: str) -> None:
    connection = KafkaConnection(bootstrap=bootstrap)
    assert " " not in connection.bootstrap
