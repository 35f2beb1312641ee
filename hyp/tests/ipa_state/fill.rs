//! Frames become RAM: at the host's word, and at the guest's.

use crate::rig::{BLOCK, GIB, OTHER, PAGES, Rig, VM};
use abi::Errno::{Eacces, Ebusy, Ehwpoison, Einval, Enomem, Erange};
use hyp::fault::Site;
use hyp::ipa_state::{Run, State};
use hyp::pgtable::{Level, Note, Ripas};
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Phase, Slot};
use testkit::features::{CORTEX_A72, MATRIX};

const RAM: Note = Note::Ripas(Ripas::Ram);

#[test]
fn r_01_a_gib_is_one_note_and_a_missing_table_is_counted() {
    // The root is at level 1: nothing is needed.
    let rig = Rig::new(0);
    assert_eq!(rig.init(0, GIB), Ok(GIB));
    assert_eq!(rig.note(GIB - 4096), Some((Level::L1, RAM)));
    // The root is at level 0, which has no notes.
    let rig = Rig::with(CORTEX_A72, 44, 0);
    let before = rig.judged.state();
    let range = hyp::addr::IpaRange::new(0, GIB, 44).unwrap();
    let cpu = &rig.judged.world.cpus[0];
    let init = || rig.judged.world.hyp.host_init_ripas(cpu, rig.judged.guest(1), range);
    assert_eq!(init(), Err(hyp::Error::NoTables(1)));
    assert_eq!(rig.judged.state(), before);
    rig.topup(1);
    assert_eq!(init(), Ok(GIB));
    assert_eq!((rig.note(0), rig.note(GIB)), (Some((Level::L1, RAM)), None));
    assert_eq!(rig.cached(), 0);
}

#[test]
fn r_02_an_unaligned_mix_is_tiled_exactly() {
    for (name, features) in MATRIX {
        let rig = Rig::with(features, 33, 8);
        let (base, top) = (4096, GIB + BLOCK + 4096);
        let mut at = base;
        while at < top {
            at = rig.init(at, top).unwrap();
        }
        for (ipa, state) in [
            (0, State::Empty),
            (4096, State::Ram),
            (BLOCK - 4096, State::Ram),
            (BLOCK, State::Ram),
            (GIB - 4096, State::Ram),
            (GIB, State::Ram),
            (GIB + BLOCK, State::Ram),
            (top - 4096, State::Ram),
            (top, State::Empty),
            (2 * GIB - 4096, State::Empty),
        ] {
            assert_eq!(rig.state(ipa), state, "{name}: {ipa:#x}");
        }
        assert_eq!(rig.note(BLOCK), Some((Level::L2, RAM)), "{name}");
        assert_eq!(rig.note(BLOCK - 4096), Some((Level::L3, RAM)), "{name}");
    }
}

#[test]
fn r_03_malformed_ranges_are_refused_and_nothing_changes() {
    let rig = Rig::new(4);
    let before = rig.judged.state();
    for (base, top, errno) in [
        (0, 0, Einval),
        (8192, 4096, Einval),
        (1, 4096, Einval),
        (0, 4097, Einval),
        (0, 3 * GIB, Erange),
        (2 * GIB, 2 * GIB + 4096, Erange),
        (0, 5 * GIB, Erange),
        (0, 1 << 49, Erange),
        (!0xfff, 4096, Einval),
    ] {
        assert_eq!(rig.init(base, top), Err(errno), "{base:#x} {top:#x}");
        assert_eq!(rig.judged.state(), before);
    }
    assert_eq!(rig.call(Call::HostInitRipas { handle: 9, base: 0, top: 4096 }), Err(abi::Errno::Enoent));
}

#[test]
fn r_04_ram_is_said_only_before_the_vm_runs() {
    let rig = Rig::new(4);
    for phase in [Phase::Finalising, Phase::Active, Phase::Dying] {
        rig.judged.enter(1, phase);
        assert_eq!(rig.init(0, BLOCK), Err(Ebusy), "{phase:?}");
    }
    rig.judged.enter(1, Phase::New);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
}

#[test]
fn r_05_each_table_that_cannot_be_had_ends_the_call_with_exact_progress() {
    // Three levels of tables on the way, both ends ragged.
    let (base, top) = (BLOCK - 2 * 4096, GIB + 3 * 4096);
    let mut nth = 1;
    loop {
        let rig = Rig::with(CORTEX_A72, 44, 12);
        let faults = rig.judged.world.hyp.faults();
        let (mut at, mut failed, mut refused) = (base, false, false);
        faults.clear();
        faults.arm(Site::PtCachePop, nth);
        while at < top {
            let before = rig.cached();
            match rig.init(at, top) {
                Ok(end) => {
                    assert!(end > at, "progress");
                    assert_eq!(rig.run(at, end, u64::MAX).state, State::Ram);
                    if end < top && !failed {
                        assert_eq!(rig.state(end), State::Empty, "the first that is not done");
                    }
                    at = end;
                }
                Err(e) => {
                    assert_eq!((e, refused), (Enomem, false));
                    assert_eq!(rig.state(at), State::Empty);
                    assert_eq!(rig.cached(), before, "no table is left behind");
                    refused = true;
                }
            }
            failed |= faults.stats(Site::PtCachePop).fired > 0;
        }
        assert_eq!(rig.state(base - 4096), State::Empty);
        assert_eq!(rig.state(top), State::Empty);
        let mut end = base;
        while end < top {
            let run = rig.run(end, top, 4096);
            assert_eq!(run.state, State::Ram);
            end = run.end;
        }
        if !failed {
            assert!(nth > 4, "there were {} tables", nth - 1);
            break;
        }
        nth += 1;
    }
}

#[test]
fn progress_is_exact_when_the_store_runs_dry() {
    // Tables of level 2 and of level 3 for the head; none for the tail.
    let rig = Rig::new(2);
    let (base, top) = (BLOCK - 4096, 2 * BLOCK + 4096);
    assert_eq!(rig.init(base, top), Ok(2 * BLOCK));
    assert_eq!(rig.init(2 * BLOCK, top), Err(Enomem));
    assert_eq!(rig.state(2 * BLOCK), State::Empty);
    rig.topup(1);
    assert_eq!(rig.init(2 * BLOCK, top), Ok(top));
}

#[test]
fn a_call_writes_512_entries_and_looks_at_4096() {
    let rig = Rig::new(12);
    // A block of pages behind one page: 1 + 511 entries are written, and no more.
    assert_eq!(rig.init(4096, 2 * BLOCK - 4096), Ok(BLOCK + 4096));
    // Every other page: entries that need nothing are looked at.
    let rig = Rig::new(12);
    for page in (0..300).step_by(2) {
        assert_eq!(rig.init(page * 4096, (page + 1) * 4096), Ok((page + 1) * 4096));
    }
    assert_eq!(rig.init(0, 2 * BLOCK), Ok(2 * BLOCK));
    assert_eq!(rig.note(0), Some((Level::L2, RAM)), "and what says one thing is one entry again");
}

#[test]
fn what_is_ram_stays_and_what_is_destroyed_ends_the_call() {
    let rig = Rig::new(6);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
    assert_eq!(rig.donate(4096, PAGES, 0), Ok(0));
    assert_eq!(rig.donate(8192, PAGES + 1, 0), Ok(0));
    rig.store(8192, 77);
    assert_eq!(rig.reclaim(4096, 8192, NONE), Ok([8192, NONE]));
    assert_eq!(rig.init(0, BLOCK), Ok(4096), "up to the page that was taken");
    assert_eq!(rig.init(4096, BLOCK), Err(Ehwpoison));
    assert_eq!(rig.init(8192, 2 * BLOCK), Ok(2 * BLOCK));
    assert_eq!(rig.load(8192), Some(77), "an assigned page is as it was");
}

#[test]
fn r_16_a_destroyed_page_is_ram_again_only_where_the_guest_said_so() {
    let rig = Rig::new(6);
    assert_eq!(rig.init(0, BLOCK), Ok(BLOCK));
    assert_eq!(rig.donate(4096, PAGES, 0), Ok(0));
    rig.store(4096, 77);
    assert_eq!(rig.reclaim(4096, 8192, NONE), Ok([8192, NONE]));
    rig.activate();
    assert_eq!(rig.state(4096), State::Destroyed);
    assert_eq!(rig.donate(4096, PAGES, 0), Err(Ehwpoison), "not by the host alone");
    assert_eq!(rig.ram(0, BLOCK, 0), Ok(4096), "progress ends there, and no more is made");
    assert_eq!(rig.ram(4096, BLOCK, 0), Ok(4096));
    assert_eq!(rig.ram(4096, BLOCK, 1), Ok(BLOCK));
    assert_eq!(rig.slot(4096), Some(Slot::Ram));
    rig.fill(PAGES);
    assert_eq!(rig.donate(4096, PAGES, 0), Ok(0));
    assert_eq!(rig.load(4096), Some(0), "a fresh page");
}

#[test]
fn r_17_a_guest_that_asks_for_sparse_pages_uses_up_what_the_host_gave_and_nothing_else() {
    let rig = Rig::new(6);
    rig.activate();
    let pools = |census: hyp::mem_protect::Census| {
        [abi::inspect::Figure::HypPool, abi::inspect::Figure::HypLent].map(|figure| census.get(figure))
    };
    let before = pools(rig.judged.audit(0));
    let mut sparse = (0..1024).map(|n| n * BLOCK);
    let short = sparse.find(|&ipa| rig.ram(ipa, ipa + 4096, 0).is_err()).unwrap();
    assert_eq!(rig.ram(short, short + 4096, 0), Err(Enomem));
    assert_eq!(rig.cached(), 0);
    assert_eq!(pools(rig.judged.audit(0)), before);
    // Another VM has what it had.
    assert_eq!(rig.call(Call::HostApplyRam { handle: OTHER, base: 0, top: 4096, destroyed: 0 }), Ok(4096));
    let donate = Call::HostDonateGuest { handle: OTHER, gfn: 0, pfn: rig.page(PAGES), order: 0 };
    assert_eq!(rig.call(donate), Ok(0));
}

#[test]
fn a_query_names_one_run_and_looks_at_so_many_entries() {
    let rig = Rig::new(8);
    assert_eq!(rig.init(0, 3 * 4096), Ok(3 * 4096));
    assert_eq!(rig.donate(4096, PAGES, 0), Ok(0));
    let ram = Run { end: 3 * 4096, state: State::Ram };
    assert_eq!(rig.run(0, BLOCK, 512), ram, "with a page or without");
    assert_eq!(rig.run(0, BLOCK, 2), Run { end: 8192, ..ram });
    assert_eq!(rig.run(0, BLOCK, 0), Run { end: 4096, ..ram }, "one at least");
    assert_eq!(rig.run(4096, 8192, 512), Run { end: 8192, ..ram });
    let rest = Run { end: 2 * GIB, state: State::Empty };
    assert_eq!(rig.run(3 * 4096, 2 * GIB, 4096), rest);
}

#[test]
fn other_vms_have_no_such_states() {
    use hyp::spec::model::Kind;
    use testkit::{Judged, Setup, VmSetup};
    let judged = Judged::new(Setup::new(CORTEX_A72))
        .with(&[VmSetup::new(1, Kind::Classic, 700, 2), VmSetup::new(2, Kind::NonProtected, 720, 2)]);
    for handle in [VM, OTHER] {
        let (base, top) = (0, 4096);
        assert_eq!(judged.call(0, Call::HostInitRipas { handle, base, top }), Err(Eacces));
        assert_eq!(judged.call(0, Call::HostApplyRam { handle, base, top, destroyed: 0 }), Err(Eacces));
        assert_eq!(judged.call(0, Call::HostApplyEmpty { handle, base, top, kept: NONE }), Err(Eacces));
    }
}
