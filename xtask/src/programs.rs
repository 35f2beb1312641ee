//! Linux programs of a few instructions: each tries one thing that traps of EL2 could take from the host.
//!
//! A C compiler for arm64 is not needed, and busybox cannot do these things. A program ends with the status in x0; an
//! instruction that the CPU does not have, or that EL2 keeps from EL1, ends it with a signal.

/// A program of the RAM disk.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name; of a feature as `/proc/cpuinfo` has it.
    pub name: &'static str,
    code: &'static [u32],
}

const X0_IS_0: u32 = 0xd280_0000;
const SVC: u32 = 0xd400_0001;

/// What works if, and only if, the kernel lists it in `/proc/cpuinfo`.
pub const FEATURES: [Program; 10] = [
    // ldadd x0, x1, [sp]
    Program { name: "atomics", code: &[0xf820_03e1, X0_IS_0] },
    // pacia x0, x1; autia x0, x1; pacga x2, x0, x1
    Program { name: "paca", code: &[0xdac1_0020, 0xdac1_1020, 0x9ac1_3002, X0_IS_0] },
    // rdvl x0, #1; ptrue p0.b; dup z31.b, #5
    Program { name: "sve", code: &[0x04bf_5020, 0x2518_e3e0, 0x2538_c0bf, X0_IS_0] },
    // smstart; rdsvl x0, #1; zero {za}; smstop
    Program { name: "sme", code: &[0xd503_477f, 0x04bf_5820, 0xc008_00ff, 0xd503_467f, X0_IS_0] },
    // smstart; zero {zt0}; smstop
    Program { name: "sme2", code: &[0xd503_477f, 0xc048_0001, 0xd503_467f, X0_IS_0] },
    // mrs x0, rndr
    Program { name: "rng", code: &[0xd53b_2400, X0_IS_0] },
    // sub sp, sp, #64; mov x0, sp; mov x1, #64; setp, setm, sete [x0]!, x1!, xzr
    Program {
        name: "mops",
        code: &[0xd101_03ff, 0x9100_03e0, 0xd280_0801, 0x19df_0420, 0x19df_4420, 0x19df_8420, X0_IS_0],
    },
    // mrs x0, por_el0
    Program { name: "poe", code: &[0xd53b_a280, X0_IS_0] },
    // prctl(PR_SET_SHADOW_STACK_STATUS, PR_SHADOW_STACK_ENABLE, 0, 0, 0); mrs x9, gcspr_el0
    Program {
        name: "gcs",
        code: &[
            0xd280_14e8,
            0xd280_0960,
            0xd280_0021,
            0xd280_0002,
            0xd280_0003,
            0xd280_0004,
            SVC,
            0xd53b_2529,
        ],
    },
    // prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC | 0xe000 << PR_MTE_TAG_SHIFT, 0, 0, 0);
    // x1 = mmap(x0 = 0, 4096, PROT_READ | PROT_WRITE | PROT_MTE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) | 5 << 56;
    // stg x1, [x1]; ldg x2, [x2 = x0]; 0 if x1 == x2, else 1
    Program {
        name: "mte",
        code: &[
            0xd280_14e8,
            0xd280_06e0,
            0xd280_0061,
            0xf2a0_00e1,
            0xd280_0002,
            0xd280_0003,
            0xd280_0004,
            SVC,
            0xb500_01c0,
            0xd280_1bc8,
            0xd282_0001,
            0xd280_0462,
            0xd280_0443,
            0x9280_0004,
            0xd280_0005,
            SVC,
            0xd2e0_a003,
            0xaa03_0001,
            0xd920_0821,
            0xaa00_03e2,
            0xd960_0042,
            0xca02_0020,
            0xb400_0040,
            0xd280_0020,
        ],
    },
];

/// What every CPU can do, and the clock.
pub const TOOLS: [Program; 3] = [
    // perf_event_open of PERF_COUNT_HW_CPU_CYCLES for itself, read of it: 0 if it counted.
    Program {
        name: "cycles",
        code: &[
            0xd101_83ff,
            0xa900_7fff,
            0xa901_7fff,
            0xa902_7fff,
            0xa903_7fff,
            0x5280_0801,
            0xb900_07e1,
            0x9100_03e0,
            0xd280_0001,
            0x9280_0002,
            0x9280_0003,
            0xd280_0004,
            0xd280_1e28,
            SVC,
            0x9100_03e1,
            0xd280_0102,
            0xd280_07e8,
            SVC,
            0xf100_201f,
            0x5400_0081,
            0xf940_03e0,
            0xb400_0040,
            0x9280_0000,
            0x9100_0400,
        ],
    },
    // perf_event_open of PERF_TYPE_BREAKPOINT for itself, on the instruction behind the call: 0 if it was met once.
    Program {
        name: "breakpoint",
        code: &[
            0xd101_83ff,
            0xa900_7fff,
            0xa901_7fff,
            0xa902_7fff,
            0xa903_7fff,
            0xa904_7fff,
            0x5280_00a1,
            0x5280_0a02,
            0x2900_0be1,
            0x5280_0081,
            0xb900_37e1,
            0x1000_0141,
            0xd280_0082,
            0xa903_8be1,
            0x9100_03e0,
            0xd280_0001,
            0x9280_0002,
            0x9280_0003,
            0xd280_0004,
            0xd280_1e28,
            SVC,
            0x9100_03e1,
            0xd280_0102,
            0xd280_07e8,
            SVC,
            0xf940_03e1,
            0xd100_0420,
        ],
    },
    // write(1, {CNTVCT_EL0, CNTFRQ_EL0}, 16)
    Program {
        name: "counter",
        code: &[
            0xd53b_e041,
            0xd53b_e002,
            0xa9bf_0be1,
            0xd280_0020,
            0x9100_03e1,
            0xd280_0202,
            0xd280_0808,
            SVC,
            X0_IS_0,
        ],
    },
];

const HEADERS: u16 = 64 + 56;
const AT: u64 = 0x40_0000;
/// Where `counter` has the counter in x1 and its frequency in x2. In any larger program there are headers.
pub const COUNTER_IS_READ: u64 = AT + HEADERS as u64 + 8;

impl Program {
    /// As a static ELF file: one segment, headers and code.
    #[must_use]
    pub fn elf(&self) -> Vec<u8> {
        // exit(x0): mov x8, #93; svc #0
        let code: Vec<u8> =
            self.code.iter().chain(&[0xd280_0ba8, SVC]).flat_map(|word| word.to_le_bytes()).collect();
        let size = u64::try_from(code.len()).unwrap_or(u64::MAX).saturating_add(u64::from(HEADERS));
        let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        // ET_EXEC, EM_AARCH64, version, entry, program headers, no sections, flags, sizes and counts.
        file.extend([2_u16, 183].iter().flat_map(|half| half.to_le_bytes()));
        file.extend(1_u32.to_le_bytes());
        let entry = AT.saturating_add(u64::from(HEADERS));
        file.extend([entry, 64, 0].iter().flat_map(|double| double.to_le_bytes()));
        file.extend(0_u32.to_le_bytes());
        file.extend([64_u16, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
        // PT_LOAD, read and execute, offset, addresses, sizes, alignment.
        file.extend([1_u32, 5].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([0, AT, AT, size, size, 0x1_0000].iter().flat_map(|double: &u64| double.to_le_bytes()));
        file.extend(code);
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::read::elf::{FileHeader, ProgramHeader};
    use object::{LittleEndian, elf};

    #[test]
    fn a_program_is_one_segment_that_ends_with_exit() {
        for program in FEATURES.iter().chain(&TOOLS) {
            let file = program.elf();
            let header = elf::FileHeader64::<LittleEndian>::parse(&*file).unwrap();
            let endian = header.endian().unwrap();
            assert_eq!(header.e_machine(endian), elf::EM_AARCH64);
            let [segment] = header.program_headers(endian, &*file).unwrap() else { panic!("two segments") };
            assert_eq!(segment.data(endian, &*file).unwrap(), file);
            let code = header.e_entry(endian).checked_sub(segment.p_vaddr(endian)).unwrap();
            assert_eq!(file[usize::try_from(code).unwrap()..][..4], program.code[0].to_le_bytes());
            assert_eq!(file.last_chunk(), Some(&SVC.to_le_bytes()), "{}", program.name);
        }
    }
}
