//! What the host's exceptions come to: a call, an SMC, an abort, or an instruction that does not
//! exist for it. Nothing that the host does ends in a panic.

use super::vectors::HostFrame;
use super::{IMAGE, regs};
use hyp::addr::Ipa;
use hyp::exception::{
    self, El1Entry, El1State, FaultKind, Syndrome, class, external_abort, fault_ipa, undefined,
};
use hyp::mem_protect::{HostAbort, HostFault};
use hyp::pgtable::Access;

/// A synchronous exception from the host, from AArch64 EL1 or EL0 of either width.
pub(super) extern "C" fn host_sync(frame: &mut HostFrame) {
    let syndrome = Syndrome::new(regs::esr_el2());
    match syndrome.class() {
        class::HVC64 => host_call(frame, syndrome),
        class::SMC64 => host_smc(frame, syndrome),
        class::INSTRUCTION_ABORT_LOWER | class::DATA_ABORT_LOWER => host_abort(syndrome),
        _ => unexpected(syndrome),
    }
}

/// Like the others that are not inlined: it needs registers saved that a call does not.
#[inline(never)]
fn unexpected(syndrome: Syndrome) {
    log::debug!("host: unexpected exception, ESR {:#x}, made undefined", syndrome.raw());
    take(undefined(regs::spsr_el2(), el1_state()), None);
}

#[inline]
fn host_call(frame: &mut HostFrame, syndrome: Syndrome) {
    let Some(running) = IMAGE.running() else { return };
    if syndrome.imm16() == 0 {
        running.host_call(&mut frame.x);
    } else if let Some(x0) = frame.x.first_mut() {
        *x0 = abi::smccc::NOT_SUPPORTED;
    }
}

#[inline(never)]
fn host_smc(frame: &mut HostFrame, syndrome: Syndrome) {
    // A trapped SMC returns to itself unless it is stepped over (Arm ARM D1.4.1).
    regs::set_elr_el2(regs::elr_el2().wrapping_add(4));
    super::smc::host(frame, syndrome.imm16());
}

#[inline(never)]
fn host_abort(syndrome: Syndrome) {
    let Some(running) = IMAGE.running() else { return };
    let far = regs::far_el2();
    // The IPA by the host's own stage 1, for faults that leave HPFAR_EL2 unknown.
    let ipa = if syndrome.hpfar_valid() {
        Some(fault_ipa(regs::hpfar_el2(), far))
    } else {
        regs::translate_s1e1r(far)
    };
    // The host changed its own stage 1 meanwhile: the access is tried again.
    let Some(ipa) = ipa else { return };
    let access = match syndrome.access() {
        exception::Access::Read => Access::R,
        exception::Access::Write => Access::W,
        exception::Access::Fetch => Access::X,
    };
    let verdict = match (syndrome.fault(), Ipa::new(ipa)) {
        (FaultKind::External | FaultKind::Other, _) | (_, Err(_)) => HostAbort::InjectExternalAbort,
        (_, Ok(ipa)) => running.state.host_abort(running.hw(), HostFault { ipa, access }),
    };
    if verdict == HostAbort::InjectExternalAbort {
        log::debug!("host: refused {access:?} of {ipa:#x} at {:#x}", regs::elr_el2());
        take(external_abort(syndrome, regs::spsr_el2(), el1_state()), Some(far));
    }
}

fn el1_state() -> El1State {
    let pfr1 = regs::id_aa64pfr1_el1();
    El1State { sctlr: regs::sctlr_el1(), mte: pfr1 >> 8 & 0xf >= 2, nmi: pfr1 >> 36 & 0xf != 0 }
}

/// Makes the return from this exception an exception taken to EL1.
fn take(entry: El1Entry, far: Option<u64>) {
    if let Some(far) = far {
        regs::set_far_el1(far);
    }
    regs::set_esr_el1(entry.esr);
    regs::set_elr_el1(regs::elr_el2());
    regs::set_spsr_el1(regs::spsr_el2());
    regs::set_elr_el2(regs::vbar_el1().wrapping_add(entry.vector));
    regs::set_spsr_el2(entry.spsr);
}
