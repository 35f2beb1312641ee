#!/usr/bin/env bash
# Runs a part of the tests of the table engine, and of the simulated machine under them, in Miri, which stops at undefined
# behaviour, data races and leaked memory. All of them would take a day: the part is what touches shared memory, locks and
# the pool in different ways, and is done within minutes. Each test is printed when it is done.
#
#     scripts/miri.sh
#
# The exit status is 0 if all passed, 1 if a test failed, 3 if there is no Miri.
set -uo pipefail

scripts=$(cd -- "${BASH_SOURCE[0]%/*}" && pwd)
cd -- "$scripts/.." || exit 1

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    printf 'NOT RUN: there is no Miri. It comes with a nightly compiler:\n    %s\n    %s\n' \
        'rustup toolchain install nightly --profile minimal' 'rustup +nightly component add miri rust-src'
    exit 3
fi

# Property tests read their regressions from files; nothing here makes a pointer of a number.
readonly FLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance"
export CARGO_TARGET_DIR=target/miri

failed=0
# miri ARGUMENTS... -- TESTS...: runs exactly these tests, which must all be there.
miri() {
    local -a arguments=()
    local log=target/miri/last.log
    while [[ $1 != -- ]]; do arguments+=("$1"); shift; done
    shift
    mkdir -p target/miri
    printf '== %s: %d tests\n' "${arguments[*]}" $#
    cargo +nightly miri test --locked "${arguments[@]}" -- --exact "$@" 2>&1 | tee "$log" |
        grep --line-buffered -E '^test |panicked|^error'
    grep -qE "^test result: ok\. $# passed" "$log" || { cat "$log"; failed=1; }
}

export MIRIFLAGS=$FLAGS
miri -p hyp --lib -- \
    pgtable::level::tests::geometry_is_the_architecture_table \
    pgtable::level::tests::vtcr_has_the_values_that_boot \
    pgtable::note::tests::fields_are_where_the_table_says \
    pgtable::note::tests::illegal_words_are_refused_by_name \
    pgtable::publish::tests::one_leaf_is_one_instruction_with_its_level \
    pgtable::publish::tests::too_much_becomes_the_whole_context \
    pgtable::stage1::tests::an_invalid_word_is_absent_or_a_hidden_window
miri -p testkit --lib -- \
    model::tests::a_hole_leaves_both_ends \
    model::tests::neighbours_join_only_if_frames_go_on

# Stacked Borrows looks at the whole checker, a megabyte, each time that a reference to it is passed on: with it the first
# of these tests takes more than all others. Aliasing is a question for unsafe code, and none of ours is in this build.
export MIRIFLAGS="$FLAGS -Zmiri-disable-stacked-borrows"
miri -p hyp --test pgtable -- \
    corrupt::a_table_with_a_bad_root_vmid_or_shape_is_not_made \
    life::cpus_take_turns_at_one_table \
    notes::a_root_entry_may_be_a_note \
    prepare::the_canonical_sequence_of_one_page \
    stage1::the_canonical_sequence_of_a_page_of_el2
miri -p hyp --test checker -- \
    tables::bad_no_bbm
exit "$failed"
