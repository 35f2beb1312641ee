//! The EL1 runtime: all of the guest's assembly, system registers and raw memory.
//!
//! Each vCPU goes `entry` (relocate on vCPU 0, stack, map, MMU on) -> [`first_vcpu`] or
//! [`secondary_vcpu`] -> a payload, which ends in PSCI.
#![allow(unsafe_code, reason = "this is the one module of the guest that is allowed to touch the machine")]

mod cage;
mod call;
mod entry;
mod exception;
mod fp;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_TVAL_EL0, CNTVCT_EL0, Readable, TPIDR_EL1, Writeable,
};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_shim::cpu::{Attempt, Attempted, CallRun, Cpu, Regs, Seen, Width};
use guest_shim::payloads::{self, Env};
use guest_shim::protocol::{FAILED, MAILBOX, PANIC, Start, VmKind, word};

/// This vCPU.
#[derive(Debug)]
struct El1;

/// What x0 told vCPU 0, for the others and for the end.
static START: AtomicU64 = AtomicU64::new(0);

fn this_cpu() -> u64 {
    TPIDR_EL1.get()
}

fn pointer<T>(address: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0))
}

fn load<T: Copy>(address: u64) -> T {
    // SAFETY: payloads name RAM that no Rust object lives in, or a device; both are mapped, and an
    // access that stage 2 refuses is an exception, not a value.
    unsafe { pointer::<T>(address).read_volatile() }
}

fn store<T>(address: u64, value: T) {
    // SAFETY: as for `load`.
    unsafe { pointer::<T>(address).write_volatile(value) };
}

impl Cpu for El1 {
    fn index(&self) -> u64 {
        this_cpu()
    }

    fn hvc(&self, regs: &Regs) -> Regs {
        call::hvc(regs)
    }

    fn smc(&self, regs: &Regs) -> Regs {
        call::smc(regs)
    }

    fn load(&self, address: u64) -> u64 {
        load(address)
    }

    fn store(&self, address: u64, value: u64) {
        store(address, value);
    }

    fn increment(&self, address: u64) {
        let word: *mut u64 = pointer(address);
        // SAFETY: an aligned word of scratch memory that is only ever added to.
        unsafe { AtomicU64::from_ptr(word) }.fetch_add(1, Ordering::AcqRel);
    }

    fn read(&self, width: Width, address: u64) -> u64 {
        match width {
            Width::Byte => load::<u8>(address).into(),
            Width::Half => load::<u16>(address).into(),
            Width::Word => load::<u32>(address).into(),
            Width::Double => load(address),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a device gets as many bits as the access has")]
    fn write(&self, width: Width, address: u64, value: u64) {
        match width {
            Width::Byte => store(address, value as u8),
            Width::Half => store(address, value as u16),
            Width::Word => store(address, value as u32),
            Width::Double => store(address, value),
        }
    }

    fn execute(&self, instruction: u32, x0: u64) -> Seen {
        exception::execute(instruction, x0)
    }

    fn execute_user(&self, instruction: u32, x0: u64) -> Seen {
        exception::execute_user(instruction, x0)
    }

    fn attempt(&self, attempt: &Attempt) -> Attempted {
        cage::attempt(attempt)
    }

    fn wait(&self) {
        aarch64_cpu::asm::wfi();
    }

    fn wait_until(&self, done: &dyn Fn() -> bool) {
        loop {
            // SAFETY: masks interrupts, until the end of this turn of the loop.
            unsafe { asm!("msr daifset, #2", options(nostack)) };
            let done = done();
            if !done {
                aarch64_cpu::asm::wfi();
            }
            // SAFETY: they were enabled, so the handler is in place.
            unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) };
            if done {
                return;
            }
        }
    }

    fn pause(&self) {
        aarch64_cpu::asm::wfe();
    }

    fn ticks(&self) -> u64 {
        barrier::isb(barrier::SY);
        CNTVCT_EL0.get()
    }

    fn frequency(&self) -> u64 {
        CNTFRQ_EL0.get()
    }

    fn enable_interrupts(&self) {
        // SAFETY: the handler is in place, and knows the interrupts that can come.
        unsafe {
            asm!(
                "msr icc_pmr_el1, {priorities}",
                "msr icc_igrpen1_el1, {enable}",
                "isb",
                "msr daifclr, #2",
                priorities = in(reg) 0xff_u64,
                enable = in(reg) 1_u64,
                options(nostack)
            );
        }
    }

    fn set_timer(&self, ticks: u64) {
        CNTV_TVAL_EL0.set(ticks);
        CNTV_CTL_EL0.set(1);
        barrier::isb(barrier::SY);
    }

    fn timer_interrupts(&self) -> u64 {
        exception::timer_interrupts()
    }

    fn send_sgi(&self, id: u64, targets: u64) {
        let value = id << 24 | targets & 0xffff;
        // SAFETY: interrupts vCPUs of this VM, whose handlers count it.
        unsafe { asm!("dsb ishst", "msr icc_sgi1r_el1, {}", "isb", in(reg) value, options(nostack)) };
    }

    fn sgis(&self) -> u64 {
        exception::sgis()
    }

    fn secondary_entry(&self) -> u64 {
        entry::secondary_address()
    }

    fn fill_fp(&self, seed: u64) {
        fp::fill(seed);
    }

    fn fp_holds(&self, seed: u64) -> bool {
        fp::holds(seed)
    }

    fn time_calls(&self, run: &CallRun) -> (u64, u64) {
        call::time_calls(run)
    }

    fn idle(&self) -> ! {
        call::idle()
    }

    fn load_for_ever(&self, address: u64) -> ! {
        call::load_for_ever(address)
    }

    fn store_for_ever(&self, address: u64) -> ! {
        call::store_for_ever(address)
    }

    fn touch_for_ever(&self, address: u64, step: u64) -> ! {
        call::touch_for_ever(address, step)
    }

    fn claim_for_ever(&self, id: u32, base: u64, top: u64) -> ! {
        call::claim_for_ever(id, base, top)
    }

    fn idle_with(&self, value: u64) -> ! {
        call::idle_with(value)
    }

    fn enter_aarch32(&self) -> ! {
        call::enter_aarch32()
    }
}

/// Reports and turns the VM off.
fn end(outcome: u64, detail: u64) -> ! {
    let kind = Start::from_reg(START.load(Ordering::Acquire)).map_or(VmKind::Plain, |start| start.kind);
    let mailbox = MAILBOX + kind.shared();
    store(mailbox + 8 * word::DETAIL, detail);
    store(mailbox + 8 * word::OUTCOME, outcome);
    let mut regs = [0; 18];
    regs[0] = u64::from(abi::psci::SYSTEM_OFF);
    match kind {
        VmKind::Plain | VmKind::Protected => call::hvc(&regs),
        VmKind::Realm => call::smc(&regs),
    };
    call::idle()
}

/// Ends the VM because of a Rust panic.
pub(crate) fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    end(PANIC | info.location().map_or(0, |l| u64::from(l.line())), 0)
}

extern "C" fn first_vcpu(x0: u64) -> ! {
    let Some(start) = Start::from_reg(x0) else { end(FAILED, x0) };
    START.store(x0, Ordering::Release);
    // An error is one of the calls that end it: there is nobody to tell.
    let _ = payloads::run(&Env::new(&El1, start));
    call::idle()
}

extern "C" fn secondary_vcpu(context: u64) -> ! {
    if let Some(start) = Start::from_reg(START.load(Ordering::Acquire)) {
        // As above: CPU_OFF does not come back.
        let _ = payloads::secondary(&Env::new(&El1, start), context);
    }
    call::idle()
}
