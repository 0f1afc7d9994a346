"""What is printed once the stack is up: also that nobody will answer."""

import socket

import yaml

from deploy.ready import listens, upstream_of
from gateway.configuration import parse_configuration
from tests.gateway_process import configuration, free_port


def test_whether_something_listens():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert listens(f"http://127.0.0.1:{server.getsockname()[1]}/v1")
    assert not listens(f"http://127.0.0.1:{free_port()}/v1")


def test_a_model_that_only_the_wildcard_names_has_an_upstream():
    given = parse_configuration(yaml.safe_dump(configuration("http://127.0.0.1:9/v1")))
    assert upstream_of(given, "any") == "http://127.0.0.1:9/v1"
