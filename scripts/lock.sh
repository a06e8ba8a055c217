#!/bin/sh
# Writes requirements/*.txt from pyproject.toml: every release and every hash that a machine may install, for all
# supported Pythons and platforms at once. Releases already locked are kept; `make lock ARGS=--upgrade` takes newer
# ones, `make lock ARGS='--upgrade-package aiohttp'` one of them. The resolver (uv) lives in .venv-lock and is needed
# for nothing else. Installs nothing of what it locks.
set -eu

python=${PYTHON:-python3}
venv=.venv-lock

if ! [ -x "$venv/bin/uv" ]; then
    echo "==> creating $venv with uv (a few seconds)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check uv
fi

# --no-config, --no-emit-*: nothing of the machine that makes the lock may show in it.
compile() {
    output=requirements/$1
    shift
    echo "==> locking $output"
    "$venv/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        --output-file "$output" "$@"
}

# dev.txt holds everything and comes first; the others are held to its releases, so that what is tested is what runs.
compile dev.txt pyproject.toml --extra demo --extra test --extra check --group build "$@"
compile run.txt pyproject.toml --constraint requirements/dev.txt "$@"
compile demo.txt pyproject.toml --constraint requirements/dev.txt --extra demo "$@"
compile install.txt --group install "$@"
compile build.txt --constraint requirements/dev.txt --group build "$@"
compile chart.txt --constraint requirements/dev.txt --group chart "$@"
compile image.txt --constraint requirements/dev.txt --group image "$@"
compile azure.txt --group azure "$@"
compile policy.txt --group policy "$@"
