//! Stage 1 of the shim: the early map, the machine's map, and a slot for hostile table walks.

use crate::board::Board;
use crate::machine::Fault;
use crate::span::{GIB, Span};
use crate::stage1::{Kind, MAIR, MAIR_TAGGED, Map, NoTables, Table};
use aarch64_cpu::asm::barrier::{self, ISH, SY};
use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, Readable};
use core::arch::asm;
use core::cell::UnsafeCell;
use spin::{Mutex, Once};

/// What `enable_mmu` loads; the order is the assembly's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Translation {
    ttbr0: u64,
    tcr: u64,
    mair: u64,
    sctlr: u64,
}

/// RES1 bits of SCTLR_EL1, and M, C, SA, I.
const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 3 | 1 << 12;
/// T0SZ 16 (48 bits), walks write-back and inner shareable, 4 KiB granule, no TTBR1 walks.
const TCR: u64 = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;

/// With memory tags: SCTLR_EL1.ATA, tag instructions reach them; TCR_EL1.TBI0, an address has one.
const ATA: u64 = 1 << 43;
const TBI0: u64 = 1 << 37;

/// Tables for the machine: 40 bits of devices, and 128 memory regions that are ragged at both ends.
const POOL: usize = 320;
/// Devices are mapped below this; the highest PCIe window of QEMU's machine ends here.
const DEVICE_TOP: u64 = 1 << 40;
/// Level-0 slot, and the address it translates, for hostile walks.
const HOSTILE_SLOT: usize = 511;
const HOSTILE_ADDRESS: u64 = 511 << 39;

struct Early {
    /// Root and one level-1 table each for image and device tree.
    tables: [Table; 3],
    translation: Translation,
}

struct Shared<T>(UnsafeCell<T>);

// SAFETY: each value has one function that borrows it, on the boot CPU before any other runs.
unsafe impl<T> Sync for Shared<T> {}

static EARLY: Shared<Early> = Shared(UnsafeCell::new(Early {
    tables: [Table::EMPTY; 3],
    translation: Translation { ttbr0: 0, tcr: 0, mair: 0, sctlr: 0 },
}));
static POOL_TABLES: Shared<[Table; POOL]> = Shared(UnsafeCell::new([Table::EMPTY; POOL]));

/// The machine's map, for CPUs that come up later.
static MACHINE: Once<Translation> = Once::new();
/// The root table, borrowed from the pool for good, of which only the hostile slot is written.
static ROOT: Mutex<Option<&'static mut Table>> = Mutex::new(None);

fn translation(root: *const Table) -> Translation {
    // 52-bit addresses need another descriptor format: at most 48 (encoding 5) are used.
    let ips = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5);
    let ttbr0 = u64::try_from(root.expose_provenance()).unwrap_or(0);
    let tcr = TCR | ips << 32;
    if super::tags::exist() {
        return Translation { ttbr0, tcr: tcr | TBI0, mair: MAIR_TAGGED, sctlr: SCTLR | ATA };
    }
    Translation { ttbr0, tcr, mair: MAIR, sctlr: SCTLR }
}

/// Maps the gigabytes that hold the image and the device tree. Runs with the MMU off.
pub(super) extern "C" fn early_map(image: u64, dtb: u64) -> &'static Translation {
    // SAFETY: the only borrow of EARLY; this runs once, before anything else.
    let early = unsafe { &mut *EARLY.0.get() };
    early.translation = translation(early.tables.as_ptr());
    let mut map = Map::new(&mut early.tables, early.translation.ttbr0);
    for address in [image, dtb] {
        // Three tables are always enough; a tree above 2^48 is none.
        let gib = Span::new(address & !(GIB - 1), GIB);
        if gib.is_none_or(|gib| map.map(gib, Kind::Ram).is_err()) {
            super::power::hang();
        }
    }
    &early.translation
}

/// Maps the whole machine and switches this CPU to that map.
pub(super) fn map_machine(board: &Board<'_>) -> Result<(), NoTables> {
    // SAFETY: the only borrow of POOL_TABLES; `boot_cpu` runs once and calls this once.
    let tables = unsafe { &mut *POOL_TABLES.0.get() };
    let translation = translation(tables.as_ptr());
    let mut map = Map::new(tables, translation.ttbr0);
    map.map(Span::new(0, DEVICE_TOP).ok_or(NoTables)?, Kind::Device)?;
    for device in &board.devices {
        map.map(device.span, Kind::Device)?;
    }
    for ram in &board.ram {
        map.map(*ram, Kind::Ram)?;
    }
    *ROOT.lock() = tables.first_mut();
    enable(MACHINE.call_once(|| translation));
    Ok(())
}

/// The machine's map, once there is one.
pub(super) fn machine_map() -> Option<Translation> {
    MACHINE.get().copied()
}

fn enable(translation: &'static Translation) {
    barrier::dsb(SY);
    // SAFETY: the tables map the image, its stack and the device tree to themselves, as the map in
    // use does, so the next instruction and all of Rust's objects stay where they are.
    unsafe {
        asm!("bl enable_mmu", in("x0") translation, clobber_abi("C"));
    }
}

/// Runs `walk` with an address that translates through a level-1 table at `table`.
pub(super) fn with_table_at(table: u64, walk: impl FnOnce(u64) -> Result<u64, Fault>) -> Result<u64, Fault> {
    let mut root = ROOT.lock();
    set_hostile_slot(root.as_deref_mut(), table | 3);
    let result = walk(HOSTILE_ADDRESS);
    set_hostile_slot(root.as_deref_mut(), 0);
    result
}

fn set_hostile_slot(root: Option<&mut Table>, descriptor: u64) {
    if let Some(slot) = root.and_then(|t| t.0.get_mut(HOSTILE_SLOT)) {
        // SAFETY: `slot` is a valid, aligned reference; volatile because the table walker reads it.
        unsafe { core::ptr::from_mut(slot).write_volatile(descriptor) };
    }
    barrier::dsb(ISH);
    // SAFETY: forgetting translations changes no memory; the others are all still in the tables.
    unsafe { asm!("tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
}

/// Writes `bytes` bytes from `start` back to where a CPU with its MMU off finds them.
pub(super) fn clean(start: *const u8, bytes: usize) {
    // The smallest line of the architecture is 16 bytes: no step can skip one.
    for offset in (0..bytes.next_multiple_of(16)).step_by(16) {
        let line = start.wrapping_add(offset);
        // SAFETY: cleaning changes no memory that a Rust object could tell.
        unsafe { asm!("dc cvac, {line}", line = in(reg) line, options(nostack)) };
    }
    barrier::dsb(SY);
}
