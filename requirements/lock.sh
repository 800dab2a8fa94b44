#!/bin/sh
# Writes the locked, hash-checked dependency set of each image from pyproject.toml.
#
#   pip install uv && requirements/lock.sh          # versions as in constraints.txt
#
# Two builds from these files install the same bytes: pip refuses a file with another hash, and
# --no-deps keeps it from adding one that is not named.
set -eu
cd "$(dirname "$0")/.."

lock() { # lock NAME [pip-compile option...]
    name=$1
    shift
    uv pip compile pyproject.toml "$@" \
        --constraint constraints.txt --generate-hashes --quiet \
        --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links --no-annotate \
        --custom-compile-command "requirements/lock.sh" \
        --output-file "requirements/$name.txt"
}

lock cli
lock flower --extra flower # the aggregator and the link: the layer is built once
lock control-plane --extra dashboard --extra postgres # a driver that a URL may ask for

# PyTorch publishes its CPU build on an index of its own, as version 2.13.0+cpu. It is installed in
# a step of its own from there, so that no other package can come from that index: the CPU set is
# everything but torch and what only its CUDA build needs.
lock trainer-cuda --extra trainer
lock trainer-cpu --extra trainer --no-emit-package torch $(
    sed -nE 's/^((nvidia|cuda)-[a-z0-9-]+|triton)==.*/--no-emit-package \1/p' requirements/trainer-cuda.txt
)
