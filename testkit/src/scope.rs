//! Small worlds to explore whole: which pages, VMs and frames there are, every call with every
//! argument of that scope, and what must have been answered in the end.

use crate::explore::{Action, Key};
use crate::features::{CORTEX_A72, MAX, NEOVERSE_N2};
use crate::judged::Judged;
use crate::vms::VmSetup;
use crate::world::Setup;
use abi::Errno::{
    self, E2big, Eacces, Ebusy, Eexist, Ehwpoison, Einval, Enoent, Enomem, Eopnotsupp, Eperm, Erange,
};
use abi::vm::MtePolicy;
use hyp::hw::CpuFeatures;
use hyp::spec::model::guest_calls::NONE;
use hyp::spec::model::{Call, Kind, Page, Phase};

/// A small world.
#[derive(Clone, Debug)]
pub struct Scope {
    /// What it is about.
    pub name: &'static str,
    /// The machine.
    pub setup: Setup,
    /// Its VMs.
    pub vms: Vec<VmSetup>,
    /// Everything that is tried in each state.
    pub actions: Vec<Action>,
    /// Pins that a page gets at most: no exploration would end without a bound.
    pub pins: u16,
    /// The errnos that each call must have answered, and no others.
    pub answers: &'static [(&'static str, &'static [Errno])],
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Minutes, with the plain tests.
    Small,
    /// Hours, as a campaign.
    Large,
}

const RAM: u64 = 0x40000;
/// No RAM, EL2's, the last frame there can be, beyond it.
const ODD: [u64; 5] = [RAM - 1, RAM, (1 << 36) - 1, 1 << 36, u64::MAX];
const CLASSIC: u64 = 1;
const PLAIN: u64 = 2;
const SPLIT: u64 = 3;
/// No VM.
const NOBODY: u64 = 9;

impl Scope {
    /// All of them.
    #[must_use]
    pub fn all(size: Size) -> [Self; 7] {
        [
            Self::hyp(size),
            Self::pages(size),
            Self::block(size),
            Self::marks(size),
            Self::halves(size),
            Self::tags(size),
            Self::pending(size),
        ]
    }

    /// The world at its beginning.
    #[must_use]
    pub fn start(&self) -> Judged {
        Judged::new(self.setup.clone()).with(&self.vms)
    }

    /// True for a call that leads out of the scope.
    pub(crate) fn is_beyond(&self, key: &Key, call: Call) -> bool {
        match call {
            Call::HypPin { pfn } => {
                matches!(key.page(pfn), Some(Page::SharedWithHyp { pins }) if pins >= self.pins)
            }
            _ => false,
        }
    }

    /// Between the host and EL2: two neighbours in one block, a page in another one, a hole.
    #[must_use]
    pub fn hyp(size: Size) -> Self {
        let hole = RAM + 1900;
        let pages = match size {
            Size::Small => vec![RAM + 512, RAM + 513, RAM + 1024],
            Size::Large => vec![RAM + 512, RAM + 513, RAM + 1023, RAM + 1024],
        };
        let mut actions = Actions::default();
        let odd = ODD.into_iter().chain([hole]);
        for pfn in pages.iter().copied().chain(odd.clone()) {
            actions.host_and_hyp(pfn);
        }
        let lots = [
            (RAM + 512, 2),
            (RAM + 512, 512),
            (RAM + 1023, 2),
            (RAM + 512, 0),
            (RAM + 512, 513),
            (hole - 1, 2),
            ((1 << 36) - 1, 2),
            (u64::MAX, 2),
        ];
        lots.into_iter().for_each(|(pfn, nr)| actions.lend(pfn, nr));
        actions.touch(pages.iter().copied().chain([RAM, RAM + 1536, RAM + 1919]));
        Self {
            name: "host and EL2",
            setup: Setup { pages: 2048, hole: Some((1900, 20)), table_pages: 16, ..Setup::new(CORTEX_A72) },
            vms: Vec::new(),
            actions: actions.0,
            pins: 2,
            answers: &[
                ("host_share_hyp", &[Erange, Eperm]),
                ("host_unshare_hyp", &[Erange, Eperm, Ebusy]),
                ("hyp_pin", &[Erange, Eperm, Enomem]),
                ("hyp_unpin", &[Erange, Eperm]),
                ("host_donate_hyp", &[Einval, E2big, Erange, Eperm, Enomem]),
                ("hyp_donate_host", &[Einval, E2big, Erange, Eperm, Ebusy]),
            ],
        }
    }

    /// Single pages of the host and of two VMs.
    #[must_use]
    pub fn pages(size: Size) -> Self {
        let pages = match size {
            Size::Small => vec![RAM + 1024, RAM + 1025],
            Size::Large => vec![RAM + 1024, RAM + 1025, RAM + 600],
        };
        // Two that need a table each, so that a store runs dry.
        let frames: &[u64] = match size {
            Size::Small => &[0x10, 0x200],
            Size::Large => &[0x10, 0x11, 0x200],
        };
        let mut actions = Actions::default();
        actions.host_and_hyp(pages[0]);
        actions.lend(pages[0], 2);
        for &gfn in frames {
            for &pfn in &pages {
                actions.place(gfn, pfn, 0);
            }
            actions.frames(gfn, 1);
            actions.take(gfn, gfn + 1, NONE);
        }
        actions.frames(frames[0], 0x1f1);
        actions.take(frames[0], 0x201, NONE);
        actions.take(frames[0], frames[0] + 1, pages[1]);
        for handle in [CLASSIC, PLAIN] {
            actions.call(Call::VmTopup { handle, pfn: pages[1], nr: 1 });
        }
        actions.malformed(pages[0], frames[0]);
        actions.deaths();
        actions.touch(pages);
        Self {
            name: "pages of two VMs",
            setup: Setup { pages: 2048, table_pages: 18, ..Setup::new(CORTEX_A72) },
            vms: vec![VmSetup::new(1, Kind::Classic, 700, 2), VmSetup::new(2, Kind::NonProtected, 720, 2)],
            actions: actions.0,
            pins: 1,
            answers: &[
                ("host_share_hyp", &[Eperm]),
                ("host_unshare_hyp", &[Eperm, Ebusy]),
                ("hyp_pin", &[Eperm, Enomem]),
                ("hyp_unpin", &[Eperm]),
                ("host_donate_hyp", &[Eperm]),
                ("hyp_donate_host", &[Eperm, Ebusy]),
                (
                    "host_donate_guest",
                    &[Einval, Erange, Enoent, Eacces, Ebusy, Eperm, Eexist, Ehwpoison, Enomem],
                ),
                ("host_share_guest", &[Einval, Erange, Enoent, Eacces, Ebusy, Eperm, Eexist, Enomem]),
                ("host_unshare_guest", &[Einval, E2big, Erange, Enoent, Eacces]),
                ("guest_share_host", &[Einval, E2big, Erange, Enoent, Eacces, Ebusy, Ehwpoison, Eperm]),
                ("guest_unshare_host", &[Einval, E2big, Erange, Enoent, Eacces, Ebusy, Ehwpoison, Eperm]),
                ("guest_relinquish_host", &[Einval, E2big, Erange, Enoent, Eacces, Ebusy, Ehwpoison, Eperm]),
                ("host_reclaim_guest", &[Einval, Erange, Enoent, Eacces, Ebusy, Eperm]),
                ("host_reclaim_dying_guest", &[Einval, Erange, Enoent, Eacces, Ebusy]),
                ("vm_topup", &[Einval, E2big, Erange, Enoent, Ebusy, Eperm, Enomem]),
                ("vm_teardown_start", &[Enoent, Ebusy]),
            ],
        }
    }

    /// A block of 2 MiB of the host and of two VMs, whole and in parts.
    #[must_use]
    pub fn block(size: Size) -> Self {
        const BLOCK: u64 = RAM + 1024;
        const AT: u64 = 0x200;
        const LAST: u64 = 511;
        let mut actions = Actions::default();
        actions.lend(BLOCK, 512);
        actions.lend(BLOCK, 1);
        actions.call(Call::HostShareHyp { pfn: BLOCK + LAST });
        actions.call(Call::HostUnshareHyp { pfn: BLOCK + LAST });
        actions.place(AT, BLOCK, 9);
        actions.place(AT, BLOCK, 0);
        let mut ranges = vec![(AT, 1), (AT, 512), (AT + 1, 511)];
        if size == Size::Large {
            actions.place(AT + LAST, BLOCK + LAST, 0);
            ranges.extend([(AT + LAST, 1), (AT + 255, 2)]);
        }
        for (gfn, nr) in ranges {
            actions.frames(gfn, nr);
            actions.take(gfn, gfn + nr, NONE);
        }
        // The page for the reserve, and the one that the VM may have instead of its own.
        actions.take(AT, AT + 1, RAM + 600);
        actions.deaths();
        actions.touch([BLOCK, BLOCK + LAST]);
        Self {
            name: "a block of two VMs",
            setup: Setup { pages: 2048, table_pages: 24, ..Setup::new(CORTEX_A72) },
            vms: vec![VmSetup::new(1, Kind::Classic, 700, 1), VmSetup::new(2, Kind::NonProtected, 720, 2)],
            actions: actions.0,
            pins: 0,
            answers: &[
                ("host_share_hyp", &[Eperm]),
                ("host_unshare_hyp", &[Eperm]),
                ("host_donate_hyp", &[Eperm]),
                ("hyp_donate_host", &[Eperm]),
                ("host_donate_guest", &[Enoent, Ebusy, Eperm, Ehwpoison, Enomem]),
                ("host_share_guest", &[Enoent, Ebusy, Eperm, Eexist]),
                ("host_unshare_guest", &[Enoent, E2big]),
                ("guest_share_host", &[Enoent, Ebusy, Ehwpoison, Eperm, Enomem]),
                ("guest_unshare_host", &[Enoent, Ebusy, Ehwpoison, Eperm, Enomem]),
                ("guest_relinquish_host", &[Enoent, Ebusy, Ehwpoison, Eperm, Enomem]),
                ("host_reclaim_guest", &[Enoent, Ebusy, Eperm]),
                ("host_reclaim_dying_guest", &[Enoent, Ebusy]),
                ("vm_teardown_start", &[Enoent, Ebusy]),
            ],
        }
    }

    /// Frames that are devices, or memory, of two VMs.
    #[must_use]
    pub fn marks(size: Size) -> Self {
        const PAGE: u64 = RAM + 1024;
        // Neighbours, and one that needs another table.
        let frames: &[u64] = match size {
            Size::Small => &[0x1ff, 0x200],
            Size::Large => &[0x1fe, 0x1ff, 0x200],
        };
        let mut actions = Actions::default();
        for &gfn in frames {
            actions.place(gfn, PAGE, 0);
            actions.frames(gfn, 1);
            actions.marks(gfn, 1);
            actions.take(gfn, gfn + 1, NONE);
        }
        actions.marks(0x1ff, 2);
        for (gfn, nr) in [(0x1ff, 0), (0x1ff, 513), (u64::MAX, 2), ((1 << 20) - 1, 2), (1 << 20, 1)] {
            actions.marks(gfn, nr);
        }
        for handle in [CLASSIC, PLAIN, SPLIT, NOBODY] {
            actions.call(Call::HostDropGuards { handle });
        }
        for handle in [SPLIT, NOBODY] {
            actions.call(Call::GuestMapGuard { handle, gfn: 0x10, nr: 1 });
            actions.call(Call::GuestUnmapGuard { handle, gfn: 0x10, nr: 1 });
        }
        actions.deaths();
        Self {
            name: "devices of two VMs",
            setup: Setup { pages: 2048, table_pages: 24, ..Setup::new(CORTEX_A72) },
            vms: vec![
                VmSetup::new(1, Kind::Classic, 700, 2),
                VmSetup::new(2, Kind::NonProtected, 720, 2),
                VmSetup::new(3, Kind::Split, 740, 0),
            ],
            actions: actions.0,
            pins: 0,
            answers: &[
                ("host_donate_guest", &[Enoent, Ebusy, Eperm, Ehwpoison, Enomem]),
                ("host_share_guest", &[Enoent, Ebusy, Eperm, Eexist, Enomem]),
                ("host_unshare_guest", &[Enoent]),
                ("guest_share_host", &[Enoent, Ebusy, Ehwpoison, Eperm]),
                ("guest_unshare_host", &[Enoent, Ebusy, Ehwpoison, Eperm]),
                ("guest_relinquish_host", &[Enoent, Ebusy, Ehwpoison, Eperm]),
                (
                    "guest_map_guard",
                    &[Einval, E2big, Erange, Enoent, Eacces, Ebusy, Eexist, Ehwpoison, Enomem],
                ),
                ("guest_unmap_guard", &[Einval, E2big, Erange, Enoent, Eacces, Ebusy, Eperm]),
                ("host_drop_guards", &[Enoent, Eacces, Ebusy]),
                ("host_reclaim_guest", &[Enoent, Ebusy, Eperm]),
                ("host_reclaim_dying_guest", &[Enoent, Ebusy]),
                ("vm_teardown_start", &[Enoent, Ebusy]),
            ],
        }
    }

    /// Private and shared frames of two VMs with split IPA: one runs, the other is being filled.
    #[must_use]
    pub fn halves(size: Size) -> Self {
        const PAGE: u64 = RAM + 1024;
        const RUNS: u64 = 1;
        const FILLED: u64 = 2;
        const PLAINLY: u64 = 3;
        /// A frame, the block of notes that it may be in, and a frame of the upper half.
        const AT: u64 = 0x200;
        const END: u64 = 0x400;
        const UPPER: u64 = 1 << 19;
        let mut actions = Actions::default();
        let mut ranges = vec![(AT, AT + 1), (AT, END)];
        if size == Size::Large {
            ranges.push((AT + 1, END));
        }
        for (from, to) in ranges {
            actions.states(RUNS, from << 12, to << 12);
            actions.states(FILLED, from << 12, to << 12);
        }
        for handle in [RUNS, FILLED] {
            actions.call(Call::HostDonateGuest { handle, gfn: AT, pfn: PAGE, order: 0 });
            let (base, top) = (AT << 12, (AT + 1) << 12);
            actions.call(Call::HostReclaimGuest { handle, base, top, refill: NONE, kept: NONE });
            actions.call(Call::HostReclaimDyingGuest { handle, base, top, kept: NONE });
            actions.call(Call::HostShareUnprotected { handle, gfn: UPPER, pfn: PAGE, order: 0, write: 1 });
            actions.unshare(handle, UPPER, 1);
        }
        for (handle, base, top) in [
            (RUNS, 0, 0),
            (RUNS, 1, 4096),
            (RUNS, 8192, 4096),
            (RUNS, 0, 1 << 32),
            (FILLED, UPPER << 12, (UPPER + 1) << 12),
            (PLAINLY, 0, 4096),
            (NOBODY, 0, 4096),
        ] {
            actions.states(handle, base, top);
        }
        for (handle, gfn, pfn, order, write) in [
            (RUNS, UPPER + 1, PAGE, 9, 1),
            (RUNS, UPPER, PAGE, 0, 2),
            (RUNS, AT, PAGE, 0, 1),
            (RUNS, UPPER << 1, PAGE, 0, 1),
            (RUNS, UPPER, RAM - 1, 0, 0),
            (RUNS, UPPER, RAM, 0, 0),
            (PLAINLY, UPPER, PAGE, 0, 0),
            (NOBODY, UPPER, PAGE, 0, 0),
        ] {
            actions.call(Call::HostShareUnprotected { handle, gfn, pfn, order, write });
        }
        for (handle, gfn, nr) in [
            (RUNS, UPPER, 0),
            (RUNS, UPPER, 513),
            (RUNS, AT, 1),
            (RUNS, UPPER << 1, 1),
            (PLAINLY, UPPER, 1),
            (NOBODY, UPPER, 1),
        ] {
            actions.unshare(handle, gfn, nr);
        }
        actions.call(Call::VmTopup { handle: RUNS, pfn: RAM + 600, nr: 1 });
        actions.deaths();
        let vm = |handle, phase, first, cache| VmSetup {
            vm: hyp::spec::model::Vm::new(handle, Kind::Split, 32, phase),
            mte: MtePolicy::Off,
            cache,
            first,
        };
        Self {
            name: "halves of two VMs",
            setup: Setup { pages: 2048, table_pages: 24, ..Setup::new(CORTEX_A72) },
            vms: vec![
                vm(1, Phase::Active, 700, 1),
                vm(2, Phase::New, 720, 2),
                VmSetup::new(3, Kind::Classic, 740, 0),
            ],
            actions: actions.0,
            pins: 0,
            answers: &[
                ("host_init_ripas", &[Einval, Erange, Enoent, Eacces, Ebusy, Ehwpoison, Enomem]),
                ("host_apply_ram", &[Einval, Erange, Enoent, Eacces, Ebusy, Enomem]),
                ("host_apply_empty", &[Einval, Erange, Enoent, Eacces, Ebusy, Enomem]),
                ("host_share_unprotected", &[Einval, Erange, Enoent, Eacces, Ebusy, Eperm, Eexist, Enomem]),
                ("host_unshare_unprotected", &[Einval, E2big, Erange, Enoent, Eacces]),
                ("host_donate_guest", &[Enoent, Ebusy, Eperm, Ehwpoison, Enomem]),
                ("host_reclaim_guest", &[Enoent, Ebusy]),
                ("host_reclaim_dying_guest", &[Enoent, Ebusy]),
                ("vm_topup", &[Enoent, Ebusy, Eperm]),
                ("vm_teardown_start", &[Enoent, Ebusy]),
            ],
        }
    }

    /// Pages with and without tags of VMs with every policy, on a CPU that tells tag accesses.
    #[must_use]
    pub fn tags(size: Size) -> Self {
        Self {
            name: "tags of four VMs",
            answers: &[
                ("host_donate_guest", &[Enoent, Ebusy, Eperm, Eexist, Ehwpoison, Enomem]),
                ("host_donate_no_tag", &[Enoent, Ebusy, Eperm, Eexist, Ehwpoison, Enomem]),
                (
                    "host_upgrade_guest",
                    &[Einval, Erange, Enoent, Eacces, Ebusy, Ehwpoison, Eexist, Eperm, Enomem],
                ),
                ("host_share_guest", &[Enoent, Ebusy, Eperm, Eexist]),
                ("host_unshare_guest", &[Enoent]),
                ("guest_share_host", &[Enoent, Ebusy, Ehwpoison, Eperm, Eopnotsupp]),
                ("guest_unshare_host", &[Enoent, Ebusy, Ehwpoison, Eperm]),
                ("guest_relinquish_host", &[Enoent, Ebusy, Ehwpoison, Eperm]),
                ("guest_map_guard", &[Enoent, Ebusy, Eexist, Ehwpoison, Enomem]),
                ("guest_unmap_guard", &[Enoent, Ebusy, Eperm]),
                ("host_reclaim_guest", &[Enoent, Ebusy, Eperm]),
                ("host_reclaim_dying_guest", &[Enoent, Ebusy]),
                ("vm_topup", &[Enoent, Ebusy, Eperm]),
                ("vm_teardown_start", &[Enoent, Ebusy]),
            ],
            ..Self::upgrades(MAX, size)
        }
    }

    /// The same on a CPU that does not: pages without tags wait, unmapped.
    #[must_use]
    pub fn pending(size: Size) -> Self {
        Self {
            name: "tags that are waited for",
            answers: &[
                ("host_donate_guest", &[Enoent, Ebusy, Eperm, Eexist, Ehwpoison, Enomem]),
                ("host_donate_no_tag", &[Enoent, Ebusy, Eperm, Eexist, Ehwpoison, Enomem]),
                // Notes are pages already: there is no block to split.
                ("host_upgrade_guest", &[Einval, Erange, Enoent, Eacces, Ebusy, Ehwpoison, Eexist, Eperm]),
                // But 512 of them take a table.
                ("host_share_guest", &[Enoent, Ebusy, Eperm, Eexist, Enomem]),
                ("host_unshare_guest", &[Enoent]),
                ("guest_share_host", &[Enoent, Ebusy, Ehwpoison, Eperm, Eopnotsupp]),
                ("guest_unshare_host", &[Enoent, Ebusy, Ehwpoison, Eperm]),
                ("guest_relinquish_host", &[Enoent, Ebusy, Ehwpoison, Eperm]),
                ("guest_map_guard", &[Enoent, Ebusy, Eexist, Ehwpoison, Enomem]),
                ("guest_unmap_guard", &[Enoent, Ebusy, Eperm]),
                ("host_reclaim_guest", &[Enoent, Ebusy, Eperm]),
                ("host_reclaim_dying_guest", &[Enoent, Ebusy]),
                ("vm_topup", &[Enoent, Ebusy, Eperm]),
                ("vm_teardown_start", &[Enoent, Ebusy]),
            ],
            ..Self::upgrades(NEOVERSE_N2, size)
        }
    }

    /// The world of both, without a name and without answers.
    fn upgrades(features: CpuFeatures, size: Size) -> Self {
        /// A block without tags, and pages with some.
        const UNTAGGED: u64 = RAM + 1536;
        const TAGGED: u64 = RAM + 1024;
        const AT: u64 = 0x10;
        const BLOCK: u64 = 0x200;
        const OFF: u64 = 3;
        const STRICT: u64 = 4;
        let pages = match size {
            Size::Small => vec![TAGGED],
            Size::Large => vec![TAGGED, TAGGED + 1],
        };
        let mut actions = Actions::default();
        for &new in &pages {
            for gfn in [AT, BLOCK, BLOCK + 1] {
                actions.call(Call::HostUpgradeGuest { handle: CLASSIC, gfn, new });
            }
            actions.place(AT, new, 0);
            actions.call(Call::HostDonateNoTag { handle: CLASSIC, gfn: AT, pfn: new, order: 0 });
        }
        for (handle, gfn, new) in [
            (PLAIN, AT, TAGGED),
            (OFF, AT, TAGGED),
            (NOBODY, AT, TAGGED),
            (CLASSIC, 1 << 20, TAGGED),
            (CLASSIC, u64::MAX, TAGGED),
            (CLASSIC, AT, UNTAGGED),
        ] {
            actions.call(Call::HostUpgradeGuest { handle, gfn, new });
        }
        for new in ODD {
            actions.call(Call::HostUpgradeGuest { handle: CLASSIC, gfn: AT, new });
        }
        actions.place(AT, UNTAGGED, 0);
        actions.place(BLOCK, UNTAGGED, 9);
        actions.call(Call::HostDonateGuest { handle: STRICT, gfn: AT, pfn: UNTAGGED, order: 0 });
        actions.call(Call::HostDonateNoTag { handle: STRICT, gfn: AT, pfn: TAGGED, order: 0 });
        actions.frames(AT, 1);
        for gfn in [AT, BLOCK] {
            actions.take(gfn, gfn + 1, NONE);
        }
        actions.call(Call::GuestMapGuard { handle: CLASSIC, gfn: AT, nr: 1 });
        actions.call(Call::GuestUnmapGuard { handle: CLASSIC, gfn: AT, nr: 1 });
        actions.call(Call::VmTopup { handle: CLASSIC, pfn: RAM + 600, nr: 1 });
        actions.deaths();
        actions.touch([TAGGED, UNTAGGED]);
        let vm =
            |handle, kind, mte, first, cache| VmSetup { mte, ..VmSetup::new(handle, kind, first, cache) };
        Self {
            name: "",
            setup: Setup { pages: 2048, table_pages: 24, no_tags: Some((1536, 512)), ..Setup::new(features) },
            vms: vec![
                vm(1, Kind::Classic, MtePolicy::Lazy, 700, 2),
                vm(2, Kind::NonProtected, MtePolicy::Lazy, 720, 2),
                vm(3, Kind::Classic, MtePolicy::Off, 740, 0),
                vm(4, Kind::Classic, MtePolicy::Strict, 760, 2),
            ],
            actions: actions.0,
            pins: 0,
            answers: &[],
        }
    }
}

#[derive(Default)]
struct Actions(Vec<Action>);

impl Actions {
    fn call(&mut self, call: Call) {
        self.0.push(Action::Call(call));
    }

    fn touch(&mut self, pages: impl IntoIterator<Item = u64>) {
        self.0.extend(pages.into_iter().map(Action::Touch));
    }

    fn lend(&mut self, pfn: u64, nr: u64) {
        self.call(Call::HostDonateHyp { pfn, nr });
        self.call(Call::HypDonateHost { pfn, nr });
    }

    /// Every call about one page that the host and EL2 have.
    fn host_and_hyp(&mut self, pfn: u64) {
        self.call(Call::HostShareHyp { pfn });
        self.call(Call::HostUnshareHyp { pfn });
        self.call(Call::HypPin { pfn });
        self.call(Call::HypUnpin { pfn });
        self.lend(pfn, 1);
    }

    /// The host puts pages into either VM.
    fn place(&mut self, gfn: u64, pfn: u64, order: u64) {
        self.call(Call::HostDonateGuest { handle: CLASSIC, gfn, pfn, order });
        self.call(Call::HostShareGuest { handle: PLAIN, gfn, pfn, order, prot: 7 });
    }

    /// Every call about frames that a VM has.
    fn frames(&mut self, gfn: u64, nr: u64) {
        self.call(Call::HostUnshareGuest { handle: PLAIN, gfn, nr });
        self.call(Call::GuestShareHost { handle: CLASSIC, gfn, nr });
        self.call(Call::GuestUnshareHost { handle: CLASSIC, gfn, nr });
        self.call(Call::GuestRelinquishHost { handle: CLASSIC, gfn, nr });
    }

    /// Either VM says which frames are devices.
    fn marks(&mut self, gfn: u64, nr: u64) {
        for handle in [CLASSIC, PLAIN] {
            self.call(Call::GuestMapGuard { handle, gfn, nr });
            self.call(Call::GuestUnmapGuard { handle, gfn, nr });
        }
    }

    /// The host takes frames by force, or from the dead.
    fn take(&mut self, from: u64, to: u64, refill: u64) {
        let (handle, base, top) = (CLASSIC, from << 12, to << 12);
        self.call(Call::HostReclaimGuest { handle, base, top, refill, kept: NONE });
        self.call(Call::HostReclaimDyingGuest { handle, base, top, kept: NONE });
    }

    /// Private frames change what they are.
    fn states(&mut self, handle: u64, base: u64, top: u64) {
        self.call(Call::HostInitRipas { handle, base, top });
        for destroyed in [0, 1] {
            self.call(Call::HostApplyRam { handle, base, top, destroyed });
        }
        self.call(Call::HostApplyEmpty { handle, base, top, kept: NONE });
    }

    fn unshare(&mut self, handle: u64, gfn: u64, nr: u64) {
        self.call(Call::HostUnshareUnprotected { handle, gfn, nr, first: 0, done: 0 });
    }

    /// Either VM dies and is gone.
    fn deaths(&mut self) {
        for handle in [CLASSIC, PLAIN] {
            self.call(Call::VmTeardownStart { handle });
        }
        self.0.extend([Action::Finish(1), Action::Finish(2)]);
    }

    /// Every call with each of its arguments wrong in turn; `pfn` and `gfn` are right.
    fn malformed(&mut self, pfn: u64, gfn: u64) {
        let beyond = 1 << 20;
        for (handle, gfn, pfn, order) in [
            (CLASSIC, gfn, pfn, 1),
            (CLASSIC, gfn, pfn, u64::MAX),
            (CLASSIC, 0x10, RAM + 512, 9),
            (CLASSIC, 0x200, RAM + 1, 9),
            (CLASSIC, beyond, pfn, 0),
            (CLASSIC, u64::MAX, pfn, 0),
            (PLAIN, gfn, pfn, 0),
            (NOBODY, gfn, pfn, 0),
            (u64::MAX, gfn, pfn, 0),
        ] {
            self.call(Call::HostDonateGuest { handle, gfn, pfn, order });
            let handle = if handle < NOBODY { handle ^ 3 } else { handle };
            self.call(Call::HostShareGuest { handle, gfn, pfn, order, prot: 7 });
        }
        self.call(Call::HostShareGuest { handle: PLAIN, gfn, pfn, order: 0, prot: 8 });
        for pfn in ODD {
            self.place(gfn, pfn, 0);
            self.call(Call::VmTopup { handle: CLASSIC, pfn, nr: 1 });
        }
        let ranges =
            [(gfn, 0), (gfn, 513), (gfn, u64::MAX), (u64::MAX, 2), (beyond - 1, 2), ((1 << 36) - 1, 2)];
        ranges.into_iter().for_each(|(gfn, nr)| self.frames(gfn, nr));
        for (own, other) in [(CLASSIC, PLAIN), (NOBODY, NOBODY)] {
            let handle = other;
            self.call(Call::HostUnshareGuest { handle: own, gfn, nr: 1 });
            self.call(Call::GuestShareHost { handle, gfn, nr: 1 });
            self.call(Call::GuestUnshareHost { handle, gfn, nr: 1 });
            self.call(Call::GuestRelinquishHost { handle, gfn, nr: 1 });
            let (base, top) = (gfn << 12, (gfn + 1) << 12);
            self.call(Call::HostReclaimGuest { handle, base, top, refill: NONE, kept: NONE });
            self.call(Call::HostReclaimDyingGuest { handle, base, top, kept: NONE });
        }
        for (base, top) in [(0, 0), (1, 4096), (0, 4095), (4096, 0), (0, 1 << 33), (0, !0xfff)] {
            let (handle, refill, kept) = (CLASSIC, NONE, NONE);
            self.call(Call::HostReclaimGuest { handle, base, top, refill, kept });
            self.call(Call::HostReclaimDyingGuest { handle, base, top, kept });
        }
        for refill in ODD.into_iter().filter(|&refill| refill != NONE) {
            self.take(gfn, gfn + 1, refill);
        }
        for (handle, nr) in [(CLASSIC, 0), (CLASSIC, 129), (PLAIN, u64::MAX), (NOBODY, 1)] {
            self.call(Call::VmTopup { handle, pfn, nr });
        }
        self.call(Call::VmTeardownStart { handle: NOBODY });
    }
}
