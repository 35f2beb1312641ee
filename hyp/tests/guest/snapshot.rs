//! Snapshots, as a host takes them: scenarios S-nn of docs/snapshot.md.

use crate::calls::{OUT, program};
use crate::rig::{Answer, BITS, PC, Rig, SECRET, TestVm, plain};
use abi::Errno::{Eacces, Ebusy, Einval, Eio, Enoent, Enomem, Eperm, Erange};
use abi::exit::Reason;
use abi::snapshot::{Descriptor, END, Geometry, HOST, Kind, MAGIC, MAX_TABLES, NoTag, Request, VERSION};
use abi::vm::{NO_PAGE, VmFlags};
use abi::{Errno, HostFn, guest};
use hyp::addr::Pfn;
use hyp::fault::Site;
use hyp::pgtable::Access;
use hyp::spec::model::Page;
use std::collections::{BTreeMap, BTreeSet};
use testkit::features;
use testkit::world::Setup;
use zerocopy::{FromBytes, IntoBytes};

/// Sites that snapshots alone pass.
pub(crate) const SITES: [Site; 6] =
    [Site::SnapLock, Site::SnapDesc, Site::SnapPgd, Site::SnapTbl, Site::SnapCount, Site::SnapCopy];

/// Pages for one snapshot, and what their descriptor says.
struct Buffer<'a> {
    rig: &'a Rig,
    desc: u64,
    root: u64,
    roots: u64,
    chain: Vec<u64>,
    request: Request,
}

impl<'a> Buffer<'a> {
    /// Pages for `tables` tables of `target`.
    fn new(rig: &'a Rig, target: u64, tables: u32) -> Self {
        let (_, roots, _) = query(rig, target);
        let chain: Vec<u64> = (0..tables).map(|_| rig.pages(1)).collect();
        let request = Request {
            magic: MAGIC,
            version: VERSION,
            flags: 0,
            pgd_pfn: rig.pages(roots.into()),
            pgd_pages: roots,
            nr_tables: tables,
            head_pfn: chain.first().copied().unwrap_or(END),
            reserved: [0; 4],
        };
        Self { rig, desc: rig.pages(1), root: request.pgd_pfn, roots: roots.into(), chain, request }
    }

    /// The host fills all pages with rubbish, and then with what the call needs.
    fn write(&self) -> &Self {
        let (rig, memory) = (self.rig, self.rig.world.sim.memory());
        for page in self.all() {
            rig.fill(page, SECRET);
        }
        for (n, &page) in self.chain.iter().enumerate() {
            memory.write(page, 0, self.chain.get(n + 1).copied().unwrap_or(END));
        }
        for (word, bytes) in self.request.as_bytes().chunks_exact(8).enumerate() {
            memory.write(self.desc, word, u64::from_le_bytes(bytes.try_into().unwrap()));
        }
        self
    }

    fn take_on(&self, cpu: usize, target: u64, flags: u64) -> Answer {
        self.rig.call_on(cpu, HostFn::S2Snapshot, &[target, self.desc, flags])
    }

    fn take(&self, target: u64, flags: u64) -> Answer {
        self.take_on(0, target, flags)
    }

    fn roots(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.roots).map(|n| self.root + n)
    }

    /// The pages that are taken, in the order in which they are.
    fn all(&self) -> Vec<u64> {
        std::iter::once(self.desc).chain(self.roots()).chain(self.chain.iter().copied()).collect()
    }

    fn words(&self, page: u64) -> Vec<u64> {
        (0..512).map(|n| self.rig.word(page, n)).collect()
    }

    fn answer(&self) -> Descriptor {
        let bytes: Vec<u8> = self.words(self.desc).into_iter().flat_map(u64::to_le_bytes).collect();
        Descriptor::read_from_bytes(&bytes).unwrap()
    }

    /// Everything is the host's again, and nothing is in it but what the descriptor says.
    #[track_caller]
    fn expect_back_and_zero(&self, errno: Errno) {
        for page in self.all() {
            assert!(self.rig.host_reads(page), "page {page:#x} is the host's");
        }
        for page in self.roots().chain(self.chain.iter().copied()) {
            assert!(self.words(page).iter().all(|w| *w == 0), "page {page:#x} is zero");
        }
        let Descriptor { request, outcome, rest } = self.answer();
        assert_eq!(request, self.request);
        assert_eq!(outcome.status.cast_unsigned(), errno.to_reg());
        assert_eq!((outcome.root_pa, outcome.used, outcome.unused, outcome.reserved), (0, 0, 0, 0));
        assert_eq!((outcome.unused_head, rest), (END, [0; 498]));
    }

    /// The pages of the chain that came back as a chain.
    fn unused(&self) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = self.answer().outcome.unused_head;
        while at != END {
            let words = self.words(at);
            assert!(words[1..].iter().all(|w| *w == 0), "an unused page holds its link alone");
            found.push(at);
            at = words[0];
        }
        found
    }

    /// The copied tree: entries that are no tables by input address, and the pages it is made of.
    fn tree(&self) -> (BTreeMap<u64, (u8, u64)>, BTreeSet<u64>) {
        let geometry = Geometry::decode(self.answer().outcome.geometry).unwrap();
        let (mut entries, mut pages) = (BTreeMap::new(), BTreeSet::new());
        let mut todo: Vec<_> = self
            .roots()
            .zip(0..)
            .map(|(page, nth)| (page, geometry.start_level, nth << (48 - 9 * geometry.start_level)))
            .collect();
        while let Some((page, level, at)) = todo.pop() {
            assert!(pages.insert(page), "a page is one table");
            for (word, index) in self.words(page).into_iter().zip(0..) {
                let ia = at + (index << (39 - 9 * u32::from(level)));
                if level < 3 && word & 3 == 3 {
                    assert_eq!(word & !0xffff_ffff_f003, 0, "a table entry is an address");
                    todo.push((word >> 12 & 0xf_ffff_ffff, level + 1, ia));
                } else if word != 0 {
                    entries.insert(ia, (level, word));
                }
            }
        }
        (entries, pages)
    }
}

fn query(rig: &Rig, target: u64) -> (Geometry, u32, u32) {
    let [x2, x3] = rig.call(HostFn::S2SnapshotQuery, &[target]).unwrap();
    let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap();
    (Geometry::decode(x2).unwrap(), low(x3 >> 32), low(x3))
}

/// A machine whose host has touched memory here and there, and pages that are not its own.
fn lived_in(features: hyp::hw::CpuFeatures) -> Rig {
    let rig = Rig::with(Setup { table_pages: 96, ..Setup::new(features) });
    for nth in [5000, 9000, 9001, 12_000] {
        assert!(rig.world.touch(0, rig.world.page(nth), Access::W));
    }
    assert!(rig.world.touch(1, Pfn::new(0x9_0000).unwrap(), Access::R));
    rig.ok(HostFn::HostDonateHyp, &[rig.world.page(9001).raw(), 3]);
    rig
}

/// Tables for the host: what there are now, and what splitting for the buffer may add.
fn plenty(rig: &Rig) -> u32 {
    query(rig, HOST).2 + 12
}

/// A NOTE of type 2.
const fn hyp_note() -> u64 {
    2 << 60 | 1 << 1
}

const fn guest_note(handle: u64, gfn: u64) -> u64 {
    2 << 60 | 2 << 1 | handle << 4 | gfn << 20
}

#[test]
fn s_01_the_hosts_snapshot_says_what_the_specification_says() {
    for (name, features) in features::MATRIX {
        let rig = lived_in(features);
        let vm = TestVm::active(&rig, true, 1);
        let page = vm.give(0x7000);
        let before = rig.state();
        let buffer = Buffer::new(&rig, HOST, plenty(&rig));
        let [used, _] = buffer.write().take(HOST, 0).unwrap();
        assert_eq!(rig.state(), before, "{name}");
        let Descriptor { request, outcome, rest } = buffer.answer();
        let (geometry, roots, _) = query(&rig, HOST);
        assert_eq!((request, rest), (buffer.request, [0; 498]));
        assert_eq!((outcome.status, outcome.root_pa), (0, buffer.root << 12));
        assert_eq!((outcome.geometry, u64::from(outcome.used)), (geometry.encode(), used));
        assert_eq!((outcome.needed, geometry.kind), (outcome.used, Kind::Host));
        assert_eq!(u64::from(outcome.unused), buffer.chain.len() as u64 - used);
        assert_eq!(geometry.fwb, features.fwb);

        let (entries, pages) = buffer.tree();
        assert_eq!(pages.len() as u64, used + u64::from(roots));
        let mine: BTreeSet<u64> = buffer.all().into_iter().collect();
        for run in before.pages.runs() {
            for pfn in run.start..run.end {
                let ipa = pfn << 12;
                let entry = entries.range(..=ipa).next_back();
                let entry = entry.filter(|(ia, (level, _))| ipa < *ia + (1 << (39 - 9 * u32::from(*level))));
                let note = match run.value {
                    _ if mine.contains(&pfn) => Some(hyp_note()),
                    Page::Guest { handle } => {
                        Some(guest_note(handle.into(), if pfn == page { 7 } else { 0 }))
                    }
                    Page::Lent | Page::Hyp | Page::Vm => Some(hyp_note()),
                    _ => None,
                };
                match (note, entry) {
                    (Some(note), entry) => {
                        let word = entry.map(|(_, (_, word))| *word);
                        assert_eq!(word, Some(note), "{name}: {pfn:#x}");
                    }
                    (None, None) => {}
                    (None, Some((ia, (_, word)))) => {
                        let output = (word & 0xffff_ffff_f000) + (ipa - ia);
                        assert_eq!((word & 1, output), (1, ipa), "{name}");
                    }
                }
            }
        }
    }
}

/// The boundary at which the memory behind a list of pages would be overrun.
#[test]
fn s_02_exactly_as_many_tables_as_there_are() {
    let rig = lived_in(features::CORTEX_A72);
    let probe = Buffer::new(&rig, HOST, plenty(&rig));
    let [needed, _] = probe.write().take(HOST, 0).unwrap();
    let before = rig.state();
    // Pages of the same blocks again, so that nothing is split that was not.
    let with = |nr: u64| {
        let mut buffer =
            Buffer { chain: probe.chain[..usize::try_from(nr).unwrap()].to_vec(), ..probe_of(&probe) };
        buffer.request.nr_tables = u32::try_from(nr).unwrap();
        buffer
    };
    let exact = with(needed);
    assert_eq!(exact.write().take(HOST, 0), Ok([needed, 0]));
    let outcome = exact.answer().outcome;
    assert_eq!((u64::from(outcome.used), outcome.unused, outcome.unused_head), (needed, 0, END));
    assert_eq!(exact.tree().1.len() as u64, needed + 1);

    let short = with(needed - 1);
    assert_eq!(short.write().take(HOST, 0), Err((Enomem, [needed, 0])));
    short.expect_back_and_zero(Enomem);
    assert_eq!(u64::from(short.answer().outcome.needed), needed);

    let long = with(needed + 5);
    assert_eq!(long.write().take(HOST, 0), Ok([needed, 0]));
    assert_eq!(long.answer().outcome.unused, 5);
    let (unused, used) = (long.unused(), long.tree().1);
    assert_eq!(unused.len(), 5);
    assert!(unused.iter().all(|page| long.chain.contains(page) && !used.contains(page)));

    assert_eq!(long.write().take(HOST, 1), Ok([needed, 0]));
    let outcome = long.answer().outcome;
    assert_eq!((outcome.unused, outcome.unused_head), (5, END));
    let used = long.tree().1;
    for page in long.chain.iter().filter(|page| !used.contains(page)) {
        assert!(long.words(*page).iter().all(|w| *w == 0));
    }
    assert_eq!(rig.state(), before);
}

fn probe_of<'a>(probe: &Buffer<'a>) -> Buffer<'a> {
    Buffer {
        rig: probe.rig,
        desc: probe.desc,
        root: probe.root,
        roots: probe.roots,
        chain: Vec::new(),
        request: probe.request,
    }
}

#[test]
fn s_03_a_table_that_is_a_root_alone_needs_no_chain() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 0);
    assert_eq!(query(&rig, vm.handle).2, 0);
    let buffer = Buffer::new(&rig, vm.handle, 0);
    assert_eq!(buffer.write().take(vm.handle, 0), Ok([0, 0]));
    assert!(buffer.tree().0.is_empty());
    vm.give(0x5000);
    let tables = query(&rig, vm.handle).2.into();
    assert_eq!(buffer.write().take(vm.handle, 0), Err((Enomem, [tables, 0])));
    buffer.expect_back_and_zero(Enomem);
}

#[test]
fn s_04_s_05_a_step_that_fails_gives_every_page_back_at_each_of_its_hits() {
    for target_is_host in [true, false] {
        let rig = lived_in(features::CORTEX_A53);
        let vm = TestVm::active(&rig, false, 1);
        vm.give(0x5000);
        vm.give(0x4000_0000);
        let target = if target_is_host { HOST } else { vm.handle };
        let tables = if target_is_host { plenty(&rig) } else { 8 };
        let buffer = Buffer::new(&rig, target, tables);
        let first = buffer.write().take(target, 0).unwrap();
        let before = rig.state();
        let owners: Vec<_> = rig.audit().ownership().collect();
        let faults = rig.world.hyp.faults();
        for site in SITES.into_iter().chain([Site::DonateCheck, Site::HostPrepare]) {
            faults.clear();
            buffer.write().take(target, 0).unwrap();
            let hits = faults.stats(site).hits;
            assert!(hits > 0, "{site:?} is not reached");
            for nth in 1..=hits {
                buffer.write();
                faults.clear();
                faults.arm(site, nth);
                let (errno, [needed, index]) = buffer.take(target, 0).unwrap_err();
                assert_eq!(faults.stats(site).fired, 1);
                assert_eq!(errno, site.errno(), "{site:?} {nth}");
                let roots = u64::from(buffer.request.pgd_pages);
                let wanted = match site {
                    Site::SnapLock | Site::SnapDesc | Site::SnapCount | Site::SnapCopy => 0,
                    Site::SnapPgd => nth,
                    Site::SnapTbl => roots + nth,
                    _ => nth - 1,
                };
                assert_eq!(index, wanted, "{site:?} {nth}");
                assert_eq!(needed, if site == Site::SnapCount { first[0] } else { 0 });
                let untouched = matches!(site, Site::SnapLock | Site::SnapDesc)
                    || nth == 1 && matches!(site, Site::DonateCheck | Site::HostPrepare);
                if untouched {
                    assert_eq!(buffer.words(buffer.chain[0])[1], SECRET, "nothing was taken");
                } else {
                    expect_back(&buffer, errno, index);
                }
                assert_eq!(rig.state(), before, "{site:?} {nth}");
                assert_eq!(rig.audit().ownership().collect::<Vec<_>>(), owners, "{site:?} {nth}");
            }
        }
        faults.clear();
        assert_eq!(buffer.write().take(target, 0), Ok(first), "and then it works as before");
    }
}

/// The descriptor is in the middle of what the host has as one block, and the pool has no table left.
#[test]
fn s_15_without_a_table_to_split_a_block_with_nothing_is_taken() {
    let rig = lived_in(features::CORTEX_A72);
    let faults = rig.world.hyp.faults();
    let before = rig.state();
    let mut dry = 0;
    for nth in 1.. {
        // A block that nothing has split yet.
        let block = rig.pages(1024).next_multiple_of(512);
        let desc = block + 100;
        assert!(rig.world.touch(0, Pfn::new(desc).unwrap(), Access::W));
        rig.fill(desc, SECRET);
        faults.clear();
        faults.arm(Site::HostPoolAlloc, nth);
        let answer = rig.call(HostFn::S2Snapshot, &[HOST, desc, 0]);
        let fired = faults.stats(Site::HostPoolAlloc).fired;
        assert_eq!(rig.state(), before);
        assert!(rig.host_reads(desc));
        if fired == 0 {
            assert_eq!(answer, Err((Einval, [0, 0])), "what is in it is no request");
            break;
        }
        assert_eq!(answer, Err((Enomem, [0, 0])), "no table number {nth}");
        assert_eq!(rig.word(desc, 511), SECRET);
        dry += 1;
    }
    assert!(dry > 0, "no block was split");
}

/// As [`Buffer::expect_back_and_zero`], but pages from `index` on (0: none) were never taken.
#[track_caller]
fn expect_back(buffer: &Buffer<'_>, errno: Errno, index: u64) {
    let all = buffer.all();
    let taken = if index == 0 { all.len() } else { usize::try_from(index).unwrap() };
    for (n, page) in all.iter().enumerate() {
        assert!(buffer.rig.host_reads(*page));
        let words = buffer.words(*page);
        match n {
            0 => assert_eq!(words[8], errno.to_reg()),
            _ if n < taken => assert!(words.iter().all(|w| *w == 0), "page {n} is zero"),
            _ => assert_eq!(words[1], SECRET, "page {n} was never taken"),
        }
    }
}

#[test]
fn s_07_a_malformed_descriptor_takes_no_other_page() {
    let rig = lived_in(features::CORTEX_A53);
    let mut buffer = Buffer::new(&rig, HOST, 4);
    let good = buffer.request;
    let roots = good.pgd_pages;
    assert_eq!(roots, 2, "a concatenated root");
    let before = rig.state();
    for (bad, errno, x2, x3) in [
        (Request { magic: 0, ..good }, Einval, 0, 0),
        (Request { version: 2, ..good }, Einval, 0, 0),
        (Request { flags: 1, ..good }, Einval, 0, 0),
        (Request { reserved: [0, 0, 0, 1], ..good }, Einval, 0, 0),
        (Request { nr_tables: MAX_TABLES + 1, ..good }, Einval, 0, 0),
        (Request { nr_tables: 0, ..good }, Einval, 0, 0),
        (Request { head_pfn: END, ..good }, Einval, 0, 0),
        (Request { pgd_pages: 0, ..good }, Einval, 2, 0),
        (Request { pgd_pages: 1, ..good }, Einval, 2, 0),
        (Request { pgd_pages: u32::MAX, ..good }, Einval, 2, 0),
        (Request { pgd_pfn: good.pgd_pfn + 1, ..good }, Einval, 0, 1),
        (Request { pgd_pfn: u64::MAX - 1, ..good }, Einval, 0, 1),
        (Request { pgd_pfn: 1 << 52, ..good }, Erange, 0, 1),
        (Request { pgd_pfn: 0x10_0000, ..good }, Erange, 0, 1),
    ] {
        buffer.request = bad;
        let chain = buffer.chain.clone();
        assert_eq!(buffer.write().take(HOST, 0), Err((errno, [x2, x3])), "{bad:x?}");
        for page in chain.into_iter().chain([buffer.root, buffer.root + 1]) {
            assert_eq!(rig.word(page, 511), SECRET, "nothing but the descriptor was taken");
        }
        let answer = buffer.answer();
        assert_eq!((answer.request, answer.outcome.status.cast_unsigned()), (bad, errno.to_reg()));
        assert_eq!(rig.state(), before);
    }
}

#[test]
fn s_08_pages_that_are_not_the_hosts_alone_stay_where_they_are() {
    let rig = lived_in(features::MAX);
    let vm = TestVm::active(&rig, true, 1);
    let guests = vm.give(0x9000);
    let plain = TestVm::active(&rig, false, 0);
    let lent_to_guest = plain.give(0x9000);
    let base = rig.world.page(0).raw();
    let table = rig.world.hyp.host(&rig.world.cpus[0]).table().root().raw();
    let victims = [
        (base + 1, Eperm),
        (base + 16, Eperm),
        (table, Eperm),
        (rig.world.page(9001).raw(), Eperm),
        (guests, Eperm),
        (vm.record(0), Eperm),
        (lent_to_guest, Eperm),
        (0x9000, Erange),
        (0x10_0000, Erange),
        (hyp::addr::PFN_LIMIT, Erange),
    ];
    let before = rig.state();
    let sum = |page: u64| -> u64 {
        let inside = page >= base && page < base + rig.world.sim.memory().pages();
        if inside { (0..512).fold(0, |sum: u64, n| sum.rotate_left(1) ^ rig.word(page, n)) } else { 0 }
    };
    for (victim, errno) in victims {
        let contents = sum(victim);
        let buffer = Buffer::new(&rig, HOST, 4);
        let args = [HOST, victim, 0];
        assert_eq!(rig.call(HostFn::S2Snapshot, &args), Err((errno, [0, 0])), "descriptor {victim:#x}");
        let as_root = Buffer { request: Request { pgd_pfn: victim, ..buffer.request }, ..probe_of(&buffer) };
        let as_root = Buffer { chain: buffer.chain.clone(), ..as_root };
        let memory = rig.world.sim.memory();
        as_root.write();
        assert_eq!(as_root.take(HOST, 0), Err((errno, [0, 1])), "root {victim:#x}");
        // Head, middle and last of the chain.
        for place in 0..4_usize {
            buffer.write();
            match place {
                0 => memory.write(buffer.desc, 3, victim),
                _ => memory.write(buffer.chain[place - 1], 0, victim),
            }
            let index = 1 + u64::from(buffer.request.pgd_pages) + place as u64;
            assert_eq!(buffer.take(HOST, 0), Err((errno, [0, index])), "{victim:#x} at {place}");
        }
        assert_eq!(sum(victim), contents, "{victim:#x} is as it was");
        assert_eq!(rig.state(), before, "{victim:#x}");
    }
}

#[test]
fn s_08_a_page_that_is_named_twice_is_taken_once() {
    let rig = lived_in(features::CORTEX_A72);
    let buffer = Buffer::new(&rig, HOST, 4);
    let before = rig.state();
    let memory = rig.world.sim.memory();
    for twice in [buffer.desc, buffer.root, buffer.chain[0], buffer.chain[1], buffer.chain[2]] {
        buffer.write();
        memory.write(buffer.chain[2], 0, twice);
        assert_eq!(buffer.take(HOST, 0), Err((Eperm, [0, 5])), "a cycle to {twice:#x}");
        assert_eq!(rig.state(), before);
    }
    buffer.write();
    memory.write(buffer.desc, 1, buffer.desc);
    assert_eq!(buffer.take(HOST, 0), Err((Eperm, [0, 1])));
    // The chain ends too early, and too late.
    buffer.write();
    memory.write(buffer.chain[1], 0, END);
    assert_eq!(buffer.take(HOST, 0), Err((Einval, [0, 3])));
    buffer.write();
    memory.write(buffer.chain[3], 0, buffer.desc);
    assert_eq!(buffer.take(HOST, 0), Err((Einval, [0, 5])));
    buffer.expect_back_and_zero(Einval);
    assert_eq!(rig.state(), before);
}

#[test]
fn s_13_a_snapshot_shows_its_own_pages_as_el2s_and_the_next_one_does_not() {
    let rig = lived_in(features::MAX);
    let (first, second) = (Buffer::new(&rig, HOST, 24), Buffer::new(&rig, HOST, 24));
    second.write();
    first.write().take(HOST, 0).unwrap();
    let (entries, _) = first.tree();
    for page in first.all() {
        assert_eq!(entries.get(&(page << 12)), Some(&(3, hyp_note())));
    }
    second.take(HOST, 0).unwrap();
    let (entries, _) = second.tree();
    for page in first.all() {
        assert_eq!(entries.get(&(page << 12)).map(|(_, word)| word & 1), Some(1));
    }
    for page in second.all() {
        assert_eq!(entries.get(&(page << 12)), Some(&(3, hyp_note())));
    }
}

#[test]
fn s_14_the_rest_of_a_split_block_stays_the_hosts() {
    let rig = lived_in(features::CORTEX_A72);
    let block = rig.pages(512);
    for page in block..block + 512 {
        rig.fill(page, page);
    }
    let buffer = Buffer::new(&rig, HOST, 16);
    let moved = Buffer {
        desc: block + 7,
        root: block + 100,
        roots: buffer.roots,
        chain: (0..16).map(|n| block + 200 + 17 * n).collect(),
        request: Request { pgd_pfn: block + 100, head_pfn: block + 200, ..buffer.request },
        rig: &rig,
    };
    moved.write().take(HOST, 0).unwrap();
    let mine = moved.all();
    for page in (block..block + 512).filter(|page| !mine.contains(page)) {
        assert!(rig.host_reads(page));
        assert_eq!(rig.word(page, 3), page);
    }
}

#[test]
fn s_17_a_guests_table_is_copied_word_by_word_but_for_access_flags() {
    for (name, features) in features::MATRIX {
        let rig = Rig::on(features);
        let vm = TestVm::active(&rig, false, 1);
        for ipa in [0x5000, 0x6000, 0x4000_0000, 0x8020_0000] {
            vm.give(ipa);
        }
        rig.ok(HostFn::GuestAge, &[vm.handle, 5, 1, 1]);
        let tables = query(&rig, vm.handle).2;
        let buffer = Buffer::new(&rig, vm.handle, tables + 2);
        let before = rig.state();
        assert_eq!(buffer.write().take(vm.handle, 0), Ok([tables.into(), 0]), "{name}");
        assert_eq!(rig.state(), before, "{name}");
        assert_eq!(
            rig.call(HostFn::GuestAge, &[vm.handle, 5, 2, 0]).unwrap()[1],
            1,
            "the table is untouched"
        );
        let (entries, pages) = buffer.tree();
        assert_eq!(pages.len() as u64, u64::from(tables) + 1, "{name}");
        let outputs: Vec<(u64, u64)> =
            entries.iter().map(|(ia, (_, word))| (ia >> 12, word >> 12 & 0xf_ffff_ffff)).collect();
        assert_eq!(outputs, *vm.pages.borrow(), "{name}");
        for (level, word) in entries.values() {
            assert_eq!((*level, word & 3, word >> 10 & 1, word >> 55 & 3), (3, 3, 1, 2), "{name}");
        }
        let geometry = Geometry::decode(buffer.answer().outcome.geometry).unwrap();
        assert_eq!((geometry.kind, u64::from(geometry.ia_bits)), (Kind::NonProtected, BITS));
    }
}

/// Where the only VM's entry for the page `ipa` stands: its table, and the index in it.
fn place_of(rig: &Rig, handle: u64, ipa: u64) -> (u64, usize) {
    let index = |level: u8| usize::try_from(ipa >> (39 - 9 * level) & 511).unwrap();
    let mut table = 0;
    rig.vms.for_each(&rig.world.cpus[0], |_, guest| table = guest.table().root().raw());
    for level in query(rig, handle).0.start_level..3 {
        table = rig.word(table, index(level)) >> 12 & 0xf_ffff_ffff;
    }
    (table, index(3))
}

/// The VMs there are use no tags: NO_TAG is a software bit of theirs, and no note. No call sets it yet,
/// so the test does; what CPUs with tags make of it is in `hyp/tests/pgtable/copy.rs`.
#[test]
fn s_17_no_tag_is_copied_where_it_may_stand() {
    const NO_TAG: u64 = 1 << 57;
    for flags in [VmFlags::PROTECTED | VmFlags::DEBUGGABLE, VmFlags::empty()] {
        let rig = Rig::new();
        let vm = TestVm::with_flags(&rig, flags, 0, BITS);
        vm.topup(8);
        rig.ok(HostFn::VmFinalise, &[vm.handle]);
        let pages = [vm.give(0x5000), vm.give(0x6000)];
        let (table, index) = place_of(&rig, vm.handle, 0x5000);
        let (memory, plain) = (rig.world.sim.memory(), rig.word(table, index));
        assert_eq!(plain >> 12 & 0xf_ffff_ffff, pages[0], "this is the page's entry");
        memory.write(table, index, plain | NO_TAG);
        let (geometry, _, tables) = query(&rig, vm.handle);
        assert_eq!(geometry.no_tag, NoTag::Software);
        let buffer = Buffer::new(&rig, vm.handle, tables);
        assert_eq!(buffer.write().take(vm.handle, 0), Ok([tables.into(), 0]));
        let (entries, _) = buffer.tree();
        let no_tag: Vec<(u64, bool)> =
            entries.iter().map(|(ia, (_, word))| (*ia, word & NO_TAG != 0)).collect();
        assert_eq!(no_tag, [(0x5000, true), (0x6000, false)], "{flags:?}");
        assert_eq!(entries[&0x5000].1 & !NO_TAG, plain);
        memory.write(table, index, plain);
    }
}

/// docs/mmio-guard.md has the scenario.
#[test]
fn g_23_a_snapshot_shows_marks_as_they_are() {
    const MARK: u64 = 4 << 60;
    for flags in [VmFlags::PROTECTED | VmFlags::DEBUGGABLE, VmFlags::empty()] {
        let rig = Rig::new();
        let vm = TestVm::with_flags(&rig, flags, 1, BITS);
        vm.topup(8);
        rig.ok(HostFn::VmFinalise, &[vm.handle]);
        vm.give(OUT);
        rig.world.sim.program(
            PC,
            &program(&[
                (guest::GUARD_ENROLL.into(), [0; 3]),
                (guest::GUARD_MAP.into(), [0x0900_0000, 0, 0]),
                (guest::RGUARD_MAP.into(), [0x8000_0000, 2, 0]),
            ]),
        );
        vm.load(0, 0);
        assert_eq!(vm.run(), plain(Reason::Wfx));
        let tables = query(&rig, vm.handle).2;
        let buffer = Buffer::new(&rig, vm.handle, tables);
        assert_eq!(buffer.write().take(vm.handle, 0), Ok([tables.into(), 0]));
        let (entries, _) = buffer.tree();
        let marks = entries.iter().filter(|(ia, _)| **ia != OUT).map(|(ia, entry)| (*ia, *entry));
        let want = [0x0900_0000, 0x8000_0000, 0x8000_1000].map(|ia| (ia, (3, MARK)));
        assert_eq!(marks.collect::<Vec<_>>(), want, "{flags:?}");
    }
}

#[test]
fn s_17_only_vms_that_allow_it_are_shown() {
    let rig = Rig::new();
    let buffer = Buffer::new(&rig, HOST, 4);
    let protected = TestVm::active(&rig, true, 0);
    let refused = |handle: u64, errno: Errno| {
        rig.refused(HostFn::S2SnapshotQuery, &[handle], errno);
        buffer.write();
        assert_eq!(buffer.take(handle, 0), Err((errno, [0, 0])));
        assert_eq!(buffer.words(buffer.desc)[511], SECRET, "the descriptor was not touched");
    };
    refused(protected.handle, Eacces);
    let flags = (VmFlags::PROTECTED | VmFlags::DEBUGGABLE).bits();
    let args = [flags, BITS, rig.pages(1), 1, rig.pages(1), 1, rig.pages(1)];
    let debuggable = rig.ok(HostFn::VmCreate, &args);
    assert_eq!(query(&rig, debuggable).0.kind, Kind::Protected);
    let realm = VmFlags::PROTECTED | VmFlags::SPLIT_IPA | VmFlags::DEBUGGABLE;
    assert_eq!(query(&rig, TestVm::with_flags(&rig, realm, 0, BITS).handle).0.kind, Kind::Split);
    let plain = TestVm::active(&rig, false, 0);
    let handle = plain.handle;
    rig.ok(HostFn::VmTeardownStart, &[handle]);
    refused(handle, Ebusy);
    rig.call(HostFn::VmTeardownFinish, &[handle, 512]).unwrap_err();
    while rig.call(HostFn::VmTeardownFinish, &[handle, 512]).is_err() {}
    for gone in [handle, 255, 0x10000, NO_PAGE] {
        refused(gone, Enoent);
    }
}

#[test]
fn s_17_a_corrupt_table_is_told_and_its_vm_lives_on() {
    let rig = Rig::new();
    let vm = TestVm::active(&rig, false, 0);
    vm.give(0x5000);
    let root = {
        let mut root = 0;
        rig.vms.for_each(&rig.world.cpus[0], |_, guest| root = guest.table().root().raw());
        root
    };
    let word = rig.word(root, 0);
    let buffer = Buffer::new(&rig, vm.handle, 4);
    buffer.write();
    rig.world.sim.memory().write(root, 0, word | 1 << 59);
    assert_eq!(buffer.take(vm.handle, 0), Err((Eio, [0, 0])));
    rig.refused(HostFn::S2SnapshotQuery, &[vm.handle], Eio);
    rig.world.sim.memory().write(root, 0, word);
    buffer.expect_back_and_zero(Eio);
    vm.give(0x6000);
}

#[test]
fn s_19_unknown_flags_and_addresses_are_refused_first() {
    let rig = Rig::new();
    let buffer = Buffer::new(&rig, HOST, 4);
    buffer.write();
    for flags in [2, 1 << 63, u64::MAX] {
        assert_eq!(buffer.take(77, flags), Err((Einval, [0, 0])));
    }
    rig.refused(HostFn::S2Snapshot, &[77, hyp::addr::PFN_LIMIT, 0], Erange);
    assert_eq!(buffer.words(buffer.desc)[511], SECRET);
}

#[test]
fn s_21_a_concatenated_root_is_copied_whole() {
    let rig = Rig::on(features::CORTEX_A53);
    for nth in (200..16_000).step_by(1900) {
        assert!(rig.world.touch(0, rig.world.page(nth), Access::W));
    }
    let reserve = rig.pages(1);
    let args = [1, 40, rig.pages(1), 1, rig.pages(2), 2, reserve];
    rig.ok(HostFn::VmCreate, &args);
    let (geometry, roots, _) = query(&rig, HOST);
    assert_eq!((geometry.ia_bits, geometry.start_level, roots), (40, 1, 2));
    let plain = rig.ok(HostFn::VmCreate, &[0, 40, rig.pages(1), 1, rig.pages(2), 2, NO_PAGE]);
    let chain: Vec<u64> = (0..8).map(|_| rig.pages(1)).collect();
    for (n, page) in chain.iter().enumerate() {
        rig.fill(*page, 0);
        rig.world.sim.memory().write(*page, 0, chain.get(n + 1).copied().unwrap_or(NO_PAGE));
    }
    rig.ok(HostFn::VmTopup, &[plain, chain[0], 8]);
    // One page below the first root page's reach, one behind it.
    for gfn in [3, (1 << 27) + 5] {
        rig.ok(HostFn::GuestShare, &[plain, gfn, rig.filled(SECRET), 0, 7]);
    }
    let buffer = Buffer::new(&rig, plain, 4);
    assert_eq!(buffer.root % 2, 0);
    assert_eq!(buffer.write().take(plain, 0), Ok([4, 0]));
    let frames: Vec<u64> = buffer.tree().0.keys().map(|ia| ia >> 12).collect();
    assert_eq!(frames, [3, (1 << 27) + 5]);
    let odd = Buffer { request: Request { pgd_pfn: buffer.root + 1, ..buffer.request }, ..buffer };
    assert_eq!(odd.write().take(plain, 0), Err((Einval, [0, 1])));
}

/// What came back is memory like any other: nothing reads it as a table.
#[test]
fn s_22_the_host_may_do_with_a_copy_what_it_likes() {
    let rig = lived_in(features::MAX);
    let buffer = Buffer::new(&rig, HOST, 24);
    buffer.write().take(HOST, 0).unwrap();
    let before = rig.state();
    for page in buffer.all() {
        assert!(!rig.world.sim.remembers_table(page), "no CPU took it for a table");
        rig.fill(page, u64::MAX);
    }
    assert_eq!(rig.state(), before);
    rig.ok(HostFn::HostDonateHyp, &[buffer.root, 1]);
}
