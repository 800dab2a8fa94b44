#!/bin/sh
# install-locked NAME: installs exactly requirements/NAME.txt into /opt/venv, hashes checked.
set -eu
python -m pip --python /opt/venv/bin/python install \
    --no-deps --require-hashes --no-compile --only-binary :all: -r "/requirements/$1.txt"
# Tests of packages are half of some packages, and no program of ours imports them.
find /opt/venv -type d \( -name tests -o -name test \) -path '*/site-packages/*' \
    ! -path '*/torch/*' -prune -exec rm -rf {} +
# Packages ship files for newer Pythons too, which do not compile: nothing imports them here.
python -m compileall -q /opt/venv/lib >/dev/null || true
