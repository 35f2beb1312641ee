//! System registers that trap: one sorted table says what each does, everything else is denied.
//!
//! A trapped access is answered here, by EL2, for every kind of VM: neither the host's opinion of
//! a register nor its knowledge of a value is asked for. A register that is not in [`TABLE`] is
//! UNDEFINED in a protected VM; for other VMs the VMM may emulate it.
#![forbid(unsafe_code)]

use super::context::{Extra, VcpuContext};
use super::idregs::{GuestCpu, IdReg};

/// A system register or instruction by its encoding op0:op1:CRn:CRm:op2, ordered as the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg(u16);

/// `width` bits of `word` from bit `shift`; `width` is at most 8.
const fn bits(word: u64, shift: u32, width: u32) -> u8 {
    let [byte, ..] = (word >> shift).to_le_bytes();
    byte & (0xff_u8 >> (8_u32.saturating_sub(width)))
}

impl SysReg {
    /// The register with these encoding fields; bits beyond a field's width are dropped.
    #[must_use]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        let [op0, op1, crn, crm, op2] =
            [op0 as u16 & 3, op1 as u16 & 7, crn as u16 & 15, crm as u16 & 15, op2 as u16 & 7];
        Self(op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)
    }

    const fn crm(self) -> u8 {
        bits(self.0 as u64, 3, 4)
    }

    const fn op2(self) -> u8 {
        bits(self.0 as u64, 0, 3)
    }
}

/// A trapped MRS, MSR or SYS (EC 0x18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysTrap {
    /// Which register.
    pub reg: SysReg,
    /// The general-purpose register, 31 = XZR.
    pub rt: u8,
    /// True for MRS.
    pub read: bool,
}

impl SysTrap {
    /// Decodes ESR_EL2 of EC 0x18 (Arm ARM D24.2.45).
    #[must_use]
    pub const fn decode(esr: u64) -> Self {
        Self {
            reg: SysReg::new(
                bits(esr, 20, 2),
                bits(esr, 14, 3),
                bits(esr, 10, 4),
                bits(esr, 1, 4),
                bits(esr, 17, 3),
            ),
            rt: bits(esr, 5, 5),
            read: esr & 1 == 1,
        }
    }
}

/// What a trapped register does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Reads zero, ignores writes.
    RazWi,
    /// Reads this, ignores writes.
    Const(u64),
    /// An ID register; a write is UNDEFINED.
    Id,
    /// REVIDR_EL1.
    Revidr,
    /// AIDR_EL1.
    Aidr,
    /// CCSIDR_EL1.
    Ccsidr,
    /// CLIDR_EL1.
    Clidr,
    /// CSSELR_EL1, the vCPU's own.
    Csselr,
    /// ICC_SGI1R_EL1: the VMM delivers.
    Sgi,
    /// A pointer authentication key, which traps until the guest has used one.
    Key,
}

/// First and last register of a run, and what they do. Sorted, runs do not overlap.
#[rustfmt::skip]
const TABLE: &[(SysReg, SysReg, Action)] = {
    const fn one(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, action: Action) -> (SysReg, SysReg, Action) {
        let reg = SysReg::new(op0, op1, crn, crm, op2);
        (reg, reg, action)
    }
    const fn run(op1: u8, crn: u8, from: (u8, u8), to: (u8, u8), action: Action) -> (SysReg, SysReg, Action) {
        (SysReg::new(3, op1, crn, from.0, from.1), SysReg::new(3, op1, crn, to.0, to.1), action)
    }
    use Action::{Aidr, Ccsidr, Clidr, Const, Csselr, Id, Key, RazWi, Revidr, Sgi};
    &[
        // Self-hosted debug: one breakpoint and one watchpoint that do nothing, OS locks that are free.
        one(2, 0, 0, 0, 4, RazWi), // DBGBVR0_EL1
        one(2, 0, 0, 0, 5, RazWi), // DBGBCR0_EL1
        one(2, 0, 0, 0, 6, RazWi), // DBGWVR0_EL1
        one(2, 0, 0, 0, 7, RazWi), // DBGWCR0_EL1
        one(2, 0, 0, 2, 2, RazWi), // MDSCR_EL1
        one(2, 0, 1, 0, 4, RazWi), // OSLAR_EL1
        one(2, 0, 1, 1, 4, RazWi), // OSLSR_EL1
        one(2, 0, 1, 3, 4, RazWi), // OSDLR_EL1
        one(3, 0, 0, 0, 6, Revidr),
        run(0, 0, (1, 0), (7, 7), Id), // ID_* and ID_AA64*
        one(3, 0, 1, 0, 1, RazWi), // ACTLR_EL1
        run(0, 2, (1, 0), (1, 3), Key), // APIAKey*_EL1, APIBKey*_EL1
        run(0, 2, (2, 0), (2, 3), Key), // APDAKey*_EL1, APDBKey*_EL1
        run(0, 2, (3, 0), (3, 1), Key), // APGAKey*_EL1
        run(0, 5, (3, 0), (3, 1), RazWi), // ERRIDR_EL1, ERRSELR_EL1: no error records
        run(0, 5, (4, 0), (5, 7), RazWi), // ERX*_EL1
        one(3, 0, 12, 11, 5, Sgi), // ICC_SGI1R_EL1
        run(0, 12, (11, 6), (11, 7), RazWi), // ICC_ASGI1R_EL1, ICC_SGI0R_EL1: no other group
        one(3, 0, 12, 12, 5, Const(7)), // ICC_SRE_EL1: SRE, DFB, DIB
        one(3, 1, 0, 0, 0, Ccsidr),
        one(3, 1, 0, 0, 1, Clidr),
        one(3, 1, 0, 0, 7, Aidr),
        one(3, 2, 0, 0, 0, Csselr),
        run(3, 14, (2, 0), (2, 2), RazWi), // CNTP_*_EL0: a timer that never fires
    ]
};

const _: () = {
    let mut rest = TABLE;
    let mut before: Option<SysReg> = None;
    while let [(first, last, _), tail @ ..] = rest {
        assert!(first.0 <= last.0);
        if let Some(before) = before {
            assert!(before.0 < first.0, "the table is sorted");
        }
        before = Some(*last);
        rest = tail;
    }
};

fn find(reg: SysReg) -> Option<Action> {
    let after = TABLE.partition_point(|&(first, ..)| first <= reg);
    let &(_, last, action) = TABLE.get(after.checked_sub(1)?)?;
    (reg <= last).then_some(action)
}

/// What comes of a trapped access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; the instruction has been executed.
    Done,
    /// Not in the table, or an access that the register does not allow; nothing changed.
    Denied,
    /// Executed: the VMM has to send this SGI.
    Sgi(u64),
    /// The guest's keys have to be in the CPU; then the instruction is executed again.
    Keys,
}

/// Executes a trapped access of the vCPU `ctx` in an IPA space of `ipa_bits` bits.
#[must_use]
pub fn access(trap: SysTrap, ctx: &mut VcpuContext, cpu: &GuestCpu, ipa_bits: u32) -> Outcome {
    let Some(action) = find(trap.reg) else { return Outcome::Denied };
    let value = match action {
        Action::RazWi => 0,
        Action::Const(value) => value,
        Action::Csselr if !trap.read => {
            // Level and InD; TnD is for tag caches, which are not shown.
            ctx.el1.csselr = ctx.x(trap.rt) & 0xf;
            0
        }
        Action::Csselr => ctx.el1.csselr,
        Action::Key if cpu.has.pauth => return Outcome::Keys,
        Action::Key => return Outcome::Denied,
        Action::Sgi if trap.read => return Outcome::Denied,
        Action::Sgi => {
            let value = ctx.x(trap.rt);
            ctx.skip_instruction();
            return Outcome::Sgi(value);
        }
        Action::Id | Action::Revidr | Action::Aidr | Action::Ccsidr | Action::Clidr if !trap.read => {
            return Outcome::Denied;
        }
        Action::Id => {
            let tags = ctx.extra.contains(Extra::TAGS);
            IdReg::new(trap.reg.crm(), trap.reg.op2()).map_or(0, |reg| cpu.read(reg, ipa_bits, tags))
        }
        Action::Revidr => cpu.revidr,
        Action::Aidr => cpu.aidr,
        Action::Ccsidr => cpu.ccsidr,
        Action::Clidr => cpu.clidr,
    };
    if trap.read {
        ctx.set_x(trap.rt, value);
    }
    ctx.skip_instruction();
    Outcome::Done
}

#[cfg(test)]
mod tests {
    use super::{Outcome, SysReg, SysTrap, TABLE, access, find};
    use crate::guest::context::{Extra, VcpuContext};
    use crate::guest::idregs::{GuestCpu, IdReg, IdRegisters};

    fn cpu() -> GuestCpu {
        let real = IdRegisters {
            group3: [0x1111_1111_1111_1111; 56],
            revidr: 0x51,
            aidr: 0xa1,
            clidr: 0x23,
            ctr: 4 << 16,
            ich_vtr: 3,
        };
        GuestCpu::new(&real)
    }

    fn trap(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, read: bool) -> SysTrap {
        SysTrap { reg: SysReg::new(op0, op1, crn, crm, op2), rt: 3, read }
    }

    fn run(trap: SysTrap) -> (Outcome, VcpuContext) {
        let mut ctx = VcpuContext::new(0, 0x1000, 0, 0);
        ctx.x[3] = 0xdead_beef;
        let outcome = access(trap, &mut ctx, &cpu(), 40);
        (outcome, ctx)
    }

    #[test]
    fn the_syndrome_is_decoded_as_the_architecture_lays_it_out() {
        // MRS X3, ICC_SGI1R_EL1's encoding: 3, 0, 12, 11, 5.
        let esr = 0x18 << 26 | 3 << 20 | 5 << 17 | 12 << 10 | 3 << 5 | 11 << 1 | 1;
        assert_eq!(SysTrap::decode(esr), trap(3, 0, 12, 11, 5, true));
        let esr = 0x6200_0000 | 2 << 20 | 7 << 17 | 7 << 14 | 15 << 10 | 31 << 5 | 15 << 1;
        let reg = SysReg::new(2, 7, 15, 15, 7);
        assert_eq!(SysTrap::decode(esr), SysTrap { reg, rt: 31, read: false });
    }

    #[test]
    fn of_all_encodings_only_those_of_the_table_are_allowed() {
        let allowed = (0..=u16::MAX).filter(|&n| find(SysReg(n)).is_some()).count();
        let listed: usize = TABLE.iter().map(|(a, b, _)| usize::from(b.0 - a.0) + 1).sum();
        assert_eq!(allowed, listed);
        for denied in [
            trap(3, 3, 9, 12, 0, true),  // PMCR_EL0
            trap(3, 0, 10, 4, 0, true),  // LORSA_EL1
            trap(1, 0, 7, 14, 2, false), // DC CISW
            trap(3, 0, 2, 1, 4, true),   // no key
            trap(3, 0, 2, 3, 2, true),   // no key
            trap(3, 0, 2, 0, 0, true),   // TTBR0_EL1, which does not trap for reads
            trap(3, 1, 0, 0, 4, true),   // GMID_EL1
            trap(3, 3, 13, 0, 7, true),  // SCXTNUM_EL0
            trap(3, 0, 11, 0, 0, false), // IMPLEMENTATION DEFINED
            trap(3, 0, 9, 11, 0, true),  // TRBLIMITR_EL1
            trap(2, 0, 0, 1, 4, false),  // DBGBVR1_EL1
        ] {
            let (outcome, ctx) = run(denied);
            assert_eq!(outcome, Outcome::Denied, "{denied:?}");
            assert_eq!((ctx.pc, ctx.x[3]), (0x1000, 0xdead_beef), "nothing changes");
        }
    }

    #[test]
    fn id_registers_read_what_the_guest_is_shown_and_cannot_be_written() {
        for crm in 1..8 {
            for op2 in 0..8 {
                let (outcome, ctx) = run(trap(3, 0, 0, crm, op2, true));
                assert_eq!(outcome, Outcome::Done);
                assert_eq!(ctx.x[3], cpu().read(IdReg::new(crm, op2).unwrap(), 40, false));
                assert_eq!(run(trap(3, 0, 0, crm, op2, false)).0, Outcome::Denied);
            }
        }
        assert_eq!(run(trap(3, 0, 0, 0, 6, true)).1.x[3], 0x51);
        assert_eq!(run(trap(3, 1, 0, 0, 7, true)).1.x[3], 0xa1);
        assert_eq!(run(trap(3, 1, 0, 0, 0, true)).1.x[3], 2);
        assert_eq!(run(trap(3, 1, 0, 0, 1, true)).1.x[3], 0x23);
        assert_eq!(run(trap(3, 1, 0, 0, 1, false)).0, Outcome::Denied);
    }

    #[test]
    fn a_guest_with_mte_reads_that_it_has_it() {
        let mut ctx = VcpuContext::new(0, 0x1000, 0, 0);
        ctx.extra = Extra::TAGS;
        assert_eq!(access(trap(3, 0, 0, 4, 1, true), &mut ctx, &cpu(), 40), Outcome::Done);
        assert_eq!(ctx.x[3], cpu().read(IdReg::PFR1, 40, true));
        assert_ne!(ctx.x[3], cpu().read(IdReg::PFR1, 40, false));
    }

    #[test]
    fn debug_registers_read_zero_and_swallow_writes() {
        for (crn, crm, op2) in [(0, 0, 4), (0, 0, 7), (0, 2, 2), (1, 0, 4), (1, 1, 4), (1, 3, 4)] {
            let (outcome, ctx) = run(trap(2, 0, crn, crm, op2, true));
            assert_eq!((outcome, ctx.x[3], ctx.pc), (Outcome::Done, 0, 0x1004));
            let (outcome, ctx) = run(trap(2, 0, crn, crm, op2, false));
            assert_eq!((outcome, ctx.x[3], ctx.pc), (Outcome::Done, 0xdead_beef, 0x1004));
        }
    }

    #[test]
    fn an_sgi_goes_to_the_vmm_once_the_instruction_is_behind() {
        let (outcome, ctx) = run(trap(3, 0, 12, 11, 5, false));
        assert_eq!((outcome, ctx.pc), (Outcome::Sgi(0xdead_beef), 0x1004));
        assert_eq!(run(trap(3, 0, 12, 11, 5, true)).0, Outcome::Denied);
        assert_eq!(run(trap(3, 0, 12, 11, 7, false)).0, Outcome::Done, "no Group 0 to send to");
    }

    #[test]
    fn keys_are_for_the_cpu_to_hold_if_it_can() {
        for (crm, op2) in [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1)] {
            for read in [true, false] {
                let key = trap(3, 0, 2, crm, op2, read);
                let (outcome, ctx) = run(key);
                assert_eq!((outcome, ctx.pc, ctx.x[3]), (Outcome::Keys, 0x1000, 0xdead_beef));
                let mut ctx = VcpuContext::new(0, 0x1000, 0, 0);
                let mut none = cpu();
                none.has.pauth = false;
                assert_eq!(access(key, &mut ctx, &none, 40), Outcome::Denied);
            }
        }
    }

    #[test]
    fn the_cache_selector_is_the_vcpus_own() {
        let (_, mut ctx) = run(trap(3, 2, 0, 0, 0, false));
        assert_eq!(ctx.el1.csselr, 0xf);
        ctx.el1.csselr = 2;
        assert_eq!(access(trap(3, 2, 0, 0, 0, true), &mut ctx, &cpu(), 40), Outcome::Done);
        assert_eq!(ctx.x[3], 2);
    }

    #[test]
    fn a_read_into_the_zero_register_changes_no_register() {
        let mut ctx = VcpuContext::new(0, 0x1000, 0, 0);
        let xzr = SysTrap { rt: 31, ..trap(3, 0, 0, 0, 6, true) };
        assert_eq!(access(xzr, &mut ctx, &cpu(), 40), Outcome::Done);
        assert_eq!(ctx.x, [0; 31]);
    }
}
