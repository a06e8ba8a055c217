#!/bin/sh
# Brings a virtual environment up to date: venv.sh DIR LOCK..., where LOCK is a name in requirements/, for example
# `venv.sh .venv dev`. Installs the locked releases by hash and relay itself as an editable project, and does so again
# only when a lock (everything) or pyproject.toml (relay itself) has changed. PYTHON names the interpreter; when empty,
# a present environment keeps the one that it has, and a new one takes python3. Needs a package index only when a lock
# has changed. Prints nothing when there is nothing to do; pip's output goes to DIR/install.log.
set -eu

fail() {
    echo "error: $1" >&2
    exit 1
}

dir=$1
shift
locks=
for name in "$@"; do
    locks="$locks requirements/$name.txt"
done
python=${PYTHON:-python3}

# The path is part of it because a virtual environment does not survive a move.
# shellcheck disable=SC2086  # file names of this repository, without spaces
locked="$(pwd)/$dir $(cat $locks | cksum)"
project=$(cksum <pyproject.toml)
stamp="$dir/.stamp"

identity='import sys; print("%d.%d.%d %s" % (sys.version_info[:3] + (getattr(sys, "base_prefix", ""),)))'
same_python() {
    [ -z "${PYTHON:-}" ] || [ "$("$python" -c "$identity" 2>&1)" = "$("$dir/bin/python" -c "$identity" 2>&1)" ]
}

have_locked=
have_project=
if [ -f "$stamp" ] && [ -x "$dir/bin/python" ]; then
    { read -r have_locked && read -r have_project; } <"$stamp" || :
fi
if [ "$have_locked" = "$locked" ] && same_python; then
    [ "$have_project" = "$project" ] && exit 0
    echo "==> installing relay itself into $dir (pyproject.toml has changed)"
    create=false
else
    command -v "$python" >/dev/null 2>&1 ||
        fail "$python not found; relay needs Python 3.11 or newer (Debian: sudo apt-get install python3 python3-venv)"
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
        fail "$python does not run: name another one, for example make PYTHON=python3.12"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        hint="name a newer one, for example make PYTHON=python3.12"
        for other in python3.13 python3.12 python3.11; do
            if "$other" -c '' >/dev/null 2>&1; then
                hint="this machine has a newer one: make PYTHON=$other"
                break
            fi
        done
        fail "relay needs Python 3.11 or newer, and $python is $version; $hint"
    fi
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "==> $python has no venv module"
        PYTHON=$python scripts/deps.sh venv || :
    fi
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module: run make deps (on Debian and Ubuntu: sudo apt-get install python3-venv)"
    echo "==> creating $dir with Python $version (about a minute)"
    "$python" -m venv --clear "$dir"
    create=true
fi

# From here on the environment is incomplete until the last line; whoever is interrupted starts again.
rm -f "$stamp"
log="$dir/install.log"
: >"$log"
step() {
    "$dir/bin/python" -m "$@" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "installing into $dir failed (whole output: $log)"
    }
}
pip="pip --disable-pip-version-check --no-input"
if $create; then
    requirements=
    for lock in $locks; do
        requirements="$requirements --requirement $lock"
    done
    # The lock is complete, so pip need not resolve anything (--no-deps).
    # shellcheck disable=SC2086
    step $pip install --require-hashes --no-deps $requirements
fi
# shellcheck disable=SC2086
step $pip install --no-deps --no-build-isolation --no-index --editable .
# shellcheck disable=SC2086
step $pip check
printf '%s\n%s\n' "$locked" "$project" >"$stamp"
