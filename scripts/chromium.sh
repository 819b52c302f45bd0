#!/bin/sh
# Make sure that the browser tests find a Chromium and a Chinese font; install the system's packages when allowed.
set -eu
cd "$(dirname "$0")/.."

browser() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        # On Ubuntu, chromium-browser may be a stub that only tells you to install a snap: it must answer.
        if command -v "$name" >/dev/null 2>&1 && "$name" --version >/dev/null 2>&1; then
            return 0
        fi
    done
    return 1
}

browser || sh scripts/apt.sh chromium || true
if ! browser; then
    echo "The browser tests need Chromium or Google Chrome, and none answers here." >&2
    echo "Debian: sudo apt-get install chromium    Ubuntu: sudo snap install chromium" >&2
    exit 1
fi
# Without a Chinese font the pages work, but their screenshots show empty boxes.
if command -v fc-list >/dev/null 2>&1 && [ -z "$(fc-list :lang=zh family)" ]; then
    sh scripts/apt.sh fonts-noto-cjk || echo "No Chinese font: screenshots will show boxes." >&2
fi
