//! What the shim can be asked to do, by name. `docs/scenarios.md` repeats the list.
#![forbid(unsafe_code)]

mod bare_vm;
mod calls;
mod campaign;
mod carveout;
mod cost;
mod cost_curves;
mod custody;
mod demo;
mod devices;
mod endurance;
mod faults;
mod guard;
mod guest;
mod guest_cost;
mod guest_linux;
mod lend;
mod lost_cpus;
mod mte_cost;
mod psci;
mod race;
mod ram;
mod realm_cost;
mod realm_end;
mod share;
mod smoke;
mod smp;
mod snapshot;
mod snapshot_cost;
mod snapshot_faults;
mod tags;
mod upgrade_faults;
mod vm_cost;
mod vm_faults;

use crate::Ending;
use crate::args::Args;
use crate::board::Board;
use crate::hvc::{CallError, Hypervisor};
use crate::inject::Injection;
use crate::machine::{Access, Fault, Imm, Machine, Regs};
use crate::report::Report;
use crate::span::{PAGE, Pages, Span};
use abi::Errno;
use arrayvec::ArrayVec;
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Mutex;

pub(crate) use custody::{after as census_after, before as census_before};

/// One named run: a boot of its own in the boot tests.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Value of the boot argument `scenario`.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// Its code.
    pub run: fn(&Ctx<'_>),
    /// How it must end, if that is part of it.
    pub ending: Option<Ending>,
    /// It runs virtual machines.
    pub guests: bool,
}

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("demo", "what a host sees of the hypervisor, told for a person", demo::run),
    scenario("smoke", "EL2 answers, all CPUs come up, the machine ends", smoke::run),
    scenario("calls", "the calling convention: unknown ids, immediates, high bits, the SVE hint", calls::run),
    scenario("share", "share and unshare, and what the ownership calls refuse", share::run),
    scenario("lend", "pages lent to the hypervisor's pool and taken back", lend::run),
    scenario("carveout_load", "no load, and no table walk, reaches the hypervisor's memory", carveout::load),
    scenario("carveout_store", "no store reaches the hypervisor's memory", carveout::store),
    scenario("carveout_fetch", "no instruction is fetched from the hypervisor's memory", carveout::fetch),
    scenario("fwcfg_dma", "fw_cfg's DMA engine cannot be started against the carve-out", devices::fwcfg_dma),
    scenario("withheld", "every disabled device and every bus master is out of reach", devices::withheld),
    scenario("psci", "the PSCI relay and other SMCs; CPUs come up behind stage 2", psci::run),
    scenario(
        "lost_cpus",
        "CPUs of the tree that firmware refuses, or that never arrive, are told of; the others work",
        lost_cpus::run,
    ),
    scenario("smp", "all CPUs call at once, and race for one page", smp::run),
    scenario("race", "all CPUs share, lend and take back the same pages without any order", race::run),
    scenario(
        "faults",
        "every step of a call that can fail is made to fail, and nothing changes hands",
        faults::run,
    ),
    scenario(
        "campaign",
        "a hostile host on all CPUs: legal and forged calls, VMs that come and go, memory touched and rewritten",
        campaign::run,
    ),
    scenario("ram", "the host has all of its memory, each byte in its place", ram::run),
    scenario("host_mte", "the host uses memory tags of its own as if there were no hypervisor", tags::run),
    guests(
        "guard",
        "guests print through a page that they marked, try what no device serves, and meet a hole",
        guard::run,
    ),
    scenario(
        "snapshot",
        "stage-2 snapshots: what they show, what they refuse, that all pages come back",
        snapshot::run,
    ),
    scenario("cost", "EL2 instructions of each operation; needs -icount shift=0,sleep=off", cost::run),
    guests(
        "snapshot_cost",
        "EL2 instructions of a snapshot, by the number of tables; needs -icount shift=0,sleep=off",
        snapshot_cost::run,
    ),
    guests("guest_hello", "a guest talks over a UART that its VMM emulates", guest::hello),
    guests(
        "guest_memory",
        "a guest's pages are zeroed, its own, and the host's only if plain",
        guest::memory,
    ),
    guests("guest_share", "a protected guest shares pages, takes them back and gives them up", guest::share),
    guests(
        "guest_realm",
        "a realm says what its memory is, shares a page by giving it up, takes it back, and gets over a lost one",
        guest::realm,
    ),
    guests("guest_smp", "vCPUs start each other by PSCI and send SGIs, on many CPUs and on one", guest::smp),
    guests("guest_timer", "a guest's virtual timer interrupts it, asleep and spinning", guest::timer),
    guests("guest_fp", "vector registers of two guests and the host on one CPU", guest::fp),
    guests("guest_keys", "pointer authentication keys of two guests and the host on one CPU", guest::keys),
    guests(
        "guest_mte",
        "guests use memory tags, on pages that have some and on pages that get them when they are wanted",
        guest::mte,
    ),
    guests(
        "guest_linux",
        "Debian's unmodified Linux as a guest, plain or as a realm: to user space, and what the host cannot read of it",
        guest_linux::run,
    ),
    guests(
        "guest_linux_together",
        "a plain Linux and a realm beside a guest that leaves in every way; the host takes the realm's kernel away",
        guest_linux::together,
    ),
    guests(
        "guest_linux_hostile",
        "a Linux realm whose host refuses, withholds, lies, repeats itself and scribbles on all that is shared",
        guest_linux::hostile,
    ),
    guests(
        "guest_linux_ended",
        "Linux guests of both kinds end at any moment, by their own CPU and by another; all of each comes back",
        guest_linux::ended,
    ),
    guests("guest_two_vms", "two VMs at once, on two CPUs and on all", guest::two_vms),
    guests("guest_traps", "every class of instruction that leaves a guest", guest::traps),
    guests(
        "guest_protect",
        "a protected guest's memory and registers are out of the host's reach",
        guest::protect,
    ),
    guests("guest_vcpu", "vCPUs on two CPUs, on none, on one that goes off; illegal registers", guest::vcpu),
    guests(
        "guest_handles",
        "each call on handles of nobody, and on VMs of the wrong kind and phase",
        guest::handles,
    ),
    guests(
        "guest_replies",
        "answers that nobody asked for, and list registers no host may write",
        guest::replies,
    ),
    guests("guest_donate", "pages that are not the host's to give, and blocks", guest::donate),
    guests(
        "guest_hostile",
        "a guest that does what no guest should, beside two that do not: every system register, and seeded rounds",
        guest::hostile,
    ),
    guests("guest_race", "the host rewrites records and chains while the hypervisor reads them", guest::race),
    guests("guest_kill", "a VM ends at each of its exits", guest::kill),
    guests(
        "guest_reset",
        "SYSTEM_RESET with a protected VM alive, its vCPU loaded on another CPU: neither its pages nor its registers outlive it",
        guest::reset,
    ),
    guests(
        "realm_end",
        "a realm of 1 GiB of blocks, pages and notes is taken apart while every fault site is armed",
        realm_end::run,
    ),
    guests(
        "endurance",
        "VMs come and go, snapshots are taken, pages are shared, all very often: nothing drifts",
        endurance::run,
    ),
    Scenario {
        ending: Some(Ending::PowerOff),
        ..scenario("poweroff", "PSCI SYSTEM_OFF ends the machine", alive)
    },
    Scenario {
        ending: Some(Ending::Reset),
        ..scenario("reset", "PSCI SYSTEM_RESET ends the machine", alive)
    },
];

/// A scenario that is about its ending: that the hypervisor was there is all to check before it.
fn alive(ctx: &Ctx<'_>) {
    ctx.expect_el2_alive();
}

/// What a call gives that is refused with `errno`.
const fn refused(errno: Errno) -> Result<(), CallError> {
    Err(CallError::Errno(errno))
}

const fn scenario(name: &'static str, about: &'static str, run: fn(&Ctx<'_>)) -> Scenario {
    Scenario { name, about, run, ending: None, guests: false }
}

const fn guests(name: &'static str, about: &'static str, run: fn(&Ctx<'_>)) -> Scenario {
    Scenario { guests: true, ..scenario(name, about, run) }
}

/// What a scenario works with.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// The machine.
    pub machine: &'a dyn Machine,
    /// Its device tree.
    pub board: &'a Board<'a>,
    /// Free memory.
    pub pages: Mutex<Pages>,
    /// The CPU that runs the scenario.
    pub boot_cpu: usize,
    /// Where outcomes go.
    pub report: Report<'a>,
    /// Boot arguments.
    pub args: Args<'a>,
    /// The scenario goes on behind a reset of the machine.
    pub reboot: AtomicBool,
    /// Pages that the scenario lent and cannot have back, because they are tables by now.
    pub left_lent: AtomicU64,
    /// What makes calls fail, if it has been started.
    pub injection: Injection,
}

impl Ctx<'_> {
    /// The hypercall client.
    #[must_use]
    pub fn hypervisor(&self) -> Hypervisor<'_> {
        Hypervisor::new(self.machine).failing(&self.injection)
    }

    /// Says that `nr` lent pages stay lent: they are tables.
    pub fn leave_lent(&self, nr: u64) {
        self.left_lent.fetch_add(nr, Ordering::Relaxed);
    }

    /// Takes `nr` pages that nothing uses, at a multiple of `align` bytes; a failed check if there
    /// are none.
    pub fn take(&self, nr: u64, align: u64) -> Option<Span> {
        let span = self.pages.lock().take(nr * PAGE, align);
        if span.is_none() {
            self.report.fail("free memory", format_args!("no {nr} pages aligned to {align:#x}"));
        }
        span
    }

    /// Stores a word in one of the shim's pages, or in one that EL2 took away.
    ///
    /// # Errors
    /// The fault, if there was one.
    pub fn store(&self, address: u64, value: u64) -> Result<(), Fault> {
        self.machine.probe(Access::Store, address, value).map(drop)
    }

    /// Loads a word.
    ///
    /// # Errors
    /// The fault, if there was one.
    pub fn load(&self, address: u64) -> Result<u64, Fault> {
        self.machine.probe(Access::Load, address, 0)
    }

    /// Every CPU of the tree.
    #[must_use]
    pub fn all_cpus(&self) -> ArrayVec<usize, { crate::board::MAX_CPUS }> {
        (0..self.board.cpus.len()).collect()
    }

    /// A CPU that the machine did not boot on, if there is one.
    #[must_use]
    pub fn other_cpu(&self) -> Option<usize> {
        self.all_cpus().into_iter().find(|cpu| *cpu != self.boot_cpu)
    }

    /// Brings up every CPU; a failed check for each that does not come.
    pub fn start_all_cpus(&self) -> bool {
        self.all_cpus().into_iter().fold(true, |all, cpu| match self.machine.start_cpu(cpu) {
            Ok(()) => all,
            Err(status) => {
                self.report.fail(format_args!("start of CPU {cpu}"), format_args!("PSCI status {status}"));
                false
            }
        })
    }

    /// Passes if `access` at `address` is refused the way EL2 refuses: an external abort there.
    pub fn expect_refused(&self, name: impl Display, access: Access, address: u64) -> bool {
        match self.machine.probe(access, address, 0xbad) {
            Ok(value) => {
                self.report.check(name, false, format_args!("{access:?} at {address:#x} gave {value:#x}"))
            }
            Err(fault) => self.report.check(
                name,
                fault.is_refusal_of(access) && fault.far == address,
                format_args!("{access:?} at {address:#x}: {fault}, no external abort there"),
            ),
        }
    }

    /// Passes if EL2 still answers as it should.
    pub fn expect_el2_alive(&self) -> bool {
        match self.hypervisor().caps() {
            Ok(reply) => self.report.equal("EL2 still answers", reply.version, abi::caps::VERSION),
            Err(e) => self.report.check("EL2 still answers", false, e),
        }
    }

    /// A call to firmware: SMC with `id` and `args`, and patterns in the other registers.
    #[must_use]
    pub fn firmware(&self, id: u32, args: &[u64]) -> (Regs, Regs) {
        let before = crate::hvc::registers(u64::from(id), args);
        (before, self.machine.smc(Imm::Zero, &before))
    }
}
