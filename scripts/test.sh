#!/usr/bin/env bash
# Runs every check and every test. The last line is "N passed, N failed": tests that ran, a step that broke being one
# failure more. The exit status is 0 only if nothing failed. Whole outputs stay in target/test-logs/.
set -uo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.." || exit 1
readonly TARGET=aarch64-unknown-none-softfloat
readonly logs=target/test-logs tools=${CARGO_TARGET_DIR:-target}/debug
passed=0 failed=0
# The steps under way, by name.
declare -A group
mkdir -p "$logs"

end() {
    printf '%d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0))
    exit
}

# step NAME COMMAND...: a step that breaks is a failure, and its output is shown.
step() {
    begin "$@"
    end_step "$1"
}

# begin NAME COMMAND...: begins a step that runs beside those that follow, in a group of processes of its own.
begin() {
    local name=$1 log
    log=$(log_of "$name")
    shift
    set -m
    {
        local started=$SECONDS status=0
        "$@" || status=$?
        printf '%d\n' $((SECONDS - started)) >"$log.took"
        exit "$status"
    } >"$log" 2>&1 </dev/null &
    group[$name]=$!
    set +m
}

# end_step NAME: waits for it and says how it ended.
end_step() {
    local name=$1 log status=0
    log=$(log_of "$name")
    printf '== %s\n' "$name"
    wait "${group[$name]}" || status=$?
    unset "group[$name]"
    if ((status == 0)); then
        printf '   ok, %d s\n' "$(<"$log.took")"
    else
        cat "$log"
        printf '   BROKEN: %s (%s)\n' "$name" "$log"
        failed=$((failed + 1))
    fi
    return "$status"
}

log_of() { printf '%s/%s.log' "$logs" "${1//[^a-z0-9]/-}"; }

# Nothing outlives an interrupted run.
trap 'for pid in "${group[@]}"; do kill -- "-$pid"; done 2>/dev/null' EXIT

# tests NAME HIDE COMMAND...: counts the tests that a cargo test command runs; shows all but lines that match HIDE.
tests() {
    local name=$1 hide=$2 log=$logs/${1//[^a-z0-9]/-}.log started=$SECONDS status good bad
    shift 2
    printf '== %s\n' "$name"
    "$@" 2>&1 | tee "$log" | grep --line-buffered -vE "$hide"
    status=${PIPESTATUS[0]}
    good=$(sum passed "$log") bad=$(sum failed "$log")
    # A program that does not build, or dies, has no result line.
    if ((status != 0 && bad == 0)); then
        printf '   BROKEN: %s (%s)\n' "$name" "$log"
        bad=1
    fi
    passed=$((passed + good)) failed=$((failed + bad))
    printf '   %d passed, %d failed, %d s\n' "$good" "$bad" $((SECONDS - started))
}

# sum WORD FILE: adds up "N WORD" of all result lines.
sum() {
    sed -nE "s/^test result: .* ([0-9]+) $1;.*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'
}

# The images of all sets of features that are booted; what is missing here is built when it is wanted.
build_images() {
    local features audited=hyp/fault-injection,hyp/debug-snapshot
    for features in "" "$audited" "hyp/spec,$audited" hyp/bench hyp/debug-snapshot; do
        "$tools/xtask" build ${features:+--features "$features"} || return
    done
}

# Without Linux its boots count as ignored.
set_up_linux() {
    if ! scripts/setup.sh --linux; then
        printf '== boot tests with Linux: NOT RUN, its kernel could not be fetched\n'
    elif ! scripts/setup.sh --driver; then
        printf "== boot tests of Linux's driver: NOT RUN, what builds it could not be fetched\n"
    fi
}

has_component() { cargo "$1" --version >/dev/null 2>&1 || rustup component add "$2" >/dev/null 2>&1; }

printf '== set-up\n'
if ! scripts/setup.sh; then
    failed=$((failed + 1))
    end
fi

has_component fmt rustfmt && format=1
has_component clippy clippy && lints=1
begin "set-up of Linux" set_up_linux

if [[ ${format-} ]]; then
    step "format" cargo fmt --all --check
else
    printf '== format: NOT RUN, rustfmt is missing: rustup component add rustfmt\n'
fi
# All there is, at once: with another choice of packages their dependencies have other features, and are built again.
step "build" cargo build --quiet --locked --workspace --all-targets
begin "images" build_images
if [[ ${lints-} ]]; then
    step "lints" cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
    if [[ -x target/rust/rustc ]]; then
        printf '== lints of the images: NOT RUN, the target %s could not be added\n' "$TARGET"
    else
        for features in "" hyp/spec,hyp/fault-injection,hyp/debug-snapshot; do
            step "lints of the images${features:+ with $features}" cargo clippy --quiet --locked --target "$TARGET" \
                -p hyp -p el1 -p host-shim -p guest-shim ${features:+--features "$features"} -- -D warnings
        done
    fi
else
    printf '== lints: NOT RUN, clippy is missing: rustup component add clippy\n'
fi
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" step "documentation" cargo doc --quiet --locked --workspace --no-deps --document-private-items
end_step "images" && begin "cost against the baseline" "$tools/bench" --check
end_step "set-up of Linux" && cat "$(log_of "set-up of Linux")"
# Boots, and nothing else, have a machine in brackets in their names.
tests "unit and property tests" '^(test .* \.\.\. ok|running [0-9]+ tests?|)$' \
    cargo test --locked --workspace --no-fail-fast -- --skip '['
[[ ! ${group["cost against the baseline"]-} ]] || end_step "cost against the baseline"
tests "boot tests" '^(running 0 tests|)$' cargo test --locked --workspace --no-fail-fast --test boot --test campaign
end
