#!/bin/sh
# Writes a CycloneDX bill of materials of each locked set: requirements/sbom.sh [FOLDER]
#
#   pip install cyclonedx-bom && requirements/sbom.sh build/sbom
#
# From the locks, not from an image: what an image holds is exactly its lock, by hash. Debian's
# packages are those of the base image (and haproxy): `dpkg-query -W` in the image lists them.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-build/sbom}
mkdir -p "$folder"
for file in requirements/*.txt; do
    name=$(basename "$file" .txt)
    cyclonedx-py requirements "$file" --output-reproducible --of JSON -o "$folder/$name.cdx.json"
    echo "$folder/$name.cdx.json"
done
