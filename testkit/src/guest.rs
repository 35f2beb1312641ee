//! A guest CPU: runs a program of a few instructions through the simulated stage 2, and takes the
//! exits that real ones take.
//!
//! A program is a map from addresses to [`Instr`]; all VMs share it, as if it were mapped
//! everywhere. Stage 1 is off, so addresses are IPAs. What an exit leaves unknown on hardware (the
//! IPA of a permission fault) is garbage here.
#![forbid(unsafe_code)]

use crate::machine::{Sim, SimCpu};
use crate::memory::lock;
use crate::walk::{Descriptor, descriptor, stage2_leaf};
use hyp::addr::PfnRange;
use hyp::exception::{El1Entry, El1State};
use hyp::guest::context::{Extra, FpContext, VcpuContext};
use hyp::guest::exit::{FaultAddress, RawExit, Vector};
use hyp::guest::pstate::Pstate;
use hyp::guest::traps::Traps;
use hyp::hw::{Placement, Stage2Ctx, Tlb, WorldSwitch};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// One instruction of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are operands: registers by number, addresses, log2 of bytes")]
pub enum Instr {
    /// Xt := value.
    Mov { rt: u8, value: u64 },
    /// LDR and its kin: `sign` extends, `wide` is an X register.
    Load { rt: u8, ipa: u64, log2: u8, sign: bool, wide: bool },
    /// STR and its kin.
    Store { rt: u8, ipa: u64, log2: u8 },
    /// STG: the tag of a granule := `tag`.
    SetTag { ipa: u64, tag: u8 },
    /// LDG: Xt := the tag of a granule.
    GetTag { rt: u8, ipa: u64 },
    /// LDG by a CPU that may remember the page as one without tags ([`Sim::remember_no_tag`]).
    StaleTag { ipa: u64 },
    /// LDP, LDXR, SIMD, ...: a load that reports no syndrome.
    Opaque { ipa: u64 },
    /// Branches to a page to execute it: the fetch alone.
    Fetch { ipa: u64 },
    /// A load whose stage-1 walk reads a descriptor at `ipa`; `update` writes its access flag.
    Walk { ipa: u64, update: bool },
    /// DC CIVAC.
    Clean { ipa: u64 },
    /// HVC.
    Hvc { imm: u16 },
    /// SMC #0.
    Smc,
    /// WFI or WFE.
    Wfx { wfe: bool },
    /// MRS or MSR that traps: op0, op1, CRn, CRm, op2.
    Sys { reg: [u8; 5], rt: u8, read: bool },
    /// V0 := value.
    Fp { value: u64 },
    /// PACGA: Xt := a code made of its low word and the generic key.
    Sign { rt: u8 },
    /// Anything of this exception class.
    Trap { class: u8 },
    /// A physical SError is taken.
    SError,
    /// A bus abort of this DFSC.
    Bus { dfsc: u8 },
    /// ERET to AArch32 EL0.
    Aarch32,
    /// B.
    Jump { pc: u64 },
}

/// The guests' side of a machine.
#[derive(Debug)]
pub(crate) struct Guests {
    code: Mutex<BTreeMap<u64, Instr>>,
    cpus: Vec<Mutex<Live>>,
    counter: AtomicU64,
    entropy: AtomicU64,
    workarounds: AtomicU64,
    stale: AtomicU64,
}

/// What is loaded on one CPU.
#[derive(Clone, Copy, Debug, Default)]
struct Live {
    stage2: Option<Stage2Ctx>,
    fp: bool,
    keys: bool,
    irq: bool,
    streams: bool,
    loads: u64,
    flushes: u64,
    fault: FaultAddress,
}

impl Guests {
    pub(crate) fn new(cpus: usize) -> Self {
        Self {
            code: Mutex::default(),
            cpus: (0..cpus).map(|_| Mutex::default()).collect(),
            counter: AtomicU64::new(1000),
            entropy: AtomicU64::new(0),
            workarounds: AtomicU64::new(0),
            stale: AtomicU64::new(0),
        }
    }
}

/// What the host would do to a CPU, and what a test wants to know of one.
impl Sim {
    /// Puts a program at `pc`.
    pub fn program(&self, pc: u64, code: &[Instr]) {
        let mut map = lock(&self.guests().code);
        map.extend(code.iter().enumerate().map(|(n, instr)| (pc + 4 * n as u64, *instr)));
    }

    /// A physical interrupt is pending on `cpu`, or no longer.
    pub fn interrupt(&self, cpu: usize, pending: bool) {
        lock(&self.guests().cpus[cpu]).irq = pending;
    }

    /// The host is in streaming mode on `cpu`, or no longer.
    pub fn stream(&self, cpu: usize, on: bool) {
        lock(&self.guests().cpus[cpu]).streams = on;
    }

    /// Moves the physical counter.
    pub fn set_counter(&self, now: u64) {
        self.guests().counter.store(now, Ordering::Relaxed);
    }

    /// Lets the random number generator give this many words from here on.
    pub fn set_entropy(&self, words: u64) {
        self.guests().entropy.store(words, Ordering::Relaxed);
    }

    /// The next `times` that an [`Instr::StaleTag`] runs, the page is taken for one without tags.
    pub fn remember_no_tag(&self, times: u64) {
        self.guests().stale.store(times, Ordering::Relaxed);
    }

    /// How often firmware ran a workaround.
    #[must_use]
    pub fn workarounds(&self) -> u64 {
        self.guests().workarounds.load(Ordering::Relaxed)
    }

    /// How often a guest was loaded on `cpu`, and how often this CPU forgot another vCPU's entries.
    #[must_use]
    pub fn turns(&self, cpu: usize) -> (u64, u64) {
        let live = lock(&self.guests().cpus[cpu]);
        (live.loads, live.flushes)
    }

    /// True while `cpu` is a guest's.
    #[must_use]
    pub fn runs_guest(&self, cpu: usize) -> bool {
        lock(&self.guests().cpus[cpu]).stage2.is_some()
    }
}

/// A value that a page holds, on the heap; its page says nothing.
#[derive(Debug)]
pub struct Placed<T>(Box<T>);

impl<T> Deref for Placed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Placed<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl Placement for SimCpu {
    type Placed<T: Send> = Placed<T>;

    fn place<T: Send>(&self, pages: PfnRange, value: T) -> Placed<T> {
        let bytes = usize::try_from(pages.nr() * 4096).expect("few pages");
        assert!(size_of::<T>() <= bytes && align_of::<T>() <= 4096, "the value fits its pages");
        Placed(Box::new(value))
    }

    fn displace<T: Send>(&self, placed: Placed<T>) -> T {
        *placed.0
    }
}

/// Steps of one entry, after which the host's timer would tick.
const TICK: usize = 10_000;
/// What HPFAR_EL2 holds where the architecture says UNKNOWN.
const UNKNOWN_HPFAR: u64 = 0x0bad_0bad_0bad_0bf0;

const IL: u64 = 1 << 25;
const DATA: u64 = 0x24 << 26 | IL;
const FETCH: u64 = 0x20 << 26 | IL;
const ISV: u64 = 1 << 24;
const WNR: u64 = 1 << 6;
const CM: u64 = 1 << 8;
const S1PTW: u64 = 1 << 7;
const TAG_ACCESS: u64 = 1 << 41;

impl WorldSwitch for SimCpu {
    fn load_guest(&self, ctx: &mut VcpuContext, traps: &Traps, stage2: Stage2Ctx, flush: bool) {
        assert!(traps.hcr(ctx.extra) & 1 == 1, "stage 2 is on");
        let mut live = lock(&self.sim().guests().cpus[self.id()]);
        assert!(live.stage2.is_none(), "one guest at a time");
        live.stage2 = Some(stage2);
        live.fp = false;
        live.keys = ctx.extra.contains(Extra::KEYS);
        live.loads += 1;
        live.flushes += u64::from(flush);
        drop(live);
        let _ = self.enter_stage2(stage2);
    }

    fn enter_guest(&self, ctx: &mut VcpuContext) -> RawExit {
        let stage2 = lock(&self.sim().guests().cpus[self.id()]).stage2.expect("a guest is loaded");
        for _ in 0..TICK {
            if lock(&self.sim().guests().cpus[self.id()]).irq {
                break;
            }
            let instr = lock(&self.sim().guests().code).get(&ctx.pc).copied();
            let instr = instr.unwrap_or_else(|| panic!("no code at {:#x}", ctx.pc));
            if let Some(exit) = self.step(ctx, stage2, instr) {
                return exit;
            }
        }
        RawExit { vector: Vector::Irq, esr: u64::MAX, spsr: ctx.pstate.raw() }
    }

    fn fault_address(&self) -> FaultAddress {
        lock(&self.sim().guests().cpus[self.id()]).fault
    }

    fn unload_guest(&self, _ctx: &mut VcpuContext, host: Stage2Ctx) {
        lock(&self.sim().guests().cpus[self.id()]).stage2 = None;
        let _ = self.enter_stage2(host);
    }

    fn load_fp(&self, _ctx: &mut VcpuContext) {
        let mut live = lock(&self.sim().guests().cpus[self.id()]);
        assert!(!std::mem::replace(&mut live.fp, true), "FP is switched once a turn");
    }

    fn load_keys(&self, ctx: &VcpuContext) {
        let mut live = lock(&self.sim().guests().cpus[self.id()]);
        let had = std::mem::replace(&mut live.keys, true);
        assert!(ctx.extra.contains(Extra::KEYS) && !had, "keys trap until they are loaded");
    }

    fn el1_state(&self) -> El1State {
        El1State { sctlr: 1 << 23, mte: false, nmi: false }
    }

    fn take_exception(&self, ctx: &mut VcpuContext, entry: El1Entry, far: Option<u64>) {
        ctx.el1.esr = entry.esr;
        ctx.el1.elr = ctx.pc;
        ctx.el1.spsr = ctx.pstate.raw();
        if let Some(far) = far {
            ctx.el1.far = far;
        }
        ctx.pc = ctx.el1.vbar + entry.vector;
        ctx.pstate = Pstate::new(entry.spsr).expect("an exception leaves the guest at EL1");
    }

    fn translate(&self, va: u64) -> Option<u64> {
        Some(va)
    }

    fn host_streams(&self) -> bool {
        lock(&self.sim().guests().cpus[self.id()]).streams
    }

    fn counter(&self) -> u64 {
        self.sim().guests().counter.load(Ordering::Relaxed)
    }

    fn random(&self) -> Option<u64> {
        let left = &self.sim().guests().entropy;
        let had = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        had.ok().map(|_| u64::MAX)
    }

    fn workaround(&self, _id: u32) {
        self.sim().guests().workarounds.fetch_add(1, Ordering::Relaxed);
    }
}

impl SimCpu {
    /// Executes one instruction; the exit if it is not the guest's own to execute.
    fn step(&self, ctx: &mut VcpuContext, stage2: Stage2Ctx, instr: Instr) -> Option<RawExit> {
        let exit = |esr: u64| Some(self.exit(ctx, esr, 0, 0));
        match instr {
            Instr::Mov { rt, value } => ctx.set_x(rt, value),
            Instr::Jump { pc } => {
                ctx.pc = pc;
                return None;
            }
            Instr::Load { rt, ipa, log2, sign, wide } => {
                let syndrome = ISV
                    | u64::from(log2) << 22
                    | u64::from(sign) << 21
                    | u64::from(rt) << 16
                    | u64::from(wide) << 15;
                match self.sim().load(stage2, ipa, true).first() {
                    Some(word) => ctx.set_x(rt, cut(word >> (ipa % 8 * 8), log2, sign, wide)),
                    None => return Some(self.abort(ctx, stage2, ipa, DATA | syndrome)),
                }
            }
            Instr::Store { rt, ipa, log2 } => {
                let syndrome = ISV | WNR | u64::from(log2) << 22 | u64::from(rt) << 16 | 1 << 15;
                if !self.may(stage2, ipa, |leaf| leaf.write) {
                    return Some(self.abort(ctx, stage2, ipa, DATA | syndrome));
                }
                assert!(log2 == 3 && ipa % 8 == 0, "stores to memory are whole words");
                self.sim().store(stage2, ipa, true, ctx.x(rt));
            }
            Instr::SetTag { ipa, .. } if !self.may(stage2, ipa, |leaf| leaf.write) => {
                return Some(self.abort(ctx, stage2, ipa, DATA | WNR));
            }
            Instr::GetTag { ipa, .. } if !self.may(stage2, ipa, |leaf| leaf.read) => {
                return Some(self.abort(ctx, stage2, ipa, DATA));
            }
            Instr::SetTag { .. } | Instr::GetTag { .. } if !ctx.extra.contains(Extra::TAGS) => {
                // HCR_EL2.ATA is 0: nothing is Tagged.
                if let Instr::GetTag { rt, .. } = instr {
                    ctx.set_x(rt, 0);
                }
            }
            Instr::SetTag { ipa, tag } => {
                if self.may(stage2, ipa, |leaf| leaf.no_tag) {
                    return Some(self.tag_access(ctx, ipa, WNR));
                }
                for page in self.sim().reach(stage2, ipa).iter().map(|way| way.page) {
                    self.sim().memory().set_tag(page, granule(ipa), tag);
                }
            }
            Instr::GetTag { rt, ipa } => {
                if self.may(stage2, ipa, |leaf| leaf.no_tag) {
                    return Some(self.tag_access(ctx, ipa, 0));
                }
                let page = self.sim().reach(stage2, ipa).first().map(|way| way.page);
                ctx.set_x(rt, page.map_or(0, |page| self.sim().memory().tag(page, granule(ipa)).into()));
            }
            Instr::StaleTag { ipa } => {
                let stale = &self.sim().guests().stale;
                if stale
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    return Some(self.tag_access(ctx, ipa, 0));
                }
            }
            Instr::Opaque { ipa } if !self.may(stage2, ipa, |leaf| leaf.read) => {
                return Some(self.abort(ctx, stage2, ipa, DATA));
            }
            Instr::Fetch { ipa } if !self.may(stage2, ipa, |leaf| leaf.exec_el1) => {
                return Some(self.abort(ctx, stage2, ipa, FETCH));
            }
            Instr::Walk { ipa, update } => {
                if !self.may(stage2, ipa, if update { |leaf| leaf.write } else { |leaf| leaf.read }) {
                    return Some(self.abort(ctx, stage2, ipa, DATA | S1PTW));
                }
            }
            Instr::Clean { ipa } if !self.may(stage2, ipa, |leaf| leaf.read) => {
                return Some(self.abort(ctx, stage2, ipa, DATA | CM | WNR));
            }
            Instr::Opaque { .. } | Instr::Fetch { .. } | Instr::Clean { .. } => {}
            Instr::Hvc { imm } => {
                // The preferred return address of HVC is the next instruction.
                ctx.pc += 4;
                return Some(self.exit(ctx, 0x16 << 26 | IL | u64::from(imm), 0, 0));
            }
            Instr::Smc => return exit(0x17 << 26 | IL),
            Instr::Wfx { wfe } => return exit(0x01 << 26 | IL | u64::from(wfe)),
            Instr::Sys { reg: [op0, op1, crn, crm, op2], rt, read } => {
                let [op0, op1, crn, crm, op2, rt] = [op0, op1, crn, crm, op2, rt].map(u64::from);
                let fields = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1;
                return exit(0x18 << 26 | IL | fields | u64::from(read));
            }
            Instr::Fp { value } => {
                if !lock(&self.sim().guests().cpus[self.id()]).fp {
                    return exit(0x07 << 26 | IL);
                }
                ctx.fp = FpContext { v: [[value; 2]; 32], fpsr: 0, fpcr: 0 };
            }
            Instr::Sign { rt } => {
                if !lock(&self.sim().guests().cpus[self.id()]).keys {
                    return exit(0x09 << 26 | IL);
                }
                ctx.set_x(rt, ctx.x(rt) ^ ctx.pauth[8]);
            }
            Instr::Trap { class } => return exit(u64::from(class) << 26 | IL),
            Instr::SError => {
                ctx.pc += 4;
                return Some(RawExit { vector: Vector::SError, ..self.exit(ctx, 0x2f << 26 | IL, 0, 0) });
            }
            Instr::Bus { dfsc } => return exit(DATA | u64::from(dfsc)),
            Instr::Aarch32 => {
                let spsr = 0x10;
                return Some(RawExit { spsr, ..self.exit(ctx, 0x11 << 26, 0, 0) });
            }
        }
        ctx.pc += 4;
        None
    }

    fn exit(&self, ctx: &VcpuContext, esr: u64, far: u64, hpfar: u64) -> RawExit {
        lock(&self.sim().guests().cpus[self.id()]).fault = FaultAddress { far, hpfar };
        RawExit { vector: Vector::Sync, esr, spsr: ctx.pstate.raw() }
    }

    /// The fault of NoTagAccess, as QEMU reports it: no fault status, HPFAR_EL2 as it was.
    fn tag_access(&self, ctx: &VcpuContext, ipa: u64, wnr: u64) -> RawExit {
        self.exit(ctx, DATA | TAG_ACCESS | wnr, ipa, UNKNOWN_HPFAR)
    }

    fn may(&self, stage2: Stage2Ctx, ipa: u64, allows: fn(&crate::walk::Stage2Leaf) -> bool) -> bool {
        let reach = self.sim().reach(stage2, ipa);
        reach.iter().any(|way| allows(&stage2_leaf(way.word, self.sim().features())))
    }

    /// The abort that the tables cause at `ipa`.
    fn abort(&self, ctx: &VcpuContext, stage2: Stage2Ctx, ipa: u64, esr: u64) -> RawExit {
        let hpfar = ipa >> 12 << 4;
        let walk = esr & S1PTW != 0;
        let Some(found) = self.sim().walk(stage2, ipa) else {
            return self.exit(ctx, esr | 0x04, ipa, hpfar);
        };
        let level = u64::from(found.level);
        match descriptor(found.word, found.level) {
            Descriptor::Leaf(_) if !stage2_leaf(found.word, self.sim().features()).accessed => {
                self.exit(ctx, esr | 0x08 | level, ipa, hpfar)
            }
            Descriptor::Leaf(_) => {
                let hpfar = if walk { hpfar } else { UNKNOWN_HPFAR };
                self.exit(ctx, esr | 0x0c | level, ipa, hpfar)
            }
            _ => self.exit(ctx, esr | 0x04 | level, ipa, hpfar),
        }
    }
}

/// The granule of `ipa` in its page.
fn granule(ipa: u64) -> u8 {
    u8::try_from(ipa % 4096 / 16).expect("a page has 256")
}

/// What a load of memory leaves in its register.
fn cut(word: u64, log2: u8, sign: bool, wide: bool) -> u64 {
    let unused = 64 - (8 << log2);
    let value = if sign {
        (word.cast_signed() << unused >> unused).cast_unsigned()
    } else {
        word << unused >> unused
    };
    if wide { value } else { value & 0xffff_ffff }
}
