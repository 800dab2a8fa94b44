#!/bin/sh
# The last step of every image: takes out what no service uses and an intruder would.
#
# Installers, setuid programs, perl and bash go; sh stays for who looks into a container, and
# dpkg-query with its list stays for scanners.
set -eu
python -m pip uninstall --yes setuptools wheel pip
rm -rf "$(python -c 'import ensurepip, pathlib; print(pathlib.Path(ensurepip.__file__).parent)')"
rm -rf /root/.cache /etc/apt /usr/lib/apt /var/lib/apt /usr/share/perl* /usr/lib/*/perl*
rm -f /usr/bin/apt* /usr/bin/dpkg /usr/bin/dpkg-[!q]* /usr/bin/perl* /usr/bin/bash
find / -xdev -type f -perm /6000 -delete
rm -f "$0"
