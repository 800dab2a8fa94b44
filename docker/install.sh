#!/bin/sh
# install-locked NAME: installs exactly requirements/NAME.txt into /opt/venv, hashes checked.
set -eu
python -m pip --python /opt/venv/bin/python install \
    --no-deps --require-hashes --no-compile --only-binary :all: -r "/requirements/$1.txt"
cd /opt/venv/lib/python3.11/site-packages
# Tests of packages are half of some packages, and no program of ours imports them.
find . -type d \( -name tests -o -name test \) ! -path './torch/*' -prune -exec rm -rf {} +
# So are what C++ extensions are compiled against and PyTorch's own tests of itself.
rm -rf torch/test torch/include pyarrow/include
if [ -d torch/bin ]; then find torch/bin -mindepth 1 ! -name torch_shm_manager -delete; fi
# Flower names uv, to install what an app asks for while it runs: ours asks for nothing.
rm -rf uv uv-*.dist-info /opt/venv/bin/uv /opt/venv/bin/uvx
# The libraries for GPUs are 120 MB, and the CPU set's torch cannot use one.
if [ "$1" = trainer-cpu ]; then
    find bitsandbytes -name 'libbitsandbytes_*.so' ! -name libbitsandbytes_cpu.so -delete
fi
# Packages ship files for newer Pythons too, which do not compile: nothing imports them here.
python -m compileall -q /opt/venv/lib >/dev/null || true
