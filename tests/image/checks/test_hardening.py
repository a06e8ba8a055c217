"""The hardening list: a check for each rule of packer/scripts/40-hardening.sh, by its number in the CIS Ubuntu Linux
24.04 LTS Benchmark v1.0.0. tests/packaging/test_packer.py compares the numbers of script, checks and how-to.
"""

from __future__ import annotations

import pytest
from testinfra.host import Host

from tests.image.checks.proxies import sh

pytestmark = [pytest.mark.image, pytest.mark.timeout(300)]

ABSENT = {
    "1.5.4": ("prelink",),
    "1.5.5": ("apport",),
    "2.1.12": ("rpcbind",),
    "2.1.13": ("rsync",),
    "2.1.18": ("apache2", "nginx"),
    "2.1.19": ("xinetd",),
    "2.2.1": ("nis", "ypbind-mt"),
    "2.2.2": ("rsh-client",),
    "2.2.3": ("talk",),
    "2.2.4": ("telnet", "inetutils-telnet"),
    "2.2.5": ("ldap-utils",),
    "2.2.6": ("ftp", "tnftp"),
}
PRESENT = {"1.3.1.1": "apparmor", "5.2.1": "sudo"}
MODULES = {
    "1.1.1.1": "cramfs",
    "1.1.1.2": "freevxfs",
    "1.1.1.3": "hfs",
    "1.1.1.4": "hfsplus",
    "1.1.1.5": "jffs2",
    "1.1.1.9": "usb-storage",
    "3.2.1": "dccp",
    "3.2.2": "tipc",
    "3.2.3": "rds",
    "3.2.4": "sctp",
}
BOTH = ("all", "default")
SYSCTL = {
    "1.5.1": {"kernel.randomize_va_space": 2},
    "1.5.2": {"kernel.yama.ptrace_scope": 1},
    "1.5.3": {"fs.suid_dumpable": 0},
    "3.3.1": {"net.ipv4.ip_forward": 0, "net.ipv6.conf.all.forwarding": 0},
    "3.3.2": {f"net.ipv4.conf.{which}.send_redirects": 0 for which in BOTH},
    "3.3.3": {"net.ipv4.icmp_ignore_bogus_error_responses": 1},
    "3.3.4": {"net.ipv4.icmp_echo_ignore_broadcasts": 1},
    "3.3.5": {f"net.{family}.conf.{which}.accept_redirects": 0 for family in ("ipv4", "ipv6") for which in BOTH},
    "3.3.6": {f"net.ipv4.conf.{which}.secure_redirects": 0 for which in BOTH},
    "3.3.7": {f"net.ipv4.conf.{which}.rp_filter": 1 for which in BOTH},
    "3.3.8": {f"net.{family}.conf.{which}.accept_source_route": 0 for family in ("ipv4", "ipv6") for which in BOTH},
    "3.3.9": {f"net.ipv4.conf.{which}.log_martians": 1 for which in BOTH},
    "3.3.10": {"net.ipv4.tcp_syncookies": 1},
}
SSHD = {
    "5.1.7": ("clientaliveinterval 15", "clientalivecountmax 3"),
    "5.1.8": ("disableforwarding yes",),
    "5.1.9": ("gssapiauthentication no",),
    "5.1.10": ("hostbasedauthentication no",),
    "5.1.11": ("ignorerhosts yes",),
    "5.1.13": ("logingracetime 60",),
    "5.1.14": ("loglevel INFO",),
    "5.1.16": ("maxauthtries 4",),
    "5.1.17": ("maxsessions 10",),
    "5.1.18": ("maxstartups 10:30:60",),
    "5.1.19": ("permitemptypasswords no",),
    "5.1.20": ("permitrootlogin no",),
    "5.1.21": ("permituserenvironment no",),
    "5.1.22": ("usepam yes",),
}
FILES = {
    "1.6.5": ("/etc/issue", 0o644, "root"),
    "1.6.6": ("/etc/issue.net", 0o644, "root"),
    "2.4.1.2": ("/etc/crontab", 0o600, "root"),
    "2.4.1.3": ("/etc/cron.hourly", 0o700, "root"),
    "2.4.1.4": ("/etc/cron.daily", 0o700, "root"),
    "2.4.1.5": ("/etc/cron.weekly", 0o700, "root"),
    "2.4.1.6": ("/etc/cron.monthly", 0o700, "root"),
    "2.4.1.7": ("/etc/cron.d", 0o700, "root"),
    "5.1.1": ("/etc/ssh/sshd_config", 0o600, "root"),
    "7.1.1": ("/etc/passwd", 0o644, "root"),
    "7.1.3": ("/etc/group", 0o644, "root"),
    "7.1.5": ("/etc/shadow", 0o640, "shadow"),
    "7.1.7": ("/etc/gshadow", 0o640, "shadow"),
    "7.1.9": ("/etc/shells", 0o644, "root"),
}
JOURNAL = {"6.1.2.2": "ForwardToSyslog=no", "6.1.2.3": "Compress=yes", "6.1.2.4": "Storage=persistent"}
# Rules with a check of their own below.
OWN = ("1.6.2", "1.6.3", "2.1.22", "5.2.2", "5.2.3", "5.4.2.4", "6.1.1.4")
RULES = {*ABSENT, *PRESENT, *MODULES, *SYSCTL, *SSHD, *FILES, *JOURNAL, *OWN}


@pytest.fixture(scope="module")
def sshd(host: Host) -> set[str]:
    """sshd's effective settings, with a key for this question alone: an image has none."""
    if not host.file("/usr/sbin/sshd").exists:
        pytest.skip("no SSH server on this machine")
    key = "/run/check-sshd-key"
    made = f"install -d /run/sshd; rm -f {key}*; ssh-keygen -q -t ed25519 -N '' -f {key}"
    return set(sh(host, f"{made}; sshd -T -h {key}; rm -f {key}*").splitlines())


@pytest.mark.parametrize("rule", ABSENT)
def test_package_is_not_installed(host: Host, rule: str) -> None:
    assert [name for name in ABSENT[rule] if host.package(name).is_installed] == []


@pytest.mark.parametrize("rule", PRESENT)
def test_package_is_installed(host: Host, rule: str) -> None:
    assert host.package(PRESENT[rule]).is_installed


@pytest.mark.parametrize("rule", MODULES)
def test_module_cannot_be_loaded(host: Host, own_kernel: bool, rule: str) -> None:
    name = MODULES[rule]
    wanted = {f"install {name.replace('-', '_')} /bin/false", f"blacklist {name.replace('-', '_')}"}
    found = {line.strip().replace("-", "_") for line in sh(host, "modprobe --showconfig").splitlines()}
    assert {line.replace("-", "_") for line in wanted} <= found
    if own_kernel:
        assert name.replace("-", "_") not in sh(host, "cut -d' ' -f1 /proc/modules").split()


@pytest.mark.parametrize("rule", SYSCTL)
def test_kernel_setting(host: Host, own_kernel: bool, rule: str) -> None:
    """What the files say at the end; and the kernel, where it has the setting and lets this machine make it."""
    # systemd-sysctl's own order: by name, of all folders together; the last one counts.
    last = {}
    for line in sh(host, "systemd-analyze cat-config sysctl.d").splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals and not name.startswith("#"):
            last[name.removeprefix("-").replace("/", ".")] = value
    for name, wanted in SYSCTL[rule].items():
        assert last[name] == str(wanted)
        if own_kernel or name.startswith("net."):
            assert sh(host, f"cat /proc/sys/{name.replace('.', '/')}").strip() == str(wanted)


def test_core_dumps_are_limited(host: Host) -> None:
    """CIS 1.5.3, the part that is no kernel setting."""
    assert "* hard core 0" in host.file("/etc/security/limits.d/70-relay-hardening.conf").content_string


@pytest.mark.parametrize("rule", SSHD)
def test_sshd_setting(sshd: set[str], rule: str) -> None:
    assert set(SSHD[rule]) <= sshd


def test_sshd_takes_keys_only(sshd: set[str]) -> None:
    assert {"passwordauthentication no", "kbdinteractiveauthentication no"} <= sshd


@pytest.mark.parametrize("rule", FILES)
def test_file_belongs_to_its_owner(host: Host, rule: str) -> None:
    path, mode, group = FILES[rule]
    file = host.file(path)
    assert (oct(file.mode), file.user, file.group) == (oct(mode), "root", group)


@pytest.mark.parametrize("rule", JOURNAL)
def test_journal_setting(host: Host, rule: str) -> None:
    name, _, value = JOURNAL[rule].partition("=")
    lines = sh(host, "systemd-analyze cat-config systemd/journald.conf").splitlines()
    assert [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")][-1] == value


@pytest.mark.parametrize(("rule", "path"), [("1.6.2", "/etc/issue"), ("1.6.3", "/etc/issue.net")])
def test_a_banner_says_nothing_about_the_system(host: Host, rule: str, path: str) -> None:
    assert host.file(path).content_string == "Authorized use only.\n"


@pytest.mark.parametrize(("rule", "setting"), [("5.2.2", "use_pty"), ("5.2.3", 'logfile="/var/log/sudo.log"')])
def test_sudo_setting(host: Host, rule: str, setting: str) -> None:
    assert f"Defaults {setting}" in host.file("/etc/sudoers.d/70-relay-hardening").content_string.splitlines()
    sh(host, "visudo --check --quiet")


def test_root_has_no_password(host: Host) -> None:
    """CIS 5.4.2.4."""
    assert sh(host, "passwd --status root").split()[1] == "L"


def test_the_journal_is_the_only_log(host: Host) -> None:
    """CIS 6.1.1.4."""
    assert host.run("systemctl is-active rsyslog.service").stdout.strip() in ("inactive", "")
