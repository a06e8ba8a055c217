#!/bin/sh
# Installs relay from this bundle, without a network: see usage() below, or docs/how-to/install-as-a-service.md.
#
#     /opt/relay/VERSION       one folder for each version, complete or not there at all
#     /opt/relay/current       the version that the next start takes; /opt/relay/previous: the one before
#     /usr/bin/relay           leads to /opt/relay/current/bin/relay
#     /usr/local/lib/systemd/system/relay.service, relay.socket, relay-settings.service, relay-settings.timer
#     /etc/relay/relay.toml    settings; written once, and never touched again
set -eu
umask 022

ROOT=/opt/relay
COMMAND=/usr/bin/relay
UNITS=/usr/local/lib/systemd/system
SYSCTL=/usr/local/lib/sysctl.d/60-relay.conf
JOURNALD=/etc/systemd/journald.conf.d/60-relay.conf
HERE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
# shellcheck source=../shared/checked.sh
. "$HERE/checked.sh" # SETTINGS, checked, in_use

usage() {
    cat <<'TEXT'
usage: sh install.sh [install] [--python PYTHON] [--no-start] [--tune]
       sh /opt/relay/current/install.sh rollback | uninstall [--purge] | tune | list

install    put this bundle's version beside the others, make it the current one, enable the service, and start it
           if `relay check` finds nothing wrong with /etc/relay/relay.toml; a relay that runs is restarted, which
           drains it first (drain.announce and drain.window)
rollback   make the version before the current one again, with its units; what runs is restarted
uninstall  stop the service and remove every version; --purge removes /etc/relay as well
tune       install the machine's settings for many connections: sysctl.d and journald.conf.d, each line with its reason
list       the versions that are installed

--python PYTHON   interpreter of the installation, CPython 3.11 to 3.14 (default: python3, else the newest of these)
--no-start        neither start nor restart anything
--tune            the same as the command tune, after the installation
TEXT
}

say() { printf '==> %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

booted() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }
active() { booted && systemctl is-active --quiet relay.service; }

# --- what is installed ------------------------------------------------------------------------------------------------

version_of() { # LINK: the version that it leads to; nothing if there is none
    [ -L "$1" ] && basename -- "$(readlink "$1")" || :
}

link() { # TARGET LINK: in one step, so that nobody ever finds it missing
    ln -s "$1" "$2.$$"
    mv -fT "$2.$$" "$2"
}

list() {
    current=$(version_of $ROOT/current)
    previous=$(version_of $ROOT/previous)
    for folder in "$ROOT"/[0-9]*; do
        [ -x "$folder/bin/relay" ] || continue
        name=$(basename "$folder")
        case $name in
        "$current") echo "$name (current)" ;;
        "$previous") echo "$name (previous)" ;;
        *) echo "$name" ;;
        esac
    done
}

# --- one step each ----------------------------------------------------------------------------------------------------

need_root() { [ "$(id -u)" = 0 ] || fail "only root can install: sudo sh $0"; }

lock() { # one at a time; released when this process ends
    mkdir -p $ROOT
    exec 9>$ROOT/.lock
    if command -v flock >/dev/null; then
        flock -n 9 || fail "another installation is under way ($ROOT/.lock)"
    fi
}

check_bundle() {
    [ -f "$HERE/release" ] && [ -d "$HERE/wheels" ] || fail "$HERE is no bundle: run the install.sh inside the unpacked archive"
    # shellcheck source=/dev/null
    . "$HERE/release"
    machine=$(uname -m)
    [ "$machine" = "$ARCH" ] || fail "this bundle is for $ARCH, and this machine is $machine: take relay-$VERSION-linux-$machine.tar.gz"
    say "relay $VERSION for $ARCH: checking the bundle"
    (cd "$HERE" && sha256sum --check --quiet --strict SHA256SUMS) || fail "the bundle is damaged: fetch and unpack it again"
}

# What an interpreter has to be, as an exit status and a word for why not.
PROBE='
import sys, sysconfig
wanted = sys.argv[1].split()
if sys.implementation.name != "cpython": sys.exit("is not CPython")
if "%d.%d" % sys.version_info[:2] not in wanted: sys.exit("is Python %d.%d" % sys.version_info[:2])
if sysconfig.get_config_var("Py_GIL_DISABLED"): sys.exit("is a free-threaded build")
if sys.maxsize < 1 << 32: sys.exit("is a 32-bit build")
try: import ctypes, venv, zipfile, zlib
except ImportError as error: sys.exit("has no module %s" % error.name)
base = getattr(sys, "_base_executable", "") or sys.executable
print(base)
'
find_python() { # the interpreter in $python, by its versioned name where there is one
    if [ -n "$asked" ]; then
        python=$("$asked" -I -c "$PROBE" "$PYTHONS") || fail "--python $asked will not do; it takes CPython, one of $PYTHONS"
    else
        python=
        for name in python3 python3.14 python3.13 python3.12 python3.11; do
            command -v $name >/dev/null || continue
            python=$($name -I -c "$PROBE" "$PYTHONS" 2>/dev/null) && break
            python=
        done
        [ -n "$python" ] || fail "no CPython of $PYTHONS on this machine (apt-get install python3), or name one with --python"
    fi
    # /usr/bin/python3 may be another version after the next upgrade of the system; python3.11 stays what it is.
    exact=$("$python" -I -c 'import sys; print("%s/python%d.%d" % ((sys.argv[1],) + sys.version_info[:2]))' "$(dirname "$python")")
    [ ! -x "$exact" ] || python=$exact
}

need_space() { # twice what the installation takes: some 70 MB
    free=$(df -Pk $ROOT | awk 'NR == 2 { print $4 }')
    [ "$free" -ge 143360 ] || fail "$ROOT has $((free / 1024)) MB free; an installation takes 70 MB, and 140 while it is put in place"
}

clear_away() { # what an interrupted installation has left; a version that was being replaced gets its place back
    for folder in "$ROOT"/.replaced-*; do
        [ -d "$folder" ] || continue
        [ -e "$ROOT/${folder#"$ROOT/.replaced-"}" ] || mv "$folder" "$ROOT/${folder#"$ROOT/.replaced-"}"
        rm -rf "$folder"
    done
    rm -rf $ROOT/.incoming
}

unpack() { # everything into a folder beside its place, then there in one step
    incoming=$ROOT/.incoming
    clear_away
    trap clear_away EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say "installing into $ROOT/$VERSION with $python"
    "$python" -I -m venv --without-pip $incoming >"$ROOT/install.log" 2>&1 || broken
    set -- "$HERE"/wheels/pip-*.whl
    TMPDIR=$ROOT "$incoming/bin/python" -I "$1/pip" --isolated --no-cache-dir --disable-pip-version-check install \
        --no-index --find-links "$HERE/wheels" --no-deps --require-hashes --no-compile --root-user-action=ignore \
        --requirement "$HERE/requirements.txt" >>"$ROOT/install.log" 2>&1 || broken
    packages=$("$incoming/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$incoming/bin/python" -I -m compileall -q -j 0 -s $incoming -p "$ROOT/$VERSION" "$packages" \
        >>"$ROOT/install.log" 2>&1 || broken
    # By its own version's path: a worker that an older relay starts must not be of a newer one.
    rm -rf "$incoming/bin/activate"* "$incoming/bin/Activate.ps1"
    for script in "$incoming/bin/"*; do
        [ -L "$script" ] || rm -f "$script"
    done
    printf '#!%s/bin/python -I\nimport sys\n\nfrom relay.cli import main\n\nsys.exit(main())\n' "$ROOT/$VERSION" \
        >$incoming/bin/relay || broken
    chmod 755 $incoming/bin/relay || broken
    cp -R "$HERE/systemd" "$HERE/install.sh" "$HERE/checked.sh" "$HERE/relay.toml" "$HERE/release" "$HERE/LICENSE" $incoming/ || broken
    found=$("$incoming/bin/python" -I -m relay --version 2>>"$ROOT/install.log") || broken
    [ "$found" = "relay $VERSION" ] || fail "what was installed calls itself '$found'"
    sync -f $incoming 2>/dev/null || :
    if [ -e "$ROOT/$VERSION" ]; then
        mv "$ROOT/$VERSION" "$ROOT/.replaced-$VERSION"
    fi
    mv $incoming "$ROOT/$VERSION"
    rm -rf "$ROOT/.replaced-$VERSION" "$ROOT/install.log"
}

broken() {
    tail -n 5 "$ROOT/install.log" >&2 2>/dev/null || :
    fail "the installation failed; nothing that was there before has changed ($ROOT/install.log has all of it)"
}

write_settings() {
    if [ -e "$SETTINGS" ]; then
        return
    fi
    mkdir -p /etc/relay
    cp "$ROOT/$VERSION/relay.toml" "$SETTINGS.new"
    chmod 644 "$SETTINGS.new" # the service runs as a user of its own, which must be able to read it
    mv "$SETTINGS.new" "$SETTINGS"
    say "$SETTINGS is new: its first setting, upstream, is yours to write"
}

place_units() { # VERSION
    mkdir -p $UNITS
    for unit in relay.service relay.socket relay-settings.service relay-settings.timer; do
        if [ ! -f "$ROOT/$1/systemd/$unit" ]; then # an older version, which has no such unit
            rm -f $UNITS/$unit
            continue
        fi
        cp "$ROOT/$1/systemd/$unit" $UNITS/$unit.new
        mv -f $UNITS/$unit.new $UNITS/$unit
        [ ! -f /etc/systemd/system/$unit ] || [ -L /etc/systemd/system/$unit ] ||
            warn "/etc/systemd/system/$unit takes precedence over the one that belongs to this version"
    done
    ! booted || systemctl daemon-reload
}

make_current() { # VERSION
    before=$(version_of $ROOT/current)
    if [ -n "$before" ] && [ "$before" != "$1" ]; then
        link "$before" $ROOT/previous
    fi
    link "$1" $ROOT/current
    [ -e $COMMAND ] && [ ! -L $COMMAND ] || link $ROOT/current/bin/relay $COMMAND
    place_units "$1"
}

take_command() { # nobody else's
    if [ -e $COMMAND ] || [ -L $COMMAND ]; then
        [ "$(readlink $COMMAND)" = $ROOT/current/bin/relay ] ||
            fail "$COMMAND is there and not from this installer: remove that first (dpkg -S $COMMAND says whose it is)"
    fi
}

prune() { # all but the current version and the one before
    for folder in "$ROOT"/[0-9]*; do
        [ -d "$folder" ] || continue
        case $(basename "$folder") in
        "$(version_of $ROOT/current)" | "$(version_of $ROOT/previous)") ;;
        *) in_use "$folder" || rm -rf "$folder" ;;
        esac
    done
}

restart() { # VERSION: the service with it; 1 if it does not come up
    say "restarting relay (it drains first, which takes drain.announce and drain.window)"
    systemctl restart relay.service && systemctl is-active --quiet relay.service
}

tune() { # from the current version
    mkdir -p "$(dirname $SYSCTL)" "$(dirname $JOURNALD)"
    cp $ROOT/current/systemd/relay-sysctl.conf $SYSCTL
    cp $ROOT/current/systemd/relay-journald.conf $JOURNALD
    say "$SYSCTL and $JOURNALD are in place"
    if booted; then
        sysctl -q --load=$SYSCTL || warn "some of $SYSCTL could not be set here"
        systemctl try-restart systemd-journald.service || :
    fi
}

# --- commands ---------------------------------------------------------------------------------------------------------

install_bundle() {
    need_root
    check_bundle
    lock
    find_python
    need_space
    take_command
    was=$(version_of $ROOT/current)
    unpack
    write_settings
    if active && ! checked "$ROOT/$VERSION/bin/python"; then
        fail "relay $VERSION is installed beside $was, which goes on: mend the lines above, then run this again"
    fi
    make_current "$VERSION"
    if command -v systemctl >/dev/null; then
        systemctl enable --quiet relay.service || warn "the service could not be enabled"
    else
        warn "no systemctl here: the service is not enabled"
    fi
    if [ -n "$tuned" ]; then tune; fi
    if [ -n "$idle" ]; then
        say "relay $VERSION is installed; nothing was started (--no-start)"
    elif ! booted; then
        say "relay $VERSION is installed; systemd does not run here, and starts it at the next boot"
    elif active; then
        if ! restart "$VERSION"; then
            [ -n "$was" ] && [ "$was" != "$VERSION" ] || fail "relay does not start: journalctl -u relay"
            make_current "$was"
            systemctl restart relay.service || :
            fail "relay $VERSION did not start (journalctl -u relay); $was runs again"
        fi
        say "relay $VERSION runs"
    elif checked "$ROOT/$VERSION/bin/python"; then
        systemctl start relay.service || fail "relay does not start: journalctl -u relay"
        say "relay $VERSION runs: relay status"
    else
        say "relay $VERSION is installed and not started. Edit $SETTINGS, then:"
        echo "        relay check --config $SETTINGS --connect"
        echo "        systemctl start relay"
    fi
    prune
}

rollback() {
    need_root
    lock
    from=$(version_of $ROOT/current)
    to=$(version_of $ROOT/previous)
    [ -n "$to" ] && [ -x "$ROOT/$to/bin/relay" ] || fail "there is no version before ${from:-any} to go back to"
    checked "$ROOT/$to/bin/python" ||
        fail "relay $to would not start with $SETTINGS; $from stays. Mend the lines above (a setting that $to does" \
            "not know has to go, or to have the name that it had then), then run this again"
    make_current "$to"
    if [ -z "$idle" ] && active; then
        if ! restart "$to"; then
            make_current "$from"
            systemctl restart relay.service || :
            fail "relay $to did not start (journalctl -u relay); $from runs again"
        fi
    fi
    say "relay $to is current; $from is the one before"
}

uninstall() {
    need_root
    lock
    if booted; then
        say "stopping relay (it drains first)"
        systemctl disable --quiet --now relay-settings.timer relay-settings.service 2>/dev/null || :
        systemctl disable --quiet --now relay.socket relay.service 2>/dev/null || :
    elif command -v systemctl >/dev/null; then
        systemctl disable --quiet relay-settings.timer relay-settings.service relay.socket relay.service 2>/dev/null || :
    fi
    rm -f $UNITS/relay.service $UNITS/relay.socket $UNITS/relay-settings.service $UNITS/relay-settings.timer
    rm -f $SYSCTL $JOURNALD
    [ "$(readlink $COMMAND 2>/dev/null)" != $ROOT/current/bin/relay ] || rm -f $COMMAND
    if booted; then systemctl daemon-reload; fi
    rm -rf $ROOT
    if [ -n "$purge" ]; then
        rm -rf /etc/relay /etc/default/relay
        say "relay and its settings are gone"
    else
        say "relay is gone; its settings are still in /etc/relay (uninstall --purge takes them as well)"
    fi
}

command=install asked='' idle='' tuned='' purge=''
while [ $# -gt 0 ]; do
    case $1 in
    install | rollback | uninstall | tune | list) command=$1 ;;
    --python)
        [ $# -gt 1 ] || fail "--python takes the path of an interpreter"
        asked=$2
        shift
        ;;
    --no-start) idle=1 ;;
    --tune) tuned=1 ;;
    --purge) purge=1 ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
    shift
done
case $command in
install) install_bundle ;;
rollback) rollback ;;
uninstall) uninstall ;;
list) list ;;
tune)
    need_root
    [ -L $ROOT/current ] || fail "relay is not installed in $ROOT"
    tune
    ;;
esac
