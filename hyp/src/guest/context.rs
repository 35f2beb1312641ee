//! What a vCPU is: the registers that a guest is shown, as plain data that `arch` switches.
//!
//! `arch` reads and writes these structures by field offset; nothing here has a bit of meaning
//! that the architecture does not give it. What a guest is *not* shown (SVE, SME, PMU, debug,
//! MTE without a policy for it, ...) is trapped by [`super::traps`] and has no place here. The registers are those of
//! Arm ARM D24 that EL1 and EL0 can reach.
#![forbid(unsafe_code)]

use super::pstate::Pstate;
use abi::exit::MAX_LRS;
use abi::vm::{mpidr, reg};
use bitflags::bitflags;

/// Everything that is switched when a vCPU runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct VcpuContext {
    /// X0..X30.
    pub x: [u64; 31],
    /// The program counter, ELR_EL2 of the exit.
    pub pc: u64,
    /// PSTATE, SPSR_EL2 of the exit.
    pub pstate: Pstate,
    /// SP_EL0.
    pub sp_el0: u64,
    /// VMPIDR_EL2.
    pub mpidr: u64,
    /// The registers of EL1.
    pub el1: El1Context,
    /// The virtual timer.
    pub timer: TimerContext,
    /// The virtual CPU interface.
    pub gic: GicContext,
    /// What is switched besides what every vCPU has.
    pub extra: Extra,
    /// APIA, APIB, APDA, APDB, APGA, each Lo then Hi; with [`Extra::KEYS`].
    pub pauth: [u64; 10],
    /// With [`Extra::TAGS`].
    pub tags: TagContext,
    /// FP and SIMD registers, switched when the guest first uses them.
    pub fp: FpContext,
}

bitflags! {
    /// What only some vCPUs have. One word, which a switch asks once.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Extra: u8 {
        /// The guest has used pointer authentication (FEAT_PAuth). Until then all use of it traps, and
        /// the CPU holds keys that are not the guest's.
        const KEYS = 1 << 0;
        /// The guest has MTE; for the life of the VM.
        const TAGS = 1 << 1;
    }
}

/// The registers of FEAT_MTE2 that EL1 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "each field is the register of its name, _EL1")]
pub struct TagContext {
    pub rgsr: u64,
    pub gcr: u64,
    pub tfsr: u64,
    /// TFSRE0_EL1.
    pub tfsre0: u64,
}

/// The EL1 registers that a guest owns, besides the stack pointer of EL0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "each field is the register of its name, _EL1 unless said")]
pub struct El1Context {
    /// SP_EL1.
    pub sp: u64,
    pub elr: u64,
    pub spsr: u64,
    pub cpacr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub esr: u64,
    pub far: u64,
    pub mair: u64,
    pub vbar: u64,
    pub contextidr: u64,
    pub cntkctl: u64,
    pub par: u64,
    pub tpidr: u64,
    /// TPIDR_EL0.
    pub tpidr_el0: u64,
    /// TPIDRRO_EL0.
    pub tpidrro_el0: u64,
    pub sctlr: u64,
    pub tcr: u64,
    /// Switched on CPUs that cannot trap a guest's accesses.
    pub csselr: u64,
    /// VDISR_EL2, what ESB shows to the guest; switched on CPUs with FEAT_RAS.
    pub vdisr: u64,
    /// Switched, with the next two, on CPUs where they hold anything.
    pub afsr0: u64,
    pub afsr1: u64,
    pub amair: u64,
}

/// CNTV_* and its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct TimerContext {
    /// CNTV_CTL_EL0.
    pub ctl: u64,
    /// CNTV_CVAL_EL0.
    pub cval: u64,
    /// CNTVOFF_EL2, one value for all vCPUs of a VM.
    pub offset: u64,
}

impl TimerContext {
    const ENABLE: u64 = 1 << 0;
    const IMASK: u64 = 1 << 1;

    /// The physical counter value at which the timer fires, or
    /// [`NO_DEADLINE`](abi::exit::NO_DEADLINE) if it is off or masked.
    #[must_use]
    pub const fn deadline(&self) -> u64 {
        if self.ctl & (Self::ENABLE | Self::IMASK) != Self::ENABLE {
            return abi::exit::NO_DEADLINE;
        }
        // The one value that would read as "none" is 2^64 ticks away.
        match self.cval.wrapping_add(self.offset) {
            abi::exit::NO_DEADLINE => abi::exit::NO_DEADLINE.wrapping_sub(1),
            deadline => deadline,
        }
    }
}

/// ICH_*: the virtual CPU interface. Group 0 has no list register, its state is the guest's toy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct GicContext {
    /// ICH_HCR_EL2 of this turn.
    pub hcr: u64,
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    /// How many of `lr` this turn uses; the others are zero in hardware.
    pub nr_lr: u64,
    /// ICH_AP0R`n`_EL2, as many as are implemented.
    pub ap0r: [u64; 4],
    /// ICH_AP1R`n`_EL2.
    pub ap1r: [u64; 4],
    /// ICH_LR`n`_EL2, checked by [`super::gic`]; those past `nr_lr` are not loaded.
    pub lr: [u64; MAX_LRS],
}

impl GicContext {
    /// The list registers that this turn uses.
    #[must_use]
    pub fn used(&self) -> &[u64] {
        let used = usize::try_from(self.nr_lr).unwrap_or(MAX_LRS);
        self.lr.get(..used).unwrap_or(&self.lr)
    }

    /// The same, to be written.
    pub fn used_mut(&mut self) -> &mut [u64] {
        let used = usize::try_from(self.nr_lr).unwrap_or(MAX_LRS).min(MAX_LRS);
        self.lr.get_mut(..used).unwrap_or_default()
    }
}

/// V0..V31 (lower half first), FPSR, FPCR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FpContext {
    /// V0..V31.
    pub v: [[u64; 2]; 32],
    /// FPSR.
    pub fpsr: u64,
    /// FPCR.
    pub fpcr: u64,
}

impl FpContext {
    /// All zero.
    pub const RESET: Self = Self { v: [[0; 2]; 32], fpsr: 0, fpcr: 0 };
}

/// The place of register `$number`, which is plain data that may be read and written at will.
macro_rules! slot {
    ($ctx:expr, $number:expr, $get:ident $(, $mutable:tt)?) => {{
        let el1 = & $($mutable)? $ctx.el1;
        match $number {
            0..=reg::X30 => $ctx.x.$get(usize::try_from($number).ok()?)?,
            reg::PC => & $($mutable)? $ctx.pc,
            reg::SP_EL0 => & $($mutable)? $ctx.sp_el0,
            reg::SP_EL1 => & $($mutable)? el1.sp,
            reg::ELR_EL1 => & $($mutable)? el1.elr,
            reg::SPSR_EL1 => & $($mutable)? el1.spsr,
            reg::SCTLR_EL1 => & $($mutable)? el1.sctlr,
            reg::CPACR_EL1 => & $($mutable)? el1.cpacr,
            reg::TTBR0_EL1 => & $($mutable)? el1.ttbr0,
            reg::TTBR1_EL1 => & $($mutable)? el1.ttbr1,
            reg::TCR_EL1 => & $($mutable)? el1.tcr,
            reg::ESR_EL1 => & $($mutable)? el1.esr,
            reg::AFSR0_EL1 => & $($mutable)? el1.afsr0,
            reg::AFSR1_EL1 => & $($mutable)? el1.afsr1,
            reg::FAR_EL1 => & $($mutable)? el1.far,
            reg::MAIR_EL1 => & $($mutable)? el1.mair,
            reg::AMAIR_EL1 => & $($mutable)? el1.amair,
            reg::VBAR_EL1 => & $($mutable)? el1.vbar,
            reg::CONTEXTIDR_EL1 => & $($mutable)? el1.contextidr,
            reg::CNTKCTL_EL1 => & $($mutable)? el1.cntkctl,
            reg::PAR_EL1 => & $($mutable)? el1.par,
            reg::TPIDR_EL1 => & $($mutable)? el1.tpidr,
            reg::TPIDR_EL0 => & $($mutable)? el1.tpidr_el0,
            reg::TPIDRRO_EL0 => & $($mutable)? el1.tpidrro_el0,
            reg::CNTV_CTL_EL0 => & $($mutable)? $ctx.timer.ctl,
            reg::CNTV_CVAL_EL0 => & $($mutable)? $ctx.timer.cval,
            reg::PAUTH_KEYS..reg::FPSR => {
                let n = $number.checked_sub(reg::PAUTH_KEYS)?;
                $ctx.pauth.$get(usize::try_from(n).ok()?)?
            }
            reg::FPSR => & $($mutable)? $ctx.fp.fpsr,
            reg::FPCR => & $($mutable)? $ctx.fp.fpcr,
            reg::RGSR_EL1 => & $($mutable)? $ctx.tags.rgsr,
            reg::GCR_EL1 => & $($mutable)? $ctx.tags.gcr,
            reg::TFSR_EL1 => & $($mutable)? $ctx.tags.tfsr,
            reg::TFSRE0_EL1 => & $($mutable)? $ctx.tags.tfsre0,
            reg::V0..reg::RGSR_EL1 => {
                let n = usize::try_from($number.checked_sub(reg::V0)?).ok()?;
                $ctx.fp.v.$get(n / 2)?.$get(n % 2)?
            }
            _ => return None,
        }
    }};
}

/// SCTLR_EL1 of a vCPU that starts: MMU and caches off, little endian, WFI, WFE and CTR_EL0
/// usable at EL0, alignment of SP checked. What later architectures leave RES1 is set.
const SCTLR_RESET: u64 = 0x00c5_0078;

impl VcpuContext {
    /// vCPU `idx` before its first instruction, at `pc` with `x0`, in a VM whose virtual counter
    /// lags `offset` ticks behind the physical one.
    #[must_use]
    pub const fn new(idx: u8, pc: u64, x0: u64, offset: u64) -> Self {
        let mut x = [0; 31];
        x[0] = x0;
        Self {
            x,
            pc,
            pstate: Pstate::RESET,
            sp_el0: 0,
            mpidr: mpidr(idx),
            el1: El1Context {
                sctlr: SCTLR_RESET,
                sp: 0,
                elr: 0,
                spsr: 0,
                cpacr: 0,
                ttbr0: 0,
                ttbr1: 0,
                tcr: 0,
                esr: 0,
                afsr0: 0,
                afsr1: 0,
                far: 0,
                mair: 0,
                amair: 0,
                vbar: 0,
                contextidr: 0,
                cntkctl: 0,
                par: 0,
                tpidr: 0,
                tpidr_el0: 0,
                tpidrro_el0: 0,
                csselr: 0,
                vdisr: 0,
            },
            timer: TimerContext { ctl: 0, cval: 0, offset },
            gic: GicContext { hcr: 0, vmcr: 0, nr_lr: 0, ap0r: [0; 4], ap1r: [0; 4], lr: [0; MAX_LRS] },
            extra: Extra::empty(),
            pauth: [0; 10],
            tags: TagContext { rgsr: 0, gcr: 0, tfsr: 0, tfsre0: 0 },
            fp: FpContext::RESET,
        }
    }

    /// Starts the vCPU afresh at `pc` with `x0` (PSCI CPU_ON).
    pub const fn restart(&mut self, idx: u8, pc: u64, x0: u64) {
        let extra = self.extra.intersection(Extra::TAGS);
        *self = Self::new(idx, pc, x0, self.timer.offset);
        self.extra = extra;
    }

    /// Xn; X31 is the zero register.
    #[must_use]
    #[inline]
    pub fn x(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    /// Sets Xn; X31 takes nothing.
    #[inline]
    pub fn set_x(&mut self, n: u8, value: u64) {
        if let Some(x) = self.x.get_mut(usize::from(n)) {
            *x = value;
        }
    }

    /// Goes on behind the current instruction: A64 instructions are 4 bytes; single step and
    /// branch type are as after an instruction that was executed.
    #[inline]
    pub const fn skip_instruction(&mut self) {
        self.pc = self.pc.wrapping_add(4);
        self.pstate = self.pstate.after_instruction();
    }

    /// A register by its number in [`abi::vm::reg`]; `None` if there is none of that number.
    #[must_use]
    pub fn register(&self, number: u64) -> Option<u64> {
        Some(match number {
            reg::PSTATE => self.pstate.raw(),
            reg::CNTVOFF => self.timer.offset,
            reg::MPIDR_EL1 => self.mpidr,
            _ => *slot!(self, number, get),
        })
    }

    /// Sets a register by its number; `None` if there is none, it is read only, or PSTATE asks
    /// for what a guest cannot be in.
    pub fn set_register(&mut self, number: u64, value: u64) -> Option<()> {
        match number {
            reg::PSTATE => self.pstate = Pstate::new(value)?,
            reg::CNTV_CTL_EL0 => self.timer.ctl = value & (TimerContext::ENABLE | TimerContext::IMASK),
            _ => *slot!(self, number, get_mut, mut) = value,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Extra, TimerContext, VcpuContext};
    use abi::exit::NO_DEADLINE;
    use abi::vm::reg;

    #[test]
    fn every_number_names_a_register_of_its_own() {
        for n in 0..reg::END {
            let mut ctx = VcpuContext::new(3, 0x8000, 7, 99);
            let before = ctx.register(n).unwrap();
            let wanted = if n == reg::PSTATE { 0x6000_0000 } else { before ^ 1 };
            let read_only = n == reg::CNTVOFF || n == reg::MPIDR_EL1;
            assert_eq!(ctx.set_register(n, wanted).is_none(), read_only, "{n}");
            for m in 0..reg::END {
                let fresh = VcpuContext::new(3, 0x8000, 7, 99).register(m).unwrap();
                let expected = if m == n && !read_only { wanted } else { fresh };
                assert_eq!(ctx.register(m), Some(expected), "set {n}, read {m}");
            }
        }
        let mut ctx = VcpuContext::new(0, 0, 0, 0);
        for n in [reg::END, u64::MAX] {
            assert_eq!(ctx.register(n), None);
            assert_eq!(ctx.set_register(n, 0), None);
        }
    }

    #[test]
    fn a_pstate_of_el2_is_not_taken() {
        let mut ctx = VcpuContext::new(0, 0, 0, 0);
        let before = ctx.pstate;
        assert_eq!(ctx.set_register(reg::PSTATE, 0x3c9), None);
        assert_eq!(ctx.pstate, before);
    }

    #[test]
    fn the_zero_register_reads_zero_and_takes_nothing() {
        let mut ctx = VcpuContext::new(0, 0, 5, 0);
        let before = ctx.clone();
        ctx.set_x(31, u64::MAX);
        assert_eq!(ctx, before);
        assert_eq!((ctx.x(31), ctx.x(0)), (0, 5));
    }

    #[test]
    fn a_timer_has_a_deadline_only_while_it_can_interrupt() {
        let at = |ctl, cval, offset| TimerContext { ctl, cval, offset }.deadline();
        assert_eq!(at(1, 100, 7), 107);
        assert_eq!(at(5, 100, 7), 107, "ISTATUS is not asked for");
        for ctl in [0, 2, 3, 4, 6, 7] {
            assert_eq!(at(ctl, 100, 7), NO_DEADLINE, "{ctl}");
        }
        assert_eq!(at(1, u64::MAX, 0), NO_DEADLINE - 1);
        assert_eq!(at(1, u64::MAX, 2), 1);
    }

    #[test]
    fn a_restart_keeps_nothing_but_the_clock_and_what_the_vm_is() {
        let mut ctx = VcpuContext::new(2, 0x1000, 1, 42);
        for n in 0..reg::END {
            let _ = ctx.set_register(n, 0x55);
        }
        ctx.gic.vmcr = 9;
        ctx.extra = Extra::all();
        ctx.restart(2, 0x2000, 8);
        assert_eq!(ctx, VcpuContext { extra: Extra::TAGS, ..VcpuContext::new(2, 0x2000, 8, 42) });
    }
}
