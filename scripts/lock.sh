#!/bin/sh
# Write requirements-build.lock and requirements-dev.lock from pyproject.toml, with hashes, for every Python we support.
set -eu
cd "$(dirname "$0")/.."

[ -x build/lock/bin/uv ] || {
    python3 -m venv build/lock
    build/lock/bin/pip install --quiet --disable-pip-version-check uv
}

compile() {
    build/lock/bin/uv pip compile --universal --python-version 3.11 --upgrade --quiet --no-header --no-annotate \
        --generate-hashes "$@"
}

{
    echo "# What builds the source distributions in requirements-dev.lock; installed first. Written by \`make lock\`."
    printf 'pip\nsetuptools\nwheel\n' | compile --allow-unsafe -
} >build/requirements-build.lock
{
    echo "# What the virtual environment of a checkout holds (group dev, extra http). Written by \`make lock\`."
    compile --group dev --extra http pyproject.toml
} >build/requirements-dev.lock
mv build/requirements-build.lock build/requirements-dev.lock .
