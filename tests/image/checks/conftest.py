"""Checks of a machine that was made of the image, by pytest-testinfra: on a local root and on the machine that Packer
bakes, over SSH.

    pytest -m image tests/image/checks --machine nsenter://PID
    pytest -m image tests/image/checks --machine 'ssh://packer@10.0.0.4?sudo=true' --image haproxy --building

A check may configure and restart the proxy; what it has written is removed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

from tests.image import nsenter
from tests.image.checks.proxies import HAProxy, Proxy, Relay, Standin


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("image")
    group.addoption("--machine", help="the machine, as testinfra has it: ssh://USER@HOST?sudo=true, nsenter://PID")
    group.addoption("--image", choices=("relay", "haproxy"), default="relay", help="what the image is of")
    group.addoption("--building", action="store_true", help="the image is being baked: SSH still listens")
    group.addoption("--kernel", action="store_true", help="the machine has a kernel of its own")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what is about the other image."""
    image = config.getoption("--image", default="relay")
    return True if collection_path.name in {"test_relay.py", "test_haproxy.py"} - {f"test_{image}.py"} else None


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Host:
    """The machine."""
    name = request.config.getoption("--machine", default=None)
    if not name:
        pytest.skip("no machine to look at (--machine)")
    nsenter.register()
    return testinfra.get_host(name)


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--image"))


@pytest.fixture(scope="session")
def building(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--building"))


@pytest.fixture(scope="session")
def own_kernel(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel is the image's, and all of its settings the machine's to make."""
    return bool(request.config.getoption("--kernel"))


@pytest.fixture(scope="session")
def hub(host: Host) -> Iterator[Standin]:
    """A stand-in hub in a network namespace of the machine, with real TLS on all three ports."""
    standin = Standin(host)
    standin.start()
    yield standin
    standin.remove()


@pytest.fixture(scope="session")
def proxy(host: Host, hub: Standin, image: str) -> Iterator[Proxy]:
    """relay or HAProxy, configured for the hub and serving."""
    found: Proxy = Relay(host) if image == "relay" else HAProxy(host)
    found.configure(hub.address)
    found.restart()
    yield found
    found.remove()
