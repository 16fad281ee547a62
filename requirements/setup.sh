#!/bin/sh
# One step of the set-up; the Makefile calls it, in order, and keeps a stamp for each step that went well.
#   setup.sh VENV python | lock NAME | lint | package | database
# Each step says what it does and how long it took. One that fails says which, why and what to do, and leaves its output in a log.
set -eu

venv=$1
action=$2
here=$(dirname "$0")
log="$venv/.stamps/$action${3:+-$3}.log"
mkdir -p "$venv/.stamps"

fail() { # fail WHICH WHY WHAT-TO-DO
    printf '\nset-up stopped at: %s\nwhy: %s\nwhat to do: %s\n\n' "$1" "$2" "$3" >&2
    exit 1
}

dots() { # a sign of life each second; sleep keeps no hold on our output, so nobody waits for it
    while :; do
        sleep 1 >/dev/null 2>&1
        printf '.'
    done
}

step() { # step WHICH WHAT-TO-DO COMMAND...
    which=$1
    advice=$2
    shift 2
    printf 'set-up: %s ' "$which"
    begun=$(date +%s)
    dots &
    dots=$!
    trap 'kill "$dots" 2>/dev/null || :' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    status=0
    "$@" >"$log" 2>&1 || status=$?
    kill "$dots" 2>/dev/null || :
    wait "$dots" 2>/dev/null || :
    trap - EXIT INT TERM
    if [ "$status" -ne 0 ]; then
        printf ' failed\n\n' && tail -n 30 "$log" >&2 && echo >&2
        fail "$which" "the command above ended with status $status; its whole output is in $log" "$advice"
    fi
    printf ' %s s\n' "$(($(date +%s) - begun))"
}

fits() { # fits PYTHON: is it one that every pinned package runs on?
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null
}

choose_python() { # prints the interpreter to build the environment with
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null 2>&1 || fail "Python" "PYTHON=$PYTHON cannot be found" "name an interpreter that exists, e.g. make PYTHON=/usr/bin/python3.11"
        fits "$PYTHON" || fail "Python" "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1); Pointsman wants 3.11 to 3.14" "name another one, e.g. make PYTHON=python3.11"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    if command -v python3 >/dev/null 2>&1; then found=$(python3 -V 2>&1); else found="no python3"; fi
    fail "Python" "found $found; Pointsman wants 3.11 to 3.14" "install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11"
}

usable() { # usable PYTHON: is there an environment already, complete, and of the Python that was asked for (if one was)?
    [ -x "$venv/bin/python" ] && fits "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        { [ -z "${PYTHON:-}" ] || [ "$("$1" -V 2>&1)" = "$("$venv/bin/python" -V 2>&1)" ]; }
}

lint_environment() {
    "$venv/bin/python" -m venv --clear --without-pip "$venv/lint" &&
        "$venv/bin/uv" pip install --quiet --python "$venv/lint/bin/python" --require-hashes -r "$here/lint.txt"
}

network="if a download failed, check the network, the proxy and the package index that pip and uv are configured for; \
if the disk is full, free 2 GB; if a hash did not match, do not go on: the package is not the one that was reviewed"

case $action in
python)
    python=$(choose_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "Python environment" "$python cannot make virtual environments: its venv or ensurepip module is missing" \
            "install it (Debian, as root: apt-get install python3-venv), then run the same command again"
    if ! usable "$python"; then
        # --clear: what an interrupted run or another Python left behind must not be mixed with ours.
        step "Python environment in $venv ($("$python" -V 2>&1))" "look at the message above; make PYTHON=... picks another interpreter" \
            "$python" -m venv --clear "$venv"
        mkdir -p "$venv/.stamps"
    fi
    step "installer (uv, pinned by hash)" "$network" \
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r "$here/bootstrap.txt"
    ;;
lock)
    step "packages of requirements/$3.txt (pinned by hash; 0.3 GB to download the first time)" "$network" \
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --require-hashes --compile-bytecode -r "$here/$3.txt"
    ;;
lint)
    step "import-linter, in an environment of its own" "$network" lint_environment
    ;;
package)
    step "Pointsman itself" "look at the message above" \
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e "$here/.."
    ;;
database)
    step "query engine and database client" "$network" "$venv/bin/python" -m pointsman.migrations.install
    ;;
*)
    fail "set-up" "there is no step '$action'" "run make help"
    ;;
esac
