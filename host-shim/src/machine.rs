//! The seam between scenarios and the machine: what an EL1 host can do, as one trait.
//!
//! `arch` implements it on Arm; `tests/` implements it with a model of EL2, so that every check of a
//! scenario is seen to fail when the rule it is about is broken.
#![forbid(unsafe_code)]

pub use el1::{CallRun, Imm, Regs};

use crate::span::Span;
use core::fmt;

/// One way to touch an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// LDR Xt.
    Load,
    /// LDRB.
    LoadByte,
    /// LDP: no syndrome at EL2.
    LoadPair,
    /// LDXR.
    LoadExclusive,
    /// STR Xt.
    Store,
    /// STRB.
    StoreByte,
    /// STP: no syndrome at EL2.
    StorePair,
    /// DC ZVA.
    ZeroLine,
    /// BLR to it: the page must hold code that returns.
    Fetch,
}

impl Access {
    /// Every way to touch data.
    pub const TO_DATA: [Self; 8] = [
        Self::Load,
        Self::LoadByte,
        Self::LoadPair,
        Self::LoadExclusive,
        Self::Store,
        Self::StoreByte,
        Self::StorePair,
        Self::ZeroLine,
    ];
}

/// A synchronous exception that a probe met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
}

impl Fault {
    /// Exception class: instruction abort, same EL.
    pub const EC_INSTRUCTION_ABORT: u64 = 0x21;
    /// Exception class: data abort, same EL.
    pub const EC_DATA_ABORT: u64 = 0x25;
    /// Fault status: synchronous external abort, not on a table walk.
    pub const FSC_EXTERNAL: u64 = 0x10;

    /// Exception class, ESR bits 31:26.
    #[must_use]
    pub const fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Fault status code, ESR bits 5:0.
    #[must_use]
    pub const fn status(&self) -> u64 {
        self.esr & 0x3f
    }

    /// True for the abort that EL2 injects when the host may not have the page: synchronous,
    /// external, S1PTW (bit 7) clear, of the class that belongs to `access`.
    #[must_use]
    pub fn is_refusal_of(&self, access: Access) -> bool {
        let class = if access == Access::Fetch { Self::EC_INSTRUCTION_ABORT } else { Self::EC_DATA_ABORT };
        self.class() == class && self.status() == Self::FSC_EXTERNAL && self.esr & (1 << 7) == 0
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ESR {:#x} FAR {:#x} ELR {:#x}", self.esr, self.far, self.elr)
    }
}

/// What CPU_ON needs to bring a CPU into the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuEntry {
    /// MPIDR affinity of the CPU.
    pub mpidr: u64,
    /// Physical address of the first instruction.
    pub entry: u64,
    /// What x0 must hold there.
    pub context: u64,
}

/// What the host does before a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// A call of this function id.
    Call(u32),
    /// A store of x2 to the address in x5.
    Store,
}

/// A run of turns of the vCPU that is loaded, timed as a whole: before each VCPU_RUN what `before` says, with x1
/// to x5 as in `args`; x1 to x3 grow by their strides every time.
#[derive(Clone, Copy, Debug)]
pub struct TurnRun {
    /// Before each turn.
    pub before: Before,
    /// x1 to x5 of the first.
    pub args: [u64; 5],
    /// What x1 to x3 grow by.
    pub strides: [u64; 3],
    /// Number of turns, at least 1.
    pub count: u64,
}

/// What a timed run saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// Counter ticks it took.
    pub ticks: u64,
    /// x0 and x1 of every call, ORed: 0 if all succeeded.
    pub status: u64,
}

/// Work that several CPUs do at once; the argument is the CPU's index.
pub type Work<'a> = &'a (dyn Fn(usize) + Sync + 'a);

/// What a search of memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// The first word that is this.
    Word(u64),
    /// The first word that is not.
    OtherThan(u64),
}

impl Find {
    /// True of a word that ends the search.
    #[must_use]
    pub const fn matches(self, word: u64) -> bool {
        match self {
            Self::Word(wanted) => word == wanted,
            Self::OtherThan(usual) => word != usual,
        }
    }
}

/// The machine as an EL1 host sees it. CPUs are named by their index in the device tree.
pub trait Machine: Sync + fmt::Debug {
    /// Prints one line; lines of different CPUs do not mix.
    fn line(&self, text: fmt::Arguments<'_>);

    /// Prints one character, wherever lines of other CPUs end.
    fn say(&self, character: u8);
    /// A character that has arrived at the console.
    fn hear(&self) -> Option<u8>;

    /// CurrentEL.
    fn exception_level(&self) -> u8;
    /// HVC with these registers; the reply has all 18.
    fn hvc(&self, imm: Imm, regs: &Regs) -> Regs;
    /// SMC with these registers.
    fn smc(&self, imm: Imm, regs: &Regs) -> Regs;

    /// Touches `address`; `value` is what a store writes. The shim's map covers every address
    /// below 2^40, RAM as Normal and the rest as Device, whoever owns it.
    ///
    /// # Errors
    /// The fault, if there was one.
    fn probe(&self, access: Access, address: u64, value: u64) -> Result<u64, Fault>;
    /// Loads through a stage-1 table that lies at `table`: the table walk itself touches it.
    ///
    /// # Errors
    /// The fault, if there was one.
    fn load_through_table(&self, table: u64) -> Result<u64, Fault>;

    /// The address of the first word of `span` that `find` is for, if there is one. Both ends are multiples of 8.
    ///
    /// # Errors
    /// The fault, if a load met one.
    fn find(&self, span: Span, find: Find) -> Result<Option<u64>, Fault> {
        for address in (span.start()..span.end()).step_by(8) {
            if find.matches(self.probe(Access::Load, address, 0)?) {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }
    /// Sets every word of `span`, which is memory of the host that no Rust object lives in. Both ends are multiples
    /// of 8.
    fn fill(&self, span: Span, word: u64);
    /// Copies `from` to as many bytes at `to`; both are as for [`Machine::fill`], and do not overlap.
    fn copy(&self, to: u64, from: Span);

    /// Reads bytes of such memory, before anything that this CPU does next; two at a multiple of 2 in one access.
    fn read_bytes(&self, address: u64, into: &mut [u8]);
    /// Writes bytes, after all that this CPU did before, and no byte beside them; two at a multiple of 2 in one
    /// access.
    fn write_bytes(&self, address: u64, from: &[u8]);

    /// CNTVCT_EL0.
    fn ticks(&self) -> u64;
    /// CNTFRQ_EL0: ticks a second.
    fn frequency(&self) -> u64;
    /// Has this CPU count its instructions and those of its guests, EL2's not among them, from here on. False if it
    /// cannot: under QEMU it can with `-icount shift=N`.
    fn count_instructions(&self) -> bool {
        false
    }
    /// The lower 32 bits of what the CPU that counts, on which this runs, has counted; `None` if none does.
    fn instructions(&self) -> Option<u32> {
        None
    }
    /// CNTVCT_EL0 at the shim's first instruction.
    fn ticks_at_entry(&self) -> u64;

    /// The CPU this runs on.
    fn cpu(&self) -> usize;
    /// What CPU_ON needs for CPU `cpu`.
    fn cpu_entry(&self, cpu: usize) -> Option<CpuEntry>;
    /// Brings `cpu` up, or finds it up.
    ///
    /// # Errors
    /// PSCI's status, if CPU_ON failed.
    fn start_cpu(&self, cpu: usize) -> Result<(), i64>;
    /// Waits until `cpu`, for which CPU_ON succeeded, is ready to work; false after a second or so.
    fn wait_for_cpu(&self, cpu: usize) -> bool;
    /// Has `cpu`, which must be up and not this one, call CPU_OFF. It is off some time later.
    fn stop_cpu(&self, cpu: usize);
    /// Does `work` on each of `cpus` at the same time and returns when all have done it.
    fn run_on(&self, cpus: &[usize], work: Work<'_>);

    /// Has the timer wake this CPU, or end its guest's turn, in `ticks`; the host sees no exception.
    /// False if it cannot.
    fn wake_after(&self, ticks: u64) -> bool;
    /// Stops the timer.
    fn cancel_wake(&self);
    /// Forgets the kicks that have come so far. What they are about is looked at behind this.
    fn heed_kicks(&self);
    /// Has `cpu` come back from the guest that it runs, or from [`Machine::wait`], now or when it next begins either.
    fn kick(&self, cpu: usize);
    /// WFI.
    fn wait(&self);
    /// Marks the virtual timer's interrupt active on this CPU, or not: what an active one of a guest
    /// has to say has been said, it does not end another turn.
    fn set_guest_timer_active(&self, active: bool);
    /// Fills this CPU's vector registers with words made of `seed`.
    fn fill_fp(&self, seed: u64);
    /// True if they still hold them, over their whole width.
    fn fp_holds(&self, seed: u64) -> bool;

    /// Sets this CPU's pointer authentication keys to words made of `seed`, where it has any.
    fn fill_keys(&self, seed: u64);
    /// True if they are that, or there are none.
    fn keys_hold(&self, seed: u64) -> bool;

    /// True if the CPU has memory tags (FEAT_MTE2).
    fn has_tags(&self) -> bool;
    /// The tag of the 16 bytes at `address`, which are the host's and, as all its memory, Tagged.
    fn tag(&self, address: u64) -> u64;
    /// Sets it.
    fn set_tag(&self, address: u64, tag: u64);
    /// From here on a load or store by this CPU needs an address with the tag of the memory, or faults; or not.
    fn check_tags(&self, on: bool);

    /// Sets RGSR_EL1, GCR_EL1, TFSR_EL1 and TFSRE0_EL1 of this CPU, which has tags; what they were.
    fn swap_tag_registers(&self, values: [u64; 4]) -> [u64; 4];

    /// Writes a file on the developer's machine by semihosting, or adds to it with `append`: false
    /// if that did not work. Only where the emulator offers it; elsewhere it is an undefined instruction.
    fn write_file(&self, name: &str, append: bool, bytes: &[u8]) -> bool;

    /// Times a run of calls; with `call` false, of the same instructions with NOP for HVC.
    fn time_calls(&self, run: &CallRun, call: bool) -> Timed;
    /// Times a run of turns; with `call` false, of the same instructions with NOP for every HVC.
    fn time_turns(&self, run: &TurnRun, call: bool) -> Timed;
    /// Times `count` (at least 1) loads, `stride` apart, from `first`, and gives the ticks.
    fn time_loads(&self, first: u64, stride: u64, count: u64) -> u64;
}

/// Where the words of a page are, for scenarios that fill or read whole pages.
pub fn words(page: u64) -> impl Iterator<Item = u64> {
    (0..crate::span::PAGE / 8).map(move |n| page + 8 * n)
}
