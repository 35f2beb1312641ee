#!/usr/bin/env bash
# Breaks the table engine on purpose, one step at a time, and shows which tests notice.
#
#     scripts/mutants.sh [--again] [NAME...]
#
# scripts/mutants/NAME.patch is one mutant; its first line says what is broken. Each is applied to a scratch copy in
# target/mutants/, never to the sources, and the narrow tests run on it, the quickest first, until one kind of them fails.
# A result stays valid until the engine, the simulated machine or the patch changes: a run that was interrupted goes on where
# it stopped. --again forgets all results, for a run after a test was changed. The exit status is 0 only if every mutant applies, builds and is caught by all tests that
# docs/pgtable.md names for it.
set -uo pipefail
export LC_ALL=C

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.." || exit 1
readonly scratch=$PWD/target/mutants
readonly tree=$scratch/tree results=$scratch/results
# A mutant may loop for ever; no kind of tests takes a tenth of this.
readonly SECONDS_MOST=600
readonly KINDS=("--test pgtable" "--lib pgtable::" "--test table_corpus" "--test table_properties" "--test mte")

export CARGO_TARGET_DIR=$scratch/build CARGO_PROFILE_DEV_DEBUG=0
# What a mutant leaves unused is not the question.
export RUSTFLAGS="--cap-lints allow"
# The copy lies inside this repository and is not part of it.
export GIT_CEILING_DIRECTORIES=$scratch

copy() {
    rm -rf "$tree"
    mkdir -p "$tree" "$results"
    git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -cf - -T - 2>/dev/null |
        tar -xf - -C "$tree"
    # Cargo goes by time: what an interrupted mutant was built from must look older.
    find "$tree/hyp/src" -type f -exec touch {} +
}

# sources: a checksum of what a result depends on, but for the patch and the tests.
sources() {
    (cd "$tree" && find hyp/src testkit/src -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum
}

# run KIND LOG: the tests of one kind; status 0 if they pass, 1 if some fail, 2 if they do not build.
run() {
    local -a arguments
    read -ra arguments <<<"$1"
    (cd "$tree" && cargo test --quiet --locked -p hyp "${arguments[@]}" --no-run) >"$2" 2>&1 || return 2
    (cd "$tree" && timeout "$SECONDS_MOST" cargo test --locked -p hyp "${arguments[@]}") >"$2" 2>&1 || return 1
}

failed_tests() { sed -nE 's/^test (.*::)?([a-z0-9_]+) (- should panic )?\.\.\. FAILED$/\2/p' "$1" | sort -u; }

# named NAME: the tests in the row of docs/pgtable.md.
named() { sed -nE "s/^\| \`$1\` \|[^|]*\|([^|]*)\|\$/\1/p" docs/pgtable.md | grep -oE '`[a-z0-9_]{4,}`' | tr -d '`' | sort -u; }

# try NAME: prints the outcome, and after "caught" the tests.
try() {
    local patch=$PWD/scripts/mutants/$1.patch log=$results/$1.log kind status
    git -C "$tree" apply "$patch" 2>"$log" || { echo "DOES NOT APPLY"; return; }
    for kind in "${KINDS[@]}"; do
        run "$kind" "$log"
        status=$?
        ((status == 0)) || break
    done
    git -C "$tree" apply --reverse "$patch"
    case $status in
        0) echo "SURVIVED" ;;
        1) echo "caught by" $(failed_tests "$log") ;;
        2) echo "DOES NOT BUILD" ;;
    esac
}

# verdict NAME OUTCOME: empty if all is well.
verdict() {
    local missing
    [[ $2 == "caught by "* ]] || { echo "$2"; return; }
    [[ -n $(named "$1") ]] || { echo "NOT IN docs/pgtable.md"; return; }
    missing=$(comm -23 <(named "$1") <(printf '%s\n' ${2#caught by } | sort -u))
    [[ -z $missing ]] || echo "NOT CAUGHT BY" $missing
}

[[ ${1-} == --again ]] && { rm -rf "$results"; shift; }
names=("$@")
((${#names[@]})) || for patch in scripts/mutants/*.patch; do names+=("$(basename "$patch" .patch)"); done
copy
sources=$(sources)
sound=
bad=0 count=0
for name in "${names[@]}"; do
    count=$((count + 1))
    patch=scripts/mutants/$name.patch result=$results/$name
    [[ -f $patch ]] || { printf 'no such mutant: %s\n' "$name"; bad=$((bad + 1)); continue; }
    key="$sources $(sha256sum <"$patch")"
    # What survived may have met its test since.
    if [[ ! -f $result || $(head -n 1 "$result") != "$key" || $(tail -n 1 "$result") != "caught by "* ]]; then
        if [[ -z $sound ]]; then
            printf 'the tests on the sources as they are\n'
            for kind in "${KINDS[@]}"; do
                run "$kind" "$results/sound.log" || { cat "$results/sound.log"; exit 1; }
            done
            sound=yes
        fi
        outcome=$(try "$name")
        printf '%s\n%s\n' "$key" "$outcome" >"$result"
    fi
    outcome=$(tail -n 1 "$result")
    verdict=$(verdict "$name" "$outcome")
    [[ -z $verdict ]] || bad=$((bad + 1))
    tests=(${outcome#caught by })
    if [[ $outcome == "caught by "* ]]; then
        text="${#tests[@]} tests: ${tests[*]:0:3}"
    else
        text=
    fi
    printf '[%d/%d] %-26s %s%s%s\n' "$count" "${#names[@]}" "$name" "$text" "${verdict:+ ** }" "$verdict"
done
printf '%d mutants, %d not as they must be\n' "$count" "$bad"
((bad == 0))
