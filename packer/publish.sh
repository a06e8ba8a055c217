#!/usr/bin/env bash
# Tests a version in the gallery, then lets it be the latest: Packer publishes every version excluded from latest. A
# machine is made of the version, with user data of yours, on a network of its own that nobody can reach from outside;
# its relay has to be ready, and the image's SBOM has to name the version. Machine and network go again, whatever happens.
#
#     packer/publish.sh RESOURCE_GROUP GALLERY DEFINITION VERSION LOCATION VM_SIZE USER_DATA_FILE
#
# Needs az, logged in. HAProxy's images have no user data: make them the latest by hand, after a look at one machine.
set -euo pipefail
[ $# = 7 ] || {
    echo "usage: packer/publish.sh RESOURCE_GROUP GALLERY DEFINITION VERSION LOCATION VM_SIZE USER_DATA_FILE" >&2
    exit 2
}
group=$1 gallery=$2 definition=$3 version=$4 location=$5 size=$6 data=$7
[ -s "$data" ] || {
    echo "error: $data: no user data there; it is a relay.toml, as in docs/how-to/settings-from-user-data.md" >&2
    exit 2
}
place=(--resource-group "$group" --gallery-name "$gallery" --gallery-image-definition "$definition"
    --gallery-image-version "$version")
test=relay-image-test-$RANDOM$RANDOM

id=$(az sig image-version show "${place[@]}" --query id --output tsv)
echo "==> testing $id in the resource group $test"
trap 'az group delete --name "$test" --yes --no-wait' EXIT
az group create --name "$test" --location "$location" --output none
az vm create --resource-group "$test" --name relay --image "$id" --size "$size" --security-type TrustedLaunch \
    --enable-secure-boot true --enable-vtpm true --admin-username relay --generate-ssh-keys --public-ip-address "" \
    --nsg-rule NONE --user-data "$data" --output none

# Up to three minutes: the first boot, and a minute for the user data.
# shellcheck disable=SC2016  # it runs on the other machine
look='for i in $(seq 90); do curl -fs http://127.0.0.1:8080/readyz && break; sleep 2; done
curl -s http://127.0.0.1:8080/healthz; cat /usr/share/relay-image/release; curl -fs http://127.0.0.1:8080/readyz >/dev/null && echo IMAGE-READY'
said=$(az vm run-command invoke --resource-group "$test" --name relay --command-id RunShellScript --scripts "$look" \
    --query 'value[0].message' --output tsv)
printf '%s\n' "$said"
case $said in
*"IMAGE_VERSION=$version"*IMAGE-READY*) ;;
*)
    echo "error: $version is not ready, or not what it says; it stays excluded from latest" >&2
    exit 1
    ;;
esac
az sig image-version update "${place[@]}" --set publishingProfile.excludeFromLatest=false --output none
echo "==> $version is the latest of $gallery/$definition"
