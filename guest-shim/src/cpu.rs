//! The seam between payloads and the vCPU, as one trait.
#![forbid(unsafe_code)]

pub use el1::{CallRun, Regs};

use core::fmt;

/// What came of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// x0 afterwards.
    pub x0: u64,
    /// Virtual address of the instruction.
    pub at: u64,
    /// The exception that it took.
    pub exception: Option<Exception>,
}

/// What the vCPU held when an exception had been taken to EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Offset from VBAR_EL1.
    pub vector: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// DAIF.
    pub masks: u64,
}

/// An instruction that may do anything to the vCPU but change x30.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The instruction.
    pub instruction: u32,
    /// x0..x27 before; SP is x0 without its lowest bits.
    pub x: [u64; 28],
    /// Which addresses it has.
    pub stage1: Stage1,
    /// Ticks after which the virtual timer fires, if it does.
    pub timer: Option<u64>,
}

/// Stage 1 of an [`Attempt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage1 {
    /// None.
    Off,
    /// The guest's map.
    Own,
    /// The same, and tables of the caller's choice for the upper half of the addresses.
    Upper {
        /// TTBR1_EL1.
        root: u64,
        /// TCR_EL1, of which bits 31:24 and 21:16 count.
        tcr: u64,
    },
}

/// What came of an [`Attempt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// x0 afterwards.
    pub x0: u64,
    /// The exception that it took.
    pub taken: Option<Taken>,
}

/// An exception of an [`Attempt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Number of the vector.
    pub vector: u64,
    /// ESR_EL1, which an interrupt does not set.
    pub esr: u64,
}

/// Width of an access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// LDRB, STRB.
    Byte,
    /// LDRH, STRH.
    Half,
    /// LDR, STR of a W register.
    Word,
    /// LDR, STR of an X register.
    Double,
}

/// The vCPU as the code that runs on it sees it.
pub trait Cpu: fmt::Debug {
    /// Its index.
    fn index(&self) -> u64;
    /// HVC #0.
    fn hvc(&self, regs: &Regs) -> Regs;
    /// SMC #0.
    fn smc(&self, regs: &Regs) -> Regs;
    /// Loads the word at an address of RAM.
    fn load(&self, address: u64) -> u64;
    /// Stores the word at an address of RAM.
    fn store(&self, address: u64, value: u64);
    /// Adds 1 to the word at an address of RAM that other vCPUs add to as well.
    fn increment(&self, address: u64);
    /// Loads from a device.
    fn read(&self, width: Width, address: u64) -> u64;
    /// Stores to a device.
    fn write(&self, width: Width, address: u64, value: u64);
    /// Executes one instruction with `x0`; it may change x0 and nothing else.
    fn execute(&self, instruction: u32, x0: u64) -> Seen;
    /// The same at EL0, which has the addresses from [`crate::protocol::USER`] on.
    fn execute_user(&self, instruction: u32, x0: u64) -> Seen;
    /// Executes one instruction and puts the vCPU right again. vCPU 0 alone may.
    fn attempt(&self, attempt: &Attempt) -> Attempted;
    /// WFI.
    fn wait(&self);
    /// WFI, and the interrupt that ends it, until `done`. They are masked while that is asked: one that comes between the
    /// answer and WFI ends WFI all the same. They must have been enabled.
    fn wait_until(&self, done: &dyn Fn() -> bool);
    /// WFE.
    fn pause(&self);

    /// CNTVCT_EL0.
    fn ticks(&self) -> u64;
    /// CNTFRQ_EL0.
    fn frequency(&self) -> u64;
    /// Takes interrupts from here on.
    fn enable_interrupts(&self);
    /// Sets the virtual timer off in `ticks`; its interrupt turns it off.
    fn set_timer(&self, ticks: u64);
    /// Timer interrupts that this vCPU has taken.
    fn timer_interrupts(&self) -> u64;
    /// Sends SGI `id` to the vCPUs of `targets`, a bit for each.
    fn send_sgi(&self, id: u64, targets: u64);
    /// SGIs that this vCPU has taken.
    fn sgis(&self) -> u64;

    /// Where CPU_ON lets another vCPU begin.
    fn secondary_entry(&self) -> u64;
    /// Fills V0..V31 with words made of `seed`.
    fn fill_fp(&self, seed: u64);
    /// True if V0..V31 hold what [`Cpu::fill_fp`] put there.
    fn fp_holds(&self, seed: u64) -> bool;

    /// Times a run of calls, or of the same instructions without the calls if its function id is 0:
    /// ticks, and x0 of every call ORed.
    fn time_calls(&self, run: &CallRun) -> (u64, u64);
    /// `1: wfi; b 1b`.
    fn idle(&self) -> !;
    /// `1: ldr w1, [address]; b 1b`.
    fn load_for_ever(&self, address: u64) -> !;
    /// `1: str w1, [address]; b 1b`.
    fn store_for_ever(&self, address: u64) -> !;
    /// Stores to `address` and every `step` bytes above it, three instructions each.
    fn touch_for_ever(&self, address: u64, step: u64) -> !;
    /// SMC with `id`, `base`, `top`, 1, 1; then with 0 for the first 1; and so on.
    fn claim_for_ever(&self, id: u32, base: u64, top: u64) -> !;
    /// Holds `value` in x0..x28 and idles.
    fn idle_with(&self, value: u64) -> !;
    /// Returns to AArch32 at EL0: an exception of the guest's own where the CPU has none.
    fn enter_aarch32(&self) -> !;
}
