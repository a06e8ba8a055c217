#!/bin/sh
# The system programs that some tests want, and CPython's own tests. `deps.sh install` installs the missing ones with
# apt-get, through sudo when not root, and says so; where there is no apt-get it names them and leaves the rest to you.
# `deps.sh report` prints a line naming the missing ones, or nothing; `deps.sh venv` installs only what a virtual
# environment needs. None of them is needed to run relay itself; a test that misses one is skipped and says why.
set -eu

# program:package, one line each; python3-venv has no program of its own.
wanted='
haproxy:haproxy
openssl:openssl
curl:curl
go:golang-go
nft:nftables
ip:iproute2
systemd-nspawn:systemd-container
mmdebstrap:mmdebstrap
lintian:lintian
promtool:prometheus
podman:podman
runc:runc
iptables:iptables
/usr/lib/podman/netavark:netavark
/usr/lib/podman/aardvark-dns:aardvark-dns
shellcheck:shellcheck
'
# Not in every archive: Debian 12 has HashiCorp's last free Packer, later releases have none.
where_available='packer:packer'
# nft and ip are in sbin, which is not on everybody's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

programs=
packages=
for line in $wanted $(for one in $where_available; do
    ! apt-cache show "${one#*:}" >/dev/null 2>&1 || echo "$one"
done); do
    if ! command -v "${line%%:*}" >/dev/null 2>&1; then
        programs="$programs ${line%%:*}"
        packages="$packages ${line#*:}"
    fi
done

# Python's package `test`, with CPython's own tests: Debian's Python has it in a package by version, others as built.
python=${PYTHON:-python3}
[ ! -x .venv/bin/python ] || python=.venv/bin/python # what the tests run with
tests=$("$python" -c 'import sys
from importlib.util import find_spec
if not (find_spec("test") and find_spec("test.test_selectors")):
    print("libpython{}.{}-testsuite".format(*sys.version_info) if sys.base_prefix == "/usr" else "built without")
' 2>/dev/null) || tests=
case $tests in
libpython*)
    programs="$programs $tests"
    packages="$packages $tests"
    ;;
esac

case ${1:-} in
report)
    [ -z "$programs" ] || echo "==> not found:$programs; tests that need them are skipped (make deps installs them)"
    [ "$tests" != "built without" ] || echo "==> $python has no package test: CPython's own tests are skipped"
    exit 0
    ;;
venv) packages= ;;
install) ;;
*)
    echo "usage: scripts/deps.sh install | report | venv" >&2
    exit 2
    ;;
esac

"${PYTHON:-python3}" -c 'import venv, ensurepip' 2>/dev/null || packages="$packages python3-venv"
if [ -z "$packages" ]; then
    echo "==> system packages: nothing missing"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "==> no apt-get here; with this system's own package manager, install:$packages"
    exit 0
fi

sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "error: installing needs root, and there is no sudo; as root: apt-get install --yes$packages" >&2
        exit 1
    fi
    # Without a terminal nobody can answer a password prompt: fail instead of hanging.
    if [ -t 0 ]; then sudo=sudo; else sudo='sudo -n'; fi
fi

echo "==> ${sudo:+$sudo }apt-get install$packages (about a minute)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086  # lists of words, and sudo may be empty
if ! {
    $sudo apt-get -qq update &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $packages
} >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "error: could not install; as root: apt-get install --yes$packages" >&2
    exit 1
fi
case "$packages " in
*" haproxy "*)
    if [ -d /run/systemd/system ]; then
        echo "==> the package has started haproxy.service, which no test uses: sudo systemctl disable --now haproxy"
    fi
    ;;
esac
case "$packages " in
*" prometheus "*)
    if [ -d /run/systemd/system ]; then
        echo "==> the package has started prometheus.service, which no test uses: sudo systemctl disable --now prometheus"
    fi
    ;;
esac
