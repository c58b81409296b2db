# Sourced by scripts/up and scripts/test, from the repository root: make .venv and install pinned lists into it.

# PyTorch's own list of CPU builds, asked only if pip's configured sources do not have the build.
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "aifactory needs Python 3.11 or 3.12 and found none. Install one, or name it: PYTHON=/path/to/python3.11 scripts/up" >&2
    return 1
}

make_venv() {
    [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 && return
    local python
    python=$(find_python)
    echo "making .venv with $python"
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "making .venv failed; on Debian and Ubuntu install the package python3-venv first" >&2
        return 1
    fi
}

pip_install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$@"
}

# install_lock FILE: nothing to do if exactly this list, for this place, is installed already.
install_lock() {
    local lock=$1 stamp wanted started=$SECONDS
    make_venv
    stamp=.venv/.installed-$(basename "$lock")
    # The place counts too: the editable install and the programs' first lines hold its path.
    wanted=$( (cat "$lock" pyproject.toml; pwd) | sha256sum | cut -d' ' -f1)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "installing $lock (a few minutes the first time)"
    if ! pip_install -r "$lock" 2>.venv/.pip-errors; then
        if ! grep -q "torch==" .venv/.pip-errors; then
            cat .venv/.pip-errors >&2
            echo "installing $lock failed: see above; check the network and pip's configuration, then run this again" >&2
            return 1
        fi
        echo "the CPU build of PyTorch is not in pip's configured sources, trying $TORCH_CPU_INDEX"
        if ! pip_install --extra-index-url "$TORCH_CPU_INDEX" -r "$lock"; then
            echo "installing $lock failed: see above; the CPU build of PyTorch comes from $TORCH_CPU_INDEX, can this machine reach it?" >&2
            return 1
        fi
    fi
    pip_install --no-build-isolation -e .
    echo "$wanted" >"$stamp"
    echo "installed $lock ($((SECONDS - started)) s)"
}
