//! The EL1 runtime: all of the shim's assembly, system registers and raw memory.
//!
//! Boot goes `entry` (relocate, early map of the two gigabytes that hold image and tree, MMU on) ->
//! [`boot_cpu`] (read the tree, map the machine) -> [`crate::run`]. Interrupts stay masked.
#![allow(unsafe_code, reason = "this is the one module of the shim that is allowed to touch the machine")]

mod call;
mod console;
mod counter;
mod entry;
mod exception;
mod fp;
mod gic;
mod keys;
mod memory;
mod mmu;
mod power;
mod probe;
mod semihosting;
mod smp;
mod tags;

use crate::board::{Board, Gic};
use crate::machine::{Access, CallRun, CpuEntry, Fault, Find, Imm, Machine, Regs, Timed, TurnRun, Work};
use crate::span::Span;
use crate::{Ending, Shim};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTVCT_EL0, CurrentEL, Readable, TPIDR_EL1, Writeable};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use dtoolkit::fdt::Fdt;

/// This machine.
#[derive(Debug)]
struct El1 {
    frequency: u64,
    ticks_at_entry: u64,
    gic: Option<Gic>,
    /// The boot CPU counts its instructions.
    counting: AtomicBool,
}

impl Machine for El1 {
    fn line(&self, text: fmt::Arguments<'_>) {
        console::line(text);
    }

    fn say(&self, character: u8) {
        console::say(character);
    }

    fn hear(&self) -> Option<u8> {
        console::hear()
    }

    fn exception_level(&self) -> u8 {
        // The field has two bits.
        u8::try_from(CurrentEL.read(CurrentEL::EL)).unwrap_or(u8::MAX)
    }

    fn hvc(&self, imm: Imm, regs: &Regs) -> Regs {
        call::hvc(imm, regs)
    }

    fn smc(&self, imm: Imm, regs: &Regs) -> Regs {
        call::smc(imm, regs)
    }

    fn probe(&self, access: Access, address: u64, value: u64) -> Result<u64, Fault> {
        probe::probe(access, address, value)
    }

    fn load_through_table(&self, table: u64) -> Result<u64, Fault> {
        mmu::with_table_at(table, |va| probe::probe(Access::Load, va, 0))
    }

    fn find(&self, span: Span, find: Find) -> Result<Option<u64>, Fault> {
        probe::find(span, find)
    }

    fn fill(&self, span: Span, word: u64) {
        memory::fill(span, word);
    }

    fn copy(&self, to: u64, from: Span) {
        memory::copy(to, from);
    }

    fn read_bytes(&self, address: u64, into: &mut [u8]) {
        memory::read_bytes(address, into);
    }

    fn write_bytes(&self, address: u64, from: &[u8]) {
        memory::write_bytes(address, from);
    }

    fn ticks(&self) -> u64 {
        ticks()
    }

    fn frequency(&self) -> u64 {
        self.frequency
    }

    fn count_instructions(&self) -> bool {
        let counts = counter::start();
        self.counting.store(counts, Ordering::Relaxed);
        counts
    }

    fn instructions(&self) -> Option<u32> {
        self.counting.load(Ordering::Relaxed).then(counter::read)
    }

    fn ticks_at_entry(&self) -> u64 {
        self.ticks_at_entry
    }

    fn cpu(&self) -> usize {
        this_cpu()
    }

    fn cpu_entry(&self, cpu: usize) -> Option<CpuEntry> {
        smp::cpu_entry(cpu)
    }

    fn start_cpu(&self, cpu: usize) -> Result<(), i64> {
        smp::start(cpu)
    }

    fn wait_for_cpu(&self, cpu: usize) -> bool {
        smp::wait_until_ready(cpu)
    }

    fn stop_cpu(&self, cpu: usize) {
        smp::stop(cpu);
    }

    fn run_on(&self, cpus: &[usize], work: Work<'_>) {
        smp::run_on(cpus, work);
    }

    fn wake_after(&self, ticks: u64) -> bool {
        self.gic.as_ref().is_some_and(|gic| gic::wake_after(gic, ticks))
    }

    fn cancel_wake(&self) {
        gic::cancel_wake();
    }

    fn heed_kicks(&self) {
        gic::heed_kicks();
    }

    fn kick(&self, cpu: usize) {
        if let Some(entry) = smp::cpu_entry(cpu) {
            gic::kick(entry.mpidr);
        }
    }

    fn wait(&self) {
        aarch64_cpu::asm::wfi();
    }

    fn set_guest_timer_active(&self, active: bool) {
        if let Some(gic) = &self.gic {
            gic::set_guest_timer_active(gic, active);
        }
    }

    fn fill_fp(&self, seed: u64) {
        fp::fill(seed);
    }

    fn fp_holds(&self, seed: u64) -> bool {
        fp::holds(seed)
    }

    fn fill_keys(&self, seed: u64) {
        keys::fill(seed);
    }

    fn keys_hold(&self, seed: u64) -> bool {
        keys::holds(seed)
    }

    fn has_tags(&self) -> bool {
        tags::exist()
    }

    fn tag(&self, address: u64) -> u64 {
        tags::load(address)
    }

    fn set_tag(&self, address: u64, tag: u64) {
        tags::store(address, tag);
    }

    fn swap_tag_registers(&self, values: [u64; 4]) -> [u64; 4] {
        tags::swap_registers(values)
    }

    fn check_tags(&self, on: bool) {
        tags::check(on);
    }

    fn time_turns(&self, run: &TurnRun, call: bool) -> Timed {
        call::time_turns(run, call)
    }

    fn write_file(&self, name: &str, append: bool, bytes: &[u8]) -> bool {
        semihosting::write_file(name, append, bytes)
    }

    fn time_calls(&self, run: &CallRun, call: bool) -> Timed {
        call::time_calls(run, call)
    }

    fn time_loads(&self, first: u64, stride: u64, count: u64) -> u64 {
        call::time_loads(first, stride, count)
    }
}

/// Index of this CPU in the device tree; 0 until it is known.
fn this_cpu() -> usize {
    // Only `set_this_cpu` writes the register, from a usize.
    usize::try_from(TPIDR_EL1.get()).unwrap_or(0)
}

fn set_this_cpu(cpu: usize) {
    TPIDR_EL1.set(u64::try_from(cpu).unwrap_or(0));
}

/// The virtual counter, read in program order.
fn ticks() -> u64 {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
    CNTVCT_EL0.get()
}

/// Polls `done` for `seconds`; false if it stayed false.
fn wait_until(seconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = ticks();
    let limit = CNTFRQ_EL0.get().saturating_mul(seconds);
    loop {
        if done() {
            return true;
        }
        if ticks().wrapping_sub(start) > limit {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Reports what cannot be survived, and ends the machine.
fn fatal(reason: fmt::Arguments<'_>) -> ! {
    console::urgent_line(format_args!("@fail panic: {reason}"));
    power::end(Ending::PowerOff, false)
}

/// Ends the machine because of a Rust panic.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    fatal(format_args!("CPU {}: {info}", this_cpu()))
}

/// Rust's first code on the boot CPU, MMU on, with the early map.
extern "C" fn boot_cpu(dtb: *const u8, ticks_at_entry: u64) -> ! {
    // SAFETY: the boot protocol passes a device tree that stays in place and that nobody writes;
    // the early map covers the gigabyte it begins in, and it does not cross into another (the arm64
    // boot protocol limits it to 2 MiB inside an aligned 2 MiB block).
    let fdt = match unsafe { Fdt::from_raw(dtb) } {
        Ok(fdt) => fdt,
        Err(e) => fatal(format_args!("device tree at {dtb:p}: {e}")),
    };
    let board = match Board::read(fdt) {
        Ok(board) => board,
        Err(e) => fatal(format_args!("{e}")),
    };
    power::set_conduit(board.conduit);
    if let Err(e) = mmu::map_machine(&board) {
        fatal(format_args!("mapping the machine: {e:?}"));
    }
    if let Some(uart) = board.console {
        console::set(uart);
    }
    let Some(cpu) = smp::set_up(&board.cpus) else {
        fatal(format_args!("this CPU is not in the device tree"))
    };
    set_this_cpu(cpu);

    let tree =
        Span::new(u64::try_from(dtb.addr()).unwrap_or(0), u64::try_from(fdt.data().len()).unwrap_or(0));
    let used: arrayvec::ArrayVec<Span, 2> = [tree, Some(entry::image())].into_iter().flatten().collect();
    let pages = match board.free_pages(&used) {
        Ok(pages) => pages,
        Err(e) => fatal(format_args!("free memory: {e:?}")),
    };
    let counting = AtomicBool::new(false);
    let machine = El1 { frequency: CNTFRQ_EL0.get(), ticks_at_entry, gic: board.gic.clone(), counting };
    let shim = Shim { machine: &machine, board: &board, pages, boot_cpu: cpu };
    let (ending, passed) = crate::run(shim);
    power::end(ending, passed)
}
