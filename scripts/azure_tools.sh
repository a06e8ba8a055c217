#!/bin/sh
# The tools of `make test-bicep`, each in an environment of its own: too big for .venv, and needed for nothing else.
# `azure_tools.sh models` prints the path of a Python that has azure-mgmt-*, `azure_tools.sh checkov` the path of checkov.
# The first call fetches them, from hashes, into $XDG_CACHE_HOME/relay-tests (~/.cache/relay-tests).
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/relay-tests
cd "$(dirname "$0")/.."

# tool NAME LOCK WHAT: the environment with that lock's packages.
tool() {
    lock=requirements/$2.txt
    dir=$cache/$1-$(cksum <"$lock" | cut -d ' ' -f 1)
    if ! [ -f "$dir/complete" ]; then
        mkdir -p "$cache"
        exec 9>"$cache/$1.lock"
        flock 9 # two calls at the same time: the second one finds it done
        if ! [ -f "$dir/complete" ]; then
            if ! { "${PYTHON:-python3}" -m venv --clear "$dir" >/dev/null 2>&1 &&
                "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
                    --no-deps --requirement "$lock" >"$dir/install.log" 2>&1; }; then
                echo "no $3: pip cannot install $lock" >&2
                exit 1
            fi
            touch "$dir/complete"
        fi
    fi
}

case ${1:-} in
models)
    tool azure-models azure 'azure-mgmt models'
    echo "$dir/bin/python"
    ;;
checkov)
    tool checkov policy checkov
    echo "$dir/bin/checkov"
    ;;
*)
    echo "usage: scripts/azure_tools.sh models | checkov" >&2
    exit 2
    ;;
esac
