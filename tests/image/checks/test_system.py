"""The rest of the image: limits, updates, SSH, the bill of materials."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testinfra.host import Host

from tests.image.checks.proxies import Proxy, sh
from tests.support.programs import ROOT

pytestmark = [pytest.mark.image, pytest.mark.timeout(300)]

SBOM = "/usr/share/relay-image"


def ours(path: Path) -> dict[str, str]:
    """The settings of a sysctl.d file of this tree."""
    pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line and line[0] != "#")
    return {name.strip(): " ".join(value.split()) for name, _, value in pairs}


def test_the_kernel_is_tuned_as_the_file_says(host: Host, own_kernel: bool) -> None:
    wanted = ours(ROOT / "deploy/systemd/relay-sysctl.conf")
    assert (
        host.file("/usr/local/lib/sysctl.d/60-relay.conf").content_string
        == (ROOT / "deploy/systemd/relay-sysctl.conf").read_text()
    )
    for name, value in wanted.items():
        path = f"/proc/sys/{name.removeprefix('-').replace('.', '/')}"
        if name.startswith("-") and not (own_kernel and host.file(path).exists):
            continue  # where the module is not loaded, or is another kernel's
        if own_kernel or host.file(path).exists:
            assert " ".join(sh(host, f"cat {path}").split()) == value, name


def test_a_process_may_have_as_many_descriptors_as_relay_wants(host: Host) -> None:
    assert int(sh(host, "cat /proc/sys/fs/nr_open")) >= 1048576


def test_the_journal_is_bounded(host: Host) -> None:
    lines = sh(host, "systemd-analyze cat-config systemd/journald.conf").splitlines()
    assert "SystemMaxUse=2G" in lines


def test_security_updates_install_themselves_and_restart_nothing(host: Host) -> None:
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert sh(host, f"systemctl is-enabled {timer}").strip() == "enabled"
    said = sh(host, "apt-config dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in said
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in said
    origins = [line for line in said.splitlines() if line.startswith("Unattended-Upgrade::Allowed-Origins:: ")]
    assert origins == ['Unattended-Upgrade::Allowed-Origins:: "${distro_id}:${distro_codename}-security";']
    conf = host.file("/etc/needrestart/conf.d/relay.conf").content_string
    assert "$nrconf{override_rc}{qr(^relay)} = 0;" in conf
    assert "$nrconf{override_rc}{qr(^haproxy)} = 0;" in conf


@pytest.mark.parametrize("unit", ["ssh.service", "ssh.socket"])
def test_ssh_is_off(host: Host, unit: str) -> None:
    assert host.run(f"systemctl is-enabled {unit}").stdout.strip() == "masked"


def test_the_image_says_what_it_is(host: Host, image: str) -> None:
    lines = dict(line.split("=", 1) for line in host.file(f"{SBOM}/release").content_string.splitlines())
    assert lines["IMAGE"] == image
    assert lines["IMAGE_VERSION"].count(".") == 2


def test_the_bill_of_materials_has_every_installed_package(host: Host) -> None:
    document = json.loads(host.file(f"{SBOM}/dpkg.cdx.json").content_string)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    listed = {(part["name"], part["version"]) for part in document["components"]}
    line = r"dpkg-query --show --showformat '${db:Status-Status} ${Package} ${Version}\n'"
    installed = {tuple(row.split()[1:]) for row in sh(host, line).splitlines() if row.startswith("installed ")}
    assert listed == installed


def test_the_bill_of_materials_has_relay_s_environment_and_nothing_else(host: Host, image: str) -> None:
    path = f"{SBOM}/python.cdx.json"
    if image != "relay":
        assert not host.file(path).exists
        return
    document = json.loads(host.file(path).content_string)
    listed = {(part["name"].lower().replace("_", "-"), part["version"]) for part in document["components"]}
    code = (
        "import importlib.metadata as m; [print(d.metadata['Name'].lower().replace('_', '-'), d.version) "
        "for d in m.distributions()]"
    )
    said = sh(host, f'/usr/lib/relay/*/bin/python3 -I -c "{code}"')
    assert listed == {tuple(row.split()) for row in said.splitlines()}
    assert "relay-passthrough" in {name for name, _ in listed}


def test_the_tools_of_the_build_are_not_on_the_image(host: Host) -> None:
    assert sh(host, "find / -xdev -name 'cyclonedx*' -not -path '/proc/*' -not -path '/tmp/*'").strip() == ""


def test_an_update_of_the_system_finds_the_proxy_s_unit_excluded(host: Host, proxy: Proxy) -> None:
    """needrestart itself, asked with its list mode: it must read the file that 50-updates.sh has written."""
    if not host.file("/usr/sbin/needrestart").exists:
        pytest.skip("no needrestart on this machine")
    sh(host, "perl -c /etc/needrestart/conf.d/relay.conf")
    assert proxy.show("ActiveState") == "active"
