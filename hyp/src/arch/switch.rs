//! The world switch: `hw::WorldSwitch` in instructions.
//!
//! | moves when | what |
//! |---|---|
//! | each exit | X0..X30, PC, PSTATE (`vectors`) |
//! | load and unload | EL1 registers, traps, stage 2, virtual timer, list registers, vectors |
//! | load and unload, from the guest's first use on | pointer authentication keys |
//! | load and unload, of a guest with MTE | RGSR_EL1, GCR_EL1, TFSR_EL1, TFSRE0_EL1 |
//! | first use in a turn | FP and SIMD ([`super::fp`]) |
//!
//! Stage 1 and stage 2 belong to different worlds for a moment in the middle of a switch: walks of
//! stage 1 are off meanwhile where they could mix them ([`El2::stop_walks`]).
//!
//! Invariant: from `load_guest` to `unload_guest` the host's world is in this CPU's record, and the
//! vectors are those that lead back into [`WorldSwitch::enter_guest`].

use super::features::{HostFeatures, Switched};
use super::fp::{self, HostFp};
use super::machine::El2;
use super::percpu::PerCpu;
use super::{el1, gic, regs};
use core::cell::UnsafeCell;
use hyp::exception::{El1Entry, El1State};
use hyp::guest::context::{El1Context, Extra, TagContext, TimerContext, VcpuContext};
use hyp::guest::exit::{FaultAddress, RawExit, Vector};
use hyp::guest::pstate::Pstate;
use hyp::guest::traps::Traps;
use hyp::hw::{Stage2Ctx, WorldSwitch};
use smccc::{Call, Smc};

/// What the host had in this CPU when a guest was loaded: in pairs, which move together.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct HostWorld {
    /// ELR_EL2 and SPSR_EL2: where the host goes on.
    resume: [u64; 2],
    /// SP_EL0 and MDSCR_EL1.
    sp_and_debug: [u64; 2],
    /// CNTV_CTL_EL0 and CNTV_CVAL_EL0.
    timer: [u64; 2],
    el1: El1Context,
    /// What the guest has too; otherwise it stays in the CPU.
    extra: ExtraRegs,
    profiling: Profiling,
    /// The guest has the FP registers, the host's are in `fp`.
    fp_is_guests: bool,
    fp: HostFp,
}

/// Of one world, what is switched only for a guest that has it too.
#[derive(Debug)]
struct ExtraRegs {
    keys: [u64; 10],
    tags: TagContext,
}

impl ExtraRegs {
    /// The host's are saved here, the guest's installed.
    #[inline(always)]
    fn give_way(&mut self, extra: Extra, ctx: &VcpuContext) {
        if extra.contains(Extra::KEYS) {
            el1::save_keys(&mut self.keys);
            el1::restore_keys(&ctx.pauth);
        }
        if extra.contains(Extra::TAGS) {
            el1::switch_tags(&mut self.tags, &ctx.tags);
        }
    }

    /// The guest's are saved in `ctx`, the host's installed.
    #[inline(always)]
    fn come_back(&self, extra: Extra, ctx: &mut VcpuContext) {
        if extra.contains(Extra::KEYS) {
            el1::save_keys(&mut ctx.pauth);
            el1::restore_keys(&self.keys);
        }
        if extra.contains(Extra::TAGS) {
            el1::switch_tags(&mut ctx.tags, &self.tags);
        }
    }
}

/// PMSCR_EL1, TRFCR_EL1 and BRBCR_EL1: what would sample, trace or record a guest for the host.
#[derive(Debug, Default)]
struct Profiling {
    pmscr: u64,
    trfcr: u64,
    brbcr: u64,
}

/// The host's world in a CPU's record.
#[derive(Debug)]
pub(crate) struct WorldCell(UnsafeCell<HostWorld>);

impl WorldCell {
    /// Nothing saved.
    pub(crate) const fn new() -> Self {
        const EL1: El1Context = VcpuContext::new(0, 0, 0, 0).el1;
        Self(UnsafeCell::new(HostWorld {
            resume: [0; 2],
            sp_and_debug: [0; 2],
            timer: [0; 2],
            el1: EL1,
            extra: ExtraRegs { keys: [0; 10], tags: TagContext { rgsr: 0, gcr: 0, tfsr: 0, tfsre0: 0 } },
            profiling: Profiling { pmscr: 0, trfcr: 0, brbcr: 0 },
            fp_is_guests: false,
            fp: HostFp::new(),
        }))
    }
}

/// The host's world, for one step of a switch.
#[inline]
fn with_world<T>(f: impl FnOnce(&mut HostWorld) -> T) -> Option<T> {
    let cpu = PerCpu::current()?;
    // SAFETY: a record is reached by its own CPU only, and the functions of this file, which are
    // the only ones that get here, neither call each other from `f` nor are interrupted.
    let world = unsafe { &mut *cpu.world.0.get() };
    Some(f(world))
}

unsafe extern "C" {
    /// Saves what Rust keeps, installs X0..X30 and PC of `ctx` and PSTATE `pstate`, and comes back
    /// with the vector of the next exit and X0..X30 and PC in `ctx` again (`vectors`).
    fn guest_enter(ctx: *mut VcpuContext, pstate: u64) -> Vector;
}

#[inline]
fn install_stage2(to: Stage2Ctx) {
    // Completes walks of the context that goes (Arm ARM D8.1, out-of-context regimes).
    regs::dsb_nsh();
    // SAFETY: stage 2 does not translate EL2; `to` describes a table that its owner keeps.
    unsafe { regs::set_vtcr_el2(to.vtcr) };
    // SAFETY: as above.
    unsafe { regs::set_vttbr_el2(to.vttbr) };
}

/// CPTR_EL2.TFP: FP and SIMD trap.
const TFP: u64 = 1 << 10;

impl Profiling {
    /// Stops the host's and lets what is on its way reach memory while its tables are installed.
    #[cold]
    fn stop(&mut self, has: &HostFeatures) {
        if has.spe {
            self.pmscr = regs::pmscr_el1();
            regs::set_pmscr_el1(0);
            regs::isb();
            regs::psb_csync();
        }
        if has.trf {
            self.trfcr = regs::trfcr_el1();
            regs::set_trfcr_el1(0);
            regs::isb();
            regs::tsb_csync();
        }
        if has.brbe {
            self.brbcr = regs::brbcr_el1();
            regs::set_brbcr_el1(0);
        }
    }

    #[cold]
    fn resume(&self, has: &HostFeatures) {
        if has.spe {
            regs::set_pmscr_el1(self.pmscr);
        }
        if has.trf {
            regs::set_trfcr_el1(self.trfcr);
        }
        if has.brbe {
            regs::set_brbcr_el1(self.brbcr);
        }
    }
}

impl El2 {
    /// What may happen while a guest runs.
    #[inline]
    fn trap_guest(&self, traps: &Traps, extra: Extra) {
        let (machine, switched) = (self.host.mdcr_machine, self.host.switched);
        let &Traps { mdcr, cptr, hstr, cnthctl, fine, .. } = traps;
        let hcr = traps.hcr(extra);
        // SAFETY: E2H and TGE are 0 in every value of `Traps`; stage 2 does not translate EL2.
        unsafe { regs::set_hcr_el2(hcr) };
        regs::set_mdcr_el2(mdcr | machine);
        regs::set_cptr_el2(cptr);
        regs::set_hstr_el2(hstr);
        regs::set_cnthctl_el2(cnthctl);
        if switched.contains(Switched::HCRX) {
            regs::set_hcrx_el2(fine);
        }
        if switched.contains(Switched::FINE_TRAPS) {
            regs::set_hfgrtr_el2(fine);
            regs::set_hfgwtr_el2(fine);
            regs::set_hfgitr_el2(fine);
        }
    }

    #[cold]
    #[inline(never)]
    fn stop_profiling(&self) {
        with_world(|host| host.profiling.stop(self.host.has()));
    }

    /// Everything of a load but profiling. It calls nothing, so it keeps nothing for a caller.
    #[inline(never)]
    fn load_world(&self, ctx: &VcpuContext, traps: &Traps, stage2: Stage2Ctx, flush: bool) {
        let (switched, extra) = (self.host.switched, ctx.extra);
        with_world(|host| {
            host.resume = [regs::elr_el2(), regs::spsr_el2()];
            host.sp_and_debug = [regs::sp_el0(), regs::mdscr_el1()];
            host.timer = [regs::cntv_ctl_el0(), regs::cntv_cval_el0()];
            el1::save(&mut host.el1, switched);
            host.extra.give_way(extra, ctx);
            self.stop_walks([host.el1.tcr, host.el1.sctlr]);
        });

        install_stage2(stage2);
        self.trap_guest(traps, extra);
        let (sp_el0, mpidr) = (ctx.sp_el0, ctx.mpidr);
        regs::set_sp_el0(sp_el0);
        regs::set_vmpidr_el2(mpidr);
        el1::restore(&ctx.el1, switched);
        if switched.contains(Switched::VDISR) {
            regs::set_vdisr_el2(ctx.el1.vdisr);
        }
        let TimerContext { ctl, cval, offset } = ctx.timer;
        // Nothing of the host's debugger acts on a guest.
        regs::set_mdscr_el1(0);
        regs::set_cntv_ctl_el0(0);
        regs::set_cntvoff_el2(offset);
        regs::set_cntv_cval_el0(cval);
        regs::set_cntv_ctl_el0(ctl);
        if switched.contains(Switched::PRIORITIES) {
            gic::load_priorities(self.host.gic, &ctx.gic);
        }
        gic::load(&ctx.gic);
        if flush {
            regs::isb();
            regs::tlbi_vmalle1();
            regs::ic_iallu();
            regs::dsb_nsh();
        }
        // SAFETY: the vectors are code of this image, 2 KiB aligned; exits find what
        // `guest_enter` left.
        unsafe { regs::set_vbar_el2(super::guest_vectors_base()) };
        self.start_walks([ctx.el1.tcr, ctx.el1.sctlr]);
    }
}

impl WorldSwitch for El2 {
    #[inline(always)]
    fn load_guest(&self, ctx: &mut VcpuContext, traps: &Traps, stage2: Stage2Ctx, flush: bool) {
        if self.host.switched.contains(Switched::PROFILING) {
            self.stop_profiling();
        }
        self.load_world(ctx, traps, stage2, flush);
    }

    #[inline]
    fn enter_guest(&self, ctx: &mut VcpuContext) -> RawExit {
        let pstate = ctx.pstate.raw();
        // SAFETY: `load_guest` has run; `Pstate` names no state of EL2, so what runs is the guest,
        // behind its stage 2, until a vector brings EL2 back here with a `Vector` that it names.
        let vector = unsafe { guest_enter(ctx, pstate) };
        RawExit { vector, esr: regs::esr_el2(), spsr: regs::spsr_el2() }
    }

    #[inline]
    fn fault_address(&self) -> FaultAddress {
        FaultAddress { far: regs::far_el2(), hpfar: regs::hpfar_el2() }
    }

    fn unload_guest(&self, ctx: &mut VcpuContext, host_stage2: Stage2Ctx) {
        let (switched, extra) = (self.host.switched, ctx.extra);
        if switched.contains(Switched::PRIORITIES) {
            gic::unload_priorities(self.host.gic, &mut ctx.gic);
        }
        gic::unload(&mut ctx.gic);
        (ctx.timer.ctl, ctx.timer.cval) = (regs::cntv_ctl_el0(), regs::cntv_cval_el0());
        ctx.sp_el0 = regs::sp_el0();
        el1::save(&mut ctx.el1, switched);
        if switched.contains(Switched::VDISR) {
            ctx.el1.vdisr = regs::vdisr_el2();
        }
        self.stop_walks([ctx.el1.tcr, ctx.el1.sctlr]);

        install_stage2(host_stage2);
        self.host.install();
        regs::set_vmpidr_el2(regs::mpidr_el1());
        // SAFETY: the vectors are code of this image, 2 KiB aligned.
        unsafe { regs::set_vbar_el2(super::vectors_base()) };
        with_world(|host| {
            let ([pc, pstate], [sp_el0, mdscr], [ctl, cval]) = (host.resume, host.sp_and_debug, host.timer);
            regs::set_elr_el2(pc);
            regs::set_spsr_el2(pstate);
            regs::set_sp_el0(sp_el0);
            regs::set_mdscr_el1(mdscr);
            regs::set_cntv_ctl_el0(0);
            regs::set_cntvoff_el2(0);
            regs::set_cntv_cval_el0(cval);
            regs::set_cntv_ctl_el0(ctl);
            el1::restore(&host.el1, switched);
            host.extra.come_back(extra, ctx);
            self.start_walks([host.el1.tcr, host.el1.sctlr]);
            if host.fp_is_guests {
                host.fp_is_guests = false;
                fp::to_host(switched.contains(Switched::SVE), &mut ctx.fp, &host.fp);
            }
            if switched.contains(Switched::PROFILING) {
                host.profiling.resume(self.host.has());
            }
        });
    }

    fn load_fp(&self, ctx: &mut VcpuContext) {
        let trapped = regs::cptr_el2();
        regs::set_cptr_el2(self.host.cptr);
        regs::isb();
        with_world(|host| {
            fp::to_guest(self.host.switched.contains(Switched::SVE), &mut host.fp, &ctx.fp);
            host.fp_is_guests = true;
        });
        regs::set_cptr_el2(trapped & !TFP);
    }

    fn load_keys(&self, ctx: &VcpuContext) {
        with_world(|host| el1::save_keys(&mut host.extra.keys));
        el1::restore_keys(&ctx.pauth);
        // SAFETY: what a guest is loaded with, without traps on keys, which are its own now.
        unsafe { regs::set_hcr_el2(regs::hcr_el2() | Traps::KEYS) };
    }

    fn el1_state(&self) -> El1State {
        El1State { sctlr: regs::sctlr_el1(), mte: self.features.mte >= 2, nmi: false }
    }

    fn take_exception(&self, ctx: &mut VcpuContext, entry: El1Entry, far: Option<u64>) {
        if let Some(far) = far {
            regs::set_far_el1(far);
        }
        regs::set_esr_el1(entry.esr);
        regs::set_elr_el1(ctx.pc);
        regs::set_spsr_el1(ctx.pstate.raw());
        ctx.pc = regs::vbar_el1().wrapping_add(entry.vector);
        // An exception leaves a guest at EL1; were it not so, the state before is one of a guest.
        ctx.pstate = Pstate::of_exit(entry.spsr).unwrap_or(ctx.pstate);
    }

    fn translate(&self, va: u64) -> Option<u64> {
        regs::translate_s1e1r(va)
    }

    fn host_streams(&self) -> bool {
        self.host.has().sme && regs::svcr() != 0
    }

    #[inline]
    fn counter(&self) -> u64 {
        regs::cntpct_el0()
    }

    fn random(&self) -> Option<u64> {
        if self.host.has().rng { regs::rndr() } else { None }
    }

    fn workaround(&self, id: u32) {
        let _ = Smc::call32(id, [0; 7]);
    }
}
