#!/bin/sh
# Segment every CT of a folder:  sh predict.sh [INPUTS [OUTPUTS]] [OPTIONS]
# Try it on a synthetic CT:      sh predict.sh --demo [FOLDER] [OPTIONS]
#
# Default folders: /workspace/inputs, /inputs or ./inputs, whichever exists first, with the
# outputs folder beside it. INPUTS alone: labels go to /workspace/outputs, /outputs or ./outputs.
# OPTIONS go to "python -m inference" (see its --help).
# Where no Python with the dependencies is found, .venv is made beside this file first.
set -eu

script=$0
while [ -L "$script" ]; do # a link in a folder of programs, say
    link=$(readlink -- "$script")
    case $link in /*) script=$link ;; *) script=$(dirname -- "$script")/$link ;; esac
done
home=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd)
lock=$home/inference/requirements.lock

die() {
    echo "predict.sh: $*" >&2
    exit 2
}

# Supported, and what inference imports is there, no older than pyproject.toml asks for. Nothing is
# imported: this takes 0.05 s.
complete() {
    "$1" -c '
import sys
sys.path[:] = filter(None, sys.path)
from importlib.metadata import version
needed = """connected-components-3d>=4 isal>=1.7 numpy>=2.1 openvino>=2026.2 pydicom>=3
            SimpleITK>=2.4 tqdm>=4.66"""
for name, least in (package.split(">=") for package in needed.split()):
    least = [*map(int, least.split("."))]
    if [*map(int, version(name).split(".")[:len(least)])] < least: sys.exit(1)
sys.exit(not (3, 10) <= sys.version_info < (3, 14))
' 2>/dev/null
}

ours() { # this script made .venv, maybe not to its end
    [ -e "$home/.venv/made_by_predict.sh" ] || [ -e "$home/.venv/installed.lock" ]
}

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null
}

make_venv() {
    if [ -e "$home/.venv" ] && ! ours; then
        die "$home/.venv is not mine and lacks a package of $lock; install that list there, or move it away"
    fi
    for python in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if supported "$python"; then
            echo "predict.sh: first run: installing the dependencies into $home/.venv" >&2
            rm -rf "$home/.venv"
            mkdir "$home/.venv"
            : >"$home/.venv/made_by_predict.sh"
            "$python" -m venv "$home/.venv" >&2 \
                || die "'$python -m venv $home/.venv' failed (Debian and Ubuntu need the package python3-venv)"
            set -- --quiet --disable-pip-version-check --no-deps --requirement "$lock"
            [ ! -d "$home/wheelhouse" ] || set -- "$@" --find-links "$home/wheelhouse"
            "$home/.venv/bin/python" -m pip install "$@" >&2 \
                || die "pip could not install the dependencies (see above)"
            cp "$lock" "$home/.venv/installed.lock" # written last: a broken .venv is made anew
            return
        fi
    done
    die "no Python 3.10 to 3.13 found"
}

# The image names its Python, which is complete. Elsewhere: our .venv, an active environment, the
# machine's own, another's .venv, whichever is complete, else a new .venv.
find_python() {
    if [ -n "${ABDOSEG_PYTHON:-}" ]; then
        python=$ABDOSEG_PYTHON
    elif cmp -s "$lock" "$home/.venv/installed.lock" && complete "$home/.venv/bin/python"; then
        python=$home/.venv/bin/python
    elif complete python3; then
        python=python3
    elif complete python; then
        python=python
    elif ! ours && complete "$home/.venv/bin/python"; then
        python=$home/.venv/bin/python
    else
        make_venv
        python=$home/.venv/bin/python
    fi
}

# Any, for what needs no package: nothing is installed to print the help.
any_python() {
    if [ -n "${ABDOSEG_PYTHON:-}" ]; then
        python=$ABDOSEG_PYTHON
        return
    fi
    for python in python3 python3.13 python3.12 python3.11 python3.10 python; do
        ! supported "$python" || return 0
    done
    die "no Python 3.10 to 3.13 found"
}

first_of() { # the first folder that exists, else the last name
    for folder; do
        [ ! -d "$folder" ] || break
    done
    echo "$folder"
}

# The packages beside this file, never those of the folder in which it is called, which "-m" puts
# first (and Python 3.10 knows no PYTHONSAFEPATH).
program='import sys; sys.path[:] = filter(None, sys.path); from inference.cli import program; program()'

start() {
    # Users without a home (docker run --user) get one that can be written.
    [ -w "${HOME:-/nonexistent}" ] || export HOME="${TMPDIR:-/tmp}"
    export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
    exec "$python" -c "$program" "$@"
}

run() {
    find_python
    start "$@"
}

case ${1:-} in
-h | --help)
    sed -n '2,8s/^# \{0,1\}//p' "$script"
    echo
    any_python
    start --help
    ;;
--demo)
    shift
    case ${1:-} in
    '' | -*)
        # A fresh folder: among the mounted outputs in a container, else right here.
        demo=$(first_of /workspace/outputs /outputs .)
        [ -w "$demo" ] || demo=${TMPDIR:-/tmp}
        demo=$demo/demo
        demo=${demo#./}
        n=1
        name=$demo
        while [ -e "$name" ]; do
            n=$((n + 1))
            name=$demo-$n
        done
        ;;
    *)
        name=$1
        shift
        ;;
    esac
    run --demo "$name" "$@"
    ;;
esac

for option; do # nothing to add where folders are given as options, or none are wanted
    case $option in
    --version) any_python && start "$@" ;;
    -i* | --input | --input=* | --demo | --demo=*) run "$@" ;;
    esac
done

inputs='' outputs=''
case ${1:-} in '' | -*) ;; *) inputs=$1 && shift ;; esac
case ${1:-} in '' | -*) ;; *) outputs=$1 && shift ;; esac
if [ -z "$inputs" ]; then
    inputs=$(first_of /workspace/inputs /inputs ./inputs)
    [ -d "$inputs" ] || die "no folder /workspace/inputs, /inputs or ./inputs; name one, before any options: sh predict.sh INPUTS OUTPUTS"
    outputs=${inputs%inputs}outputs
fi
[ -n "$outputs" ] || outputs=$(first_of /workspace/outputs /outputs ./outputs)
run -i "$inputs" -o "$outputs" "$@"
