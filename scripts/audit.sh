#!/bin/sh
# Tells which of the locked run-time packages have known vulnerabilities, as PyPI's advisory database has them. It
# reports and never fails a build: an advisory that appears overnight is no fault of the commit under test. pip-audit
# lives in .venv-audit and is needed for nothing else.
set -eu

python=${PYTHON:-python3}
venv=.venv-audit

if ! [ -x "$venv/bin/pip-audit" ]; then
    echo "==> creating $venv with pip-audit (half a minute)"
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" ||
        ! "$venv/bin/python" -m pip install -qq --disable-pip-version-check pip-audit; then
        echo "==> not audited: pip-audit could not be installed"
        exit 0
    fi
fi

status=0
echo "==> pip-audit: requirements/run.txt"
found=$("$venv/bin/pip-audit" --require-hashes --disable-pip --progress-spinner off --requirement requirements/run.txt 2>&1) ||
    status=$?
printf '%s\n' "$found"
# Those it skips, and says "No known vulnerabilities found" all the same.
skipped=$(printf '%s\n' "$found" | grep -c 'could not be audited' || :)
[ "$skipped" = 0 ] || echo "==> not audited: $skipped packages, for which the index that answered has no advisories to look up"
[ $status = 0 ] || echo "==> pip-audit ended with $status: see above; nothing is stopped for it"
