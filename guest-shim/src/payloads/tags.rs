//! `Tags`, `TagPages`, `TagStores`: memory tags, on pages that have some and on pages that do not yet.
#![forbid(unsafe_code)]

use super::{Env, Failure, Outcome};
use crate::protocol::tags::{self, GRANULE, LOUD, PAGE, QUIET, REGISTERS, of_granule};
use crate::protocol::{MAILBOX, SCRATCH, TAGGED, WALKED, pattern, word};
use abi::psci;

/// Instructions (Arm ARM C6.2), with x0 as every register.
mod code {
    const MRS: u32 = 0xd538_0000;
    const MSR: u32 = 0xd518_0000;
    const PFR1: u32 = 4 << 8 | 1 << 5;
    const PFR2: u32 = 4 << 8 | 2 << 5;
    const SCTLR: u32 = 1 << 12;
    const TCR: u32 = 2 << 12 | 2 << 5;
    pub(super) const READ_PFR1: u32 = MRS | PFR1;
    pub(super) const READ_PFR2: u32 = MRS | PFR2;
    pub(super) const READ_SCTLR: u32 = MRS | SCTLR;
    pub(super) const WRITE_SCTLR: u32 = MSR | SCTLR;
    pub(super) const READ_TCR: u32 = MRS | TCR;
    pub(super) const WRITE_TCR: u32 = MSR | TCR;
    /// TTBR0_EL1.
    const TTBR0: u32 = 2 << 12;
    pub(super) const READ_TTBR0: u32 = MRS | TTBR0;
    pub(super) const WRITE_TTBR0: u32 = MSR | TTBR0;
    /// TLBI VMALLE1.
    pub(super) const FORGET_STAGE_1: u32 = 0xd508_871f;
    pub(super) const READ_DCZID: u32 = MRS | 3 << 16 | 7 << 5;
    pub(super) const READ_GMID: u32 = MRS | 1 << 16 | 4 << 5;
    /// RGSR_EL1, GCR_EL1, TFSR_EL1, TFSRE0_EL1, and a value that each can hold.
    pub(super) const TAG_REGISTERS: [(u32, u64); 4] = [
        (1 << 12 | 5 << 5, 0x00ab_cd05),
        (1 << 12 | 6 << 5, 0x1_5a5a),
        (5 << 12 | 6 << 8, 1),
        (5 << 12 | 6 << 8 | 1 << 5, 2),
    ];
    pub(super) const fn read(register: u32) -> u32 {
        MRS | register
    }
    pub(super) const fn write(register: u32) -> u32 {
        MSR | register
    }
    pub(super) const LDG: u32 = 0xd960_0000;
    pub(super) const STG: u32 = 0xd920_0800;
    pub(super) const ST2G: u32 = 0xd9a0_0800;
    pub(super) const STZG: u32 = 0xd960_0800;
    /// `STG x0, [x0], #16`: x0 says how often it was done.
    pub(super) const STG_NEXT: u32 = 0xd920_0400 | 1 << 12;
    /// Tags of a block of granules that are the digits of x0, and as such.
    pub(super) const STGM: u32 = 0xd9a0_0000;
    pub(super) const LDGM: u32 = 0xd9e0_0000;
    /// DC GVA and DC GZVA: the tag in x0 for a block of granules, and zeros with it.
    pub(super) const GVA: u32 = 0xd50b_7460;
    pub(super) const GZVA: u32 = 0xd50b_7480;
    /// `STR xzr, [x0], #8`.
    pub(super) const CLEAR_NEXT: u32 = 0xf800_841f;
    /// `LDR x0, [x0]`: checked where the page is Tagged and SCTLR_EL1.TCF is not 0.
    pub(super) const LDR: u32 = 0xf940_0000;
    /// `STR x0, [x0]`.
    pub(super) const STR: u32 = 0xf900_0000;
    /// MSR TCO, #0 and #1.
    pub(super) const CHECK: u32 = 0xd503_409f;
    pub(super) const DO_NOT_CHECK: u32 = 0xd503_419f;
}

/// SCTLR_EL1.ATA: tag instructions reach tags.
const ATA: u64 = 1 << 43;
/// SCTLR_EL1.TCF = 1: a failed check of EL1 is a synchronous exception.
const TCF_SYNC: u64 = 1 << 40;
const TCF: u64 = 3 << 40;
/// TCR_EL1.TBI0: the top byte of an address is no part of it.
const TBI0: u64 = 1 << 37;
/// ESR_EL1 of an instruction that does not exist.
const UNDEFINED: u64 = 1 << 25;
/// ESR_EL1 of a load from an address whose entry of stage 1, of level 2, is invalid: data abort, 32-bit instruction.
const NO_TRANSLATION: u64 = 0x25 << 26 | 1 << 25 | 6;
/// An address whose entry of level 1 is put there by [`walks`].
const HOLLOW: u64 = WALKED + (1 << 30);
/// DFSC of a failed check.
const TAG_CHECK_FAULT: u64 = 0x11;

/// A digit in each place.
const DIGITS: u64 = 0x1111_1111_1111_1111;

/// A byte of page `n`, Tagged.
const fn at(n: u64, offset: u64) -> u64 {
    TAGGED + SCRATCH + n * PAGE + offset
}

/// `address` with `tag`.
const fn with(address: u64, tag: u64) -> u64 {
    address | tag << 56
}

impl Env<'_> {
    /// Executes an instruction that takes no exception.
    #[track_caller]
    fn runs(&self, instruction: u32, x0: u64) -> Result<u64, Failure> {
        let seen = self.cpu.execute(instruction, x0);
        self.require(seen.exception.is_none(), seen.exception.map_or(0, |e| e.esr))?;
        Ok(seen.x0)
    }

    /// The tag of the granule at `address`.
    #[track_caller]
    fn tag(&self, address: u64) -> Result<u64, Failure> {
        Ok(self.runs(code::LDG, address)? >> 56 & 0xf)
    }

    /// True if the CPU says that it has FEAT_MTE2.
    fn has_tags(&self) -> Result<bool, Failure> {
        Ok(self.runs(code::READ_PFR1, 0)? >> 8 & 0xf >= 2)
    }

    /// Stores tag `tag` at the beginning of a page in each way that stores tags of many granules, and loads it back as
    /// LDGM does; fails unless that is `stored`, or 0 if it is not.
    #[track_caller]
    fn many_tags(&self, page: u64, tag: u64, stored: bool) -> Outcome {
        let (block, tags) = (self.digits(code::READ_GMID)?, (tag * DIGITS) & self.digits(code::READ_DCZID)?);
        for (instruction, digits) in [(code::GVA, tags), (code::GZVA, tags), (code::STGM, with(page, tag))] {
            self.runs(instruction, with(page, tag))?;
            let want = if stored { digits & block } else { 0 };
            self.equal(self.runs(code::LDGM, page)?, want)?;
        }
        Ok(())
    }

    /// A digit, all bits set, for each granule of the block that `register` says, of 16 granules at most. Bits 3:0
    /// are its words, as a power of two.
    fn digits(&self, register: u32) -> Result<u64, Failure> {
        let granules: u64 = 1 << (self.runs(register, 0)? & 0xf) >> 2;
        Ok(u64::MAX >> (64 - 4 * granules.min(16)))
    }

    /// Sets ATA and TCF of SCTLR_EL1.
    fn control(&self, bits: u64) -> Outcome {
        let control = self.runs(code::READ_SCTLR, 0)? & !(ATA | TCF);
        self.runs(code::WRITE_SCTLR, control | bits)?;
        // The next instruction comes behind an ISB.
        self.equal(self.runs(code::READ_SCTLR, 0)? & (ATA | TCF), bits)
    }

    /// Addresses have tags, and instructions reach those of memory.
    fn use_tags(&self) -> Outcome {
        let translation = self.runs(code::READ_TCR, 0)?;
        self.runs(code::WRITE_TCR, translation | TBI0)?;
        self.control(ATA)
    }
}

/// Every way to reach a tag, and every way not to.
pub(super) fn run(env: &Env<'_>) -> Outcome {
    // What came after MTE3, NoTagAccess with it, is not shown.
    env.equal(env.runs(code::READ_PFR2, 0)?, 0)?;
    if !env.has_tags()? {
        return none(env);
    }
    env.use_tags()?;
    quiet(env)?;
    env.doorbell(QUIET)?;
    loud(env)?;
    env.doorbell(LOUD)?;
    checks(env)?;
    registers(env)
}

/// A VM without MTE: no field, no register, and memory as ever.
fn none(env: &Env<'_>) -> Outcome {
    env.equal(env.runs(code::READ_PFR1, 0)? >> 8 & 0xf, 0)?;
    for (register, value) in code::TAG_REGISTERS {
        for instruction in [code::read(register), code::write(register)] {
            let seen = env.cpu.execute(instruction, value).exception.map(|e| e.esr);
            env.require(seen == Some(UNDEFINED), seen.unwrap_or_default())?;
        }
    }
    for n in 0..tags::PAGES {
        env.cpu.store(SCRATCH + n * PAGE, n);
    }
    (0..tags::PAGES).try_for_each(|n| env.equal(env.cpu.load(SCRATCH + n * PAGE), n))
}

/// Accesses that have nothing to do with tags.
fn quiet(env: &Env<'_>) -> Outcome {
    // Tagged memory, but SCTLR_EL1.TCF is 0.
    for offset in (0..PAGE).step_by(8) {
        env.equal(env.cpu.load(at(0, offset)), 0)?;
        env.cpu.store(at(0, offset), pattern(offset));
    }
    // Memory that stage 1 does not make Tagged.
    let plain = SCRATCH + PAGE;
    env.runs(code::STG, with(plain, 5))?;
    env.equal(env.tag(plain)?, 0)?;
    env.many_tags(plain, 5, false)?;
    // PSTATE.TCO.
    env.control(ATA | TCF_SYNC)?;
    env.runs(code::DO_NOT_CHECK, 0)?;
    env.equal(env.runs(code::LDR, with(at(2, 0), 3))?, 0)?;
    env.runs(code::CHECK, 0)?;
    // SCTLR_EL1.ATA.
    env.control(0)?;
    env.runs(code::STG, with(at(3, 0), 5))?;
    env.equal(env.tag(at(3, 0))?, 0)?;
    env.many_tags(at(3, 0), 5, false)?;
    walks(env)?;
    (0..PAGE).step_by(8).try_for_each(|offset| env.equal(env.cpu.load(at(0, offset)), pattern(offset)))
}

/// Walks of stage 1 through memory without tags: tables are not Tagged. One table is written first, of the other the
/// walk itself is the first access.
fn walks(env: &Env<'_>) -> Outcome {
    let (root, table) = (SCRATCH + 4 * PAGE, SCRATCH + 5 * PAGE);
    let was = env.runs(code::READ_TTBR0, 0)?;
    for offset in (0..PAGE).step_by(8) {
        env.cpu.store(root + offset, env.cpu.load(was + offset));
    }
    // An entry of level 1 is a GiB; bits 1:0 make it a table.
    env.cpu.store(root + 8 * (HOLLOW >> 30), table | 3);
    env.runs(code::WRITE_TTBR0, root)?;
    env.runs(code::FORGET_STAGE_1, 0)?;
    let seen = env.cpu.execute(code::LDR, HOLLOW).exception.map_or(0, |e| e.esr);
    env.runs(code::WRITE_TTBR0, was)?;
    env.runs(code::FORGET_STAGE_1, 0)?;
    env.equal(seen, NO_TRANSLATION)
}

/// Accesses to tags, each to a page of its own, and checked ones, which read them.
fn loud(env: &Env<'_>) -> Outcome {
    env.control(ATA | TCF_SYNC)?;
    env.equal(env.tag(at(6, 0))?, 0)?;
    env.runs(code::STG, with(at(7, 0), 5))?;
    env.runs(code::ST2G, with(at(8, 0), 6))?;
    env.cpu.store(SCRATCH + 9 * PAGE, 0x5a);
    env.cpu.store(SCRATCH + 9 * PAGE + GRANULE, 0x5b);
    env.runs(code::STZG, with(at(9, 0), 7))?;
    env.equal(env.runs(code::LDR, at(10, 0))?, 0)?;
    env.runs(code::STR, at(11, 0))?;

    for (n, offset, tag) in
        [(7, 0, 5), (7, GRANULE, 0), (8, 0, 6), (8, GRANULE, 6), (8, 2 * GRANULE, 0), (9, 0, 7)]
    {
        env.equal(env.tag(at(n, offset))?, tag)?;
    }
    env.equal(env.cpu.load(SCRATCH + 9 * PAGE), 0)?;
    env.equal(env.cpu.load(SCRATCH + 9 * PAGE + GRANULE), 0x5b)?;
    env.equal(env.cpu.load(SCRATCH + 11 * PAGE), at(11, 0))?;
    blocks(env)
}

/// Instructions that reach the tags of many granules, each on a page of its own, then all on one that has tags by now.
fn blocks(env: &Env<'_>) -> Outcome {
    let block = env.digits(code::READ_GMID)?;
    env.equal(env.runs(code::LDGM, at(12, 0))?, 0)?;
    let digits = with(at(13, 0), 9);
    env.runs(code::STGM, digits)?;
    env.equal(env.runs(code::LDGM, at(13, 0))?, digits & block)?;
    // DCZID_EL0.BS is in words.
    let bytes = 4 << (env.runs(code::READ_DCZID, 0)? & 0xf);
    for (n, instruction, kept) in [(14, code::GVA, 0x5a), (15, code::GZVA, 0)] {
        let plain = SCRATCH + n * PAGE;
        env.cpu.store(plain, 0x5a);
        env.cpu.store(plain + bytes, 0x5b);
        env.runs(instruction, with(at(n, 0), 8))?;
        let granules = [at(n, 0), at(n, bytes - GRANULE), at(n, bytes)];
        let [first, last, next] = granules.map(|granule| env.tag(granule));
        env.equal(first?, 8)?;
        env.equal(last?, 8)?;
        env.equal(next?, 0)?;
        env.equal(env.cpu.load(plain), kept)?;
        env.equal(env.cpu.load(plain + bytes), 0x5b)?;
    }
    // And one that has had tags from the start.
    [12, tags::PAGES].into_iter().try_for_each(|n| env.many_tags(at(n, 0), 5, true))
}

/// A checked access needs the right tag.
fn checks(env: &Env<'_>) -> Outcome {
    for instruction in [code::LDR, code::STR] {
        env.runs(instruction, with(at(7, 0), 5))?;
        let seen = env.cpu.execute(instruction, with(at(7, 0), 3)).exception.map_or(0, |e| e.esr);
        env.equal(seen & 0x3f, TAG_CHECK_FAULT)?;
    }
    env.control(ATA)
}

/// The tag registers are the guest's through exits.
fn registers(env: &Env<'_>) -> Outcome {
    let block = env.runs(code::READ_GMID, 0)?;
    env.require(matches!(block & 0xf, 2..=6), block)?;
    for (register, value) in code::TAG_REGISTERS {
        env.runs(code::write(register), value)?;
    }
    env.doorbell(REGISTERS)?;
    code::TAG_REGISTERS
        .iter()
        .try_for_each(|&(register, value)| env.equal(env.runs(code::read(register), 0)?, value))
}

/// Fills `argument` pages with a pattern and tags, page by page; then reads both back. The first access to each page, and
/// the first to its tags, change a register too: they must have been done once.
pub(super) fn pages(env: &Env<'_>) -> Outcome {
    env.use_tags()?;
    let pages = u64::from(env.start.argument);
    for n in 0..pages {
        let (page, tag) = (at(n, 0), of_granule(SCRATCH + n * PAGE));
        env.equal(env.runs(code::CLEAR_NEXT, page)?, page + 8)?;
        for offset in (0..PAGE).step_by(8) {
            env.cpu.store(at(n, offset), pattern(SCRATCH + n * PAGE + offset));
        }
        env.equal(env.runs(code::STG_NEXT, with(page, tag))?, with(page + GRANULE, tag))?;
        for offset in (0..PAGE).step_by(16) {
            let address = SCRATCH + n * PAGE + offset;
            env.runs(code::STG, with(at(n, offset), of_granule(address)))?;
        }
    }
    let mut sum: u64 = 0;
    for address in (SCRATCH..SCRATCH + pages * PAGE).step_by(8) {
        sum = tags::fold(sum, env.cpu.load(TAGGED + address));
        if address % GRANULE == 0 {
            sum = tags::fold(sum, env.tag(TAGGED + address)?);
        }
    }
    env.report(word::RESULTS, sum);
    env.equal(sum, tags::checksum(pages))
}

/// A page that both vCPUs see from the start: where the second says how far it is, and is told to stop.
const ROUND: u64 = MAILBOX + 8 * (word::CPUS + 1);
const STOP: u64 = MAILBOX + 8 * word::CPUS;
/// What the second vCPU says at its end: a store was lost, or none.
const ENDED: u64 = MAILBOX + 8 * (word::CPUS + 2);
const LOST: u64 = 1;
const KEPT: u64 = 2;

/// Reaches the tags of one page after the other, to all of which another vCPU stores.
pub(super) fn stores(env: &Env<'_>) -> Outcome {
    env.use_tags()?;
    let [x0, ..] = env.call(psci::CPU_ON_64, [1, env.cpu.secondary_entry(), 0])?;
    env.equal(x0, psci::SUCCESS)?;
    let pages = u64::from(env.start.argument);
    for n in 0..pages {
        let round = env.cpu.load(ROUND);
        while env.cpu.load(ROUND) < round + 3 && env.cpu.load(ENDED) == 0 {}
        env.runs(code::STG, with(at(n, PAGE - GRANULE), 9))?;
    }
    let round = env.cpu.load(ROUND);
    while env.cpu.load(ROUND) < round + 3 && env.cpu.load(ENDED) == 0 {}
    env.cpu.store(STOP, 1);
    while env.cpu.load(ENDED) == 0 {}
    env.equal(env.cpu.load(ENDED), KEPT)?;
    (0..pages).try_for_each(|n| env.equal(env.tag(at(n, PAGE - GRANULE))?, 9))
}

/// The other vCPU: a number that grows in each page, and must be there when the next is stored.
pub(super) fn store_loop(env: &Env<'_>) {
    let mut round = 0;
    let mut kept = true;
    while kept && env.cpu.load(STOP) == 0 {
        for address in (0..u64::from(env.start.argument)).map(|n| SCRATCH + n * PAGE) {
            kept &= env.cpu.load(address) == round;
            env.cpu.store(address, round + 1);
        }
        round += 1;
        env.cpu.store(ROUND, round);
    }
    env.cpu.store(ENDED, if kept { KEPT } else { LOST });
}
