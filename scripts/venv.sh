#!/bin/sh
# Make .venv and install this project into it: `sh scripts/venv.sh .` or `sh scripts/venv.sh '.[dev]'`.
# Needs Python 3.11 or newer; the versions are those of constraints.txt.
set -eu
what=$1
cd "$(dirname "$0")/.."

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "zimage-ui needs Python 3.11 or newer, and found none (set PYTHON=/path/to/python)." >&2
    exit 1
}

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    rm -rf .venv
    if ! "$python" -m venv .venv >/dev/null 2>&1; then
        # Debian and Ubuntu keep venv in a package of its own.
        rm -rf .venv
        package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        echo "Python's venv is missing: installing $package." >&2
        sh scripts/apt.sh "$package"
        "$python" -m venv .venv
    fi
fi

echo "Installing into .venv; the first time takes some minutes." >&2
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

# PyPI's torch brings gigabytes of CUDA libraries. Without an NVIDIA driver, PyTorch's own CPU build is tried first;
# where its index cannot be reached, PyPI's build is taken after all.
if ! command -v nvidia-smi >/dev/null 2>&1 && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    torch=$(grep '^torch==' constraints.txt)
    pip install --quiet --no-deps --retries 1 --timeout 20 \
        --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
        echo "The CPU build of torch cannot be had; taking PyPI's, which is much larger." >&2
fi

pip install --quiet --constraint constraints.txt --editable "$what"
