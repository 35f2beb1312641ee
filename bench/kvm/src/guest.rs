//! Guests of a few instructions, which need no stack and no memory but their own page.
#![forbid(unsafe_code)]

use crate::arch::Mapping;
use crate::kvm::{Exit, Keys, Kind, Kvm, RAM, Register, Vm};
use anyhow::{Context, Result, ensure};
use std::rc::Rc;

/// Where a guest's loads and stores are the VMM's: it has no device there, and no memory.
pub(crate) const DEVICE: u64 = 0x0900_0000;

/// x19 calls of function x20 with x22 for an argument, which goes on by x23; then a store of the last answer at x21. Again.
const CALLS: [u32; 10] = [
    0xaa14_03e0, // mov x0, x20
    0xaa16_03e1, // mov x1, x22
    0xaa1f_03e2, // mov x2, xzr
    0xaa1f_03e3, // mov x3, xzr
    0xd400_0002, // hvc #0
    0x8b17_02d6, // add x22, x22, x23
    0xf100_0673, // subs x19, x19, #1
    0x54ff_ff21, // b.ne mov
    0xf900_02a0, // str x0, [x21]
    0x17ff_fff7, // b mov
];

/// x19 stores at x22, which goes on by x23; then a store of x0 at x21. Again.
const STORES: [u32; 6] = [
    0xf900_02d6, // str x22, [x22]
    0x8b17_02d6, // add x22, x22, x23
    0xf100_0673, // subs x19, x19, #1
    0x54ff_ffa1, // b.ne str
    0xf900_02a0, // str x0, [x21]
    0x17ff_fffb, // b str
];

/// A load at x21. Again.
const LOADS: [u32; 2] = [
    0xf940_02a0, // ldr x0, [x21]
    0x17ff_ffff, // b ldr
];

/// What a guest does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// As many calls as it is told, then a store for the VMM.
    Calls,
    /// As many stores to memory, then one for the VMM.
    Stores,
    /// A load for the VMM.
    Loads,
}

impl Program {
    const fn words(self) -> &'static [u32] {
        match self {
            Self::Calls => &CALLS,
            Self::Stores => &STORES,
            Self::Loads => &LOADS,
        }
    }

    /// Where in the guest's first page it is.
    const fn offset(self) -> u64 {
        match self {
            Self::Calls => 0,
            Self::Stores => 0x100,
            Self::Loads => 0x200,
        }
    }
}

/// So many times the same thing, at an address that goes on by so much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turns {
    /// How many times.
    pub(crate) count: u64,
    /// The function, of calls.
    pub(crate) function: u64,
    /// The first address.
    pub(crate) at: u64,
    /// How far it is to the next.
    pub(crate) stride: u64,
}

/// A VM with all programs in its first page.
#[derive(Debug)]
pub(crate) struct Guest(Vm);

impl Guest {
    /// One that has not run yet.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(kvm: &Kvm, kind: Kind, memory: Rc<Mapping>) -> Result<Self> {
        for program in [Program::Calls, Program::Stores, Program::Loads] {
            let bytes: Vec<u8> = program.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            memory.write(usize::try_from(program.offset())?, &bytes)?;
        }
        Ok(Self(kvm.create(kind, Keys::None, memory)?))
    }

    /// Does something so many times; what it stores for the VMM at the end.
    ///
    /// # Errors
    /// The kernel's; another exit.
    pub(crate) fn run(&self, program: Program, turns: Turns) -> Result<u64> {
        self.start(program, turns)?;
        self.finish()
    }

    /// Sets it up for that.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn start(&self, program: Program, turns: Turns) -> Result<()> {
        let start = RAM.checked_add(program.offset()).context("no such address")?;
        let registers = [
            (Register::Pc, start),
            (Register::X(19), turns.count),
            (Register::X(20), turns.function),
            (Register::X(21), DEVICE),
            (Register::X(22), turns.at),
            (Register::X(23), turns.stride),
        ];
        registers.into_iter().try_for_each(|(register, value)| self.0.set(register, value))
    }

    /// Runs it to the access that is the VMM's; what a store writes.
    ///
    /// # Errors
    /// The kernel's; another exit.
    pub(crate) fn finish(&self) -> Result<u64> {
        loop {
            match self.0.run()? {
                Exit::Mmio { address: DEVICE, data, length: 8, .. } => return Ok(u64::from_le_bytes(data)),
                Exit::Interrupted => {}
                exit => {
                    let pc = self.0.get(Register::Pc).unwrap_or(0);
                    ensure!(false, "the guest ends at {pc:#x} with {exit:x?}");
                }
            }
        }
    }

    /// Loads its vCPU and puts it; the first time, EL2 learns of the VM.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn load_and_put(&self) -> Result<()> {
        self.0.load_and_put()
    }
}
