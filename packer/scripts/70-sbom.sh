#!/usr/bin/env bash
# The bill of materials of the image, in /usr/share/relay-image: what the image is, dpkg's packages and relay's Python
# environment, both as CycloneDX 1.6, and dpkg's list as text. Packer fetches the folder to stand beside the version.
#
#     IMAGE, IMAGE_VERSION
#     FILES=/tmp/relay-image             the folder that holds dpkg_sbom.py, and sbom-wheels/ with cyclonedx-bom's wheels
set -euo pipefail
files=${FILES:-/tmp/relay-image}
out=/usr/share/relay-image
image=${IMAGE:-relay}
version=${IMAGE_VERSION:-0.0.0}

rm -rf $out
install -d $out
if [ "$image" = relay ]; then
    proxy=$(relay --version)
else
    proxy="HAProxy $(dpkg-query --show --showformat '${Version}' haproxy)"
fi
printf 'IMAGE=%s\nIMAGE_VERSION=%s\nPROXY=%q\nARCH=%s\n' "$image" "$version" "$proxy" "$(dpkg --print-architecture)" \
    >$out/release
dpkg-query --list >$out/dpkg.list
python3 -I "$files/dpkg_sbom.py" "$image" "$version" >$out/dpkg.cdx.json
if [ "$image" = relay ]; then
    # cyclonedx-bom is a tool of the build: it runs from a folder that goes, and relay's own environment stays as it is.
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT
    for wheel in "$files"/sbom-wheels/*.whl; do
        python3 -I -m zipfile -e "$wheel" "$tools"
    done
    home=$(echo /usr/lib/relay/*/bin/python3)
    # Not by PYTHONPATH: the interpreter that it looks into would have it too, and the tool would be in the list.
    python3 -I -B -c 'import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module("cyclonedx_py", run_name="__main__")' \
        "$tools" environment --output-reproducible --spec-version 1.6 --output-format JSON \
        --output-file $out/python.cdx.json "$home"
fi
chmod 644 $out/*
