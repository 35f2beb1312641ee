//! What the host learns of an exit, as a type: each reason carries its own fields and no others.
//!
//! [`ExitInfo`] and, before a HOST_CALL, its registers are all that is written to the exit record, so what a variant does
//! not hold the host cannot see. The record's page is shared with the host: EL2 writes whole words and reads each word of
//! the answer once.
#![forbid(unsafe_code)]

use crate::addr::{Ipa, PAGE_SIZE, Pfn};
use crate::hw::PhysMem;
use crate::ipa_state::Want;
use crate::mmio_guard::PendingMmio;
use abi::exit::{
    DIR_READ, DIR_WRITE, ExitFlags, MAX_LRS, Reason, Resp, WANT_EMPTY, WANT_RAM, WANT_WFE, WANT_WFI, word,
};

/// Why a vCPU is back at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitInfo {
    /// An interrupt, or an SError that EL2 consumed.
    Irq {
        /// An SError.
        serror: bool,
    },
    /// WFI or WFE, which is behind the guest.
    Wfx {
        /// WFE.
        wfe: bool,
    },
    /// A PSCI call.
    Psci {
        /// The function id.
        function: u32,
        /// CPU_ON: index of the vCPU that is to run.
        target: Option<u8>,
    },
    /// An emulated access.
    Mmio {
        /// Where and how.
        access: PendingMmio,
        /// What a store writes, 0 for a load.
        data: u64,
    },
    /// A page is missing, or a permission.
    MemFault {
        /// The page.
        page: Ipa,
        /// Which kind.
        flags: ExitFlags,
        /// How often this fault came in a row before.
        repeat: u32,
    },
    /// A guest call lacks table pages.
    NeedMem {
        /// How many.
        pages: u32,
    },
    /// Nothing runs any more.
    Dead,
    /// An SGI for the VMM to deliver.
    Sgi {
        /// What the guest wrote to ICC_SGI1R_EL1.
        value: u64,
    },
    /// The guest asks for frames to become something else.
    RipasChange {
        /// First byte.
        base: u64,
        /// One past the last.
        top: u64,
        /// What.
        want: Want,
    },
    /// The guest calls the host, with registers that [`put_register`] has written.
    HostCall {
        /// What the guest has beside them.
        imm: u16,
    },
    /// Pages the guest gave up.
    Relinquished {
        /// First byte.
        base: u64,
        /// One past the last.
        top: u64,
    },
    /// A trap that EL2 does not know, of a VM that is not protected.
    Trap {
        /// ESR_EL2.
        esr: u64,
    },
}

impl ExitInfo {
    /// Writes the record into `page`, with the timer's `deadline` and the list registers as the
    /// guest left them; every other field that is not this exit's own is 0.
    pub fn write(&self, hw: &impl PhysMem, page: Pfn, deadline: u64, lrs: &[u64]) {
        let put = |n, value| hw.write_word(page, n, value);
        // The words that every exit defines, and no others: the rest is the host's.
        (word::GPA..word::VTIMER).for_each(|n| put(n, 0));
        put(word::VTIMER, deadline);
        let (reason, flags) = match *self {
            Self::Irq { serror } => {
                (Reason::Irq, if serror { ExitFlags::SERROR } else { ExitFlags::empty() })
            }
            Self::Wfx { wfe } => {
                put(word::WANT, both(if wfe { WANT_WFE } else { WANT_WFI }, 0));
                (Reason::Wfx, ExitFlags::empty())
            }
            Self::Psci { function, target } => {
                put(word::DATA, function.into());
                put(word::BASE, target.map_or(0, u64::from));
                (Reason::Psci, ExitFlags::empty())
            }
            Self::Mmio { access, data } => {
                let dir = if access.transfer.is_write() { DIR_WRITE } else { DIR_READ };
                put(word::GPA, access.gpa);
                put(word::SIZE, both(access.transfer.width().bytes(), dir));
                put(word::DATA, data);
                (Reason::Mmio, ExitFlags::empty())
            }
            Self::MemFault { page, flags, repeat } => {
                put(word::GPA, page.raw());
                put(word::SIZE, PAGE_SIZE);
                put(word::REPEAT, repeat.into());
                (Reason::MemFault, flags)
            }
            Self::NeedMem { pages } => {
                put(word::WANT, both(0, pages));
                (Reason::NeedMem, ExitFlags::empty())
            }
            Self::Dead => (Reason::Dead, ExitFlags::empty()),
            Self::Sgi { value } => {
                put(word::DATA, value);
                (Reason::Sgi, ExitFlags::empty())
            }
            Self::RipasChange { base, top, want } => {
                let (want, flags) = match want {
                    Want::Empty => (WANT_EMPTY, ExitFlags::empty()),
                    Want::Ram { destroyed: false } => (WANT_RAM, ExitFlags::empty()),
                    Want::Ram { destroyed: true } => (WANT_RAM, ExitFlags::CHANGE_DESTROYED),
                };
                put(word::BASE, base);
                put(word::TOP, top);
                put(word::WANT, both(want, 0));
                (Reason::RipasChange, flags)
            }
            Self::HostCall { imm } => {
                put(word::WANT, both(imm.into(), 0));
                (Reason::HostCall, ExitFlags::empty())
            }
            Self::Relinquished { base, top } => {
                put(word::BASE, base);
                put(word::TOP, top);
                (Reason::Relinquished, ExitFlags::empty())
            }
            Self::Trap { esr } => {
                put(word::DATA, esr);
                (Reason::Trap, ExitFlags::empty())
            }
        };
        put(word::REASON, both(reason as u32, flags.bits()));
        for (n, &lr) in (word::LR..).zip(lrs.iter().take(MAX_LRS)) {
            put(n, lr);
        }
    }
}

/// The word of the fields at bits 31:0 and 63:32.
#[inline]
const fn both(low: u32, high: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (low.to_le_bytes(), high.to_le_bytes());
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// What the host answered, copied out of its page once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What becomes of the pending exit.
    pub resp: Resp,
    /// What an MMIO read returns.
    pub mmio_data: u64,
    /// How many list registers are meant; not checked.
    pub nr_lr: u32,
    /// ICH_HCR_EL2 bits; not checked.
    pub gic_hcr: u32,
}

impl Answer {
    /// Reads the answer in `page`, each word once, all but the list registers.
    #[must_use]
    #[inline]
    pub fn read(hw: &impl PhysMem, page: Pfn) -> Self {
        let (nr_lr, gic_hcr) = halves(hw.read_entry(page, word::GIC));
        Self {
            resp: Resp::from_u32(halves(hw.read_entry(page, word::RESP)).0),
            mmio_data: hw.read_entry(page, word::MMIO_DATA),
            nr_lr,
            gic_hcr,
        }
    }
}

/// List register `n` of the answer in `page`; to be read once.
#[inline]
pub fn list_register(hw: &impl PhysMem, page: Pfn, n: usize) -> u64 {
    hw.read_entry(page, word::LR.saturating_add(n))
}

/// Writes register `n` of a HOST_CALL; there are 31.
#[inline]
pub fn put_register(hw: &impl PhysMem, page: Pfn, n: usize, value: u64) {
    hw.write_word(page, word::GPR.saturating_add(n), value);
}

/// Register `n` of the answer to a HOST_CALL; to be read once.
#[inline]
pub fn register(hw: &impl PhysMem, page: Pfn, n: usize) -> u64 {
    hw.read_entry(page, word::GPR.saturating_add(n))
}

/// Bits 31:0 and 63:32.
#[inline]
const fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::{Answer, ExitInfo, PendingMmio, Want, list_register};
    use crate::addr::{Ipa, Pfn};
    use crate::exception::Syndrome;
    use crate::guest::context::GicContext;
    use crate::hw::{MappedPage, PhysMem};
    use crate::mmio_guard::Transfer;
    use abi::exit::{DIR_WRITE, ExitFlags, ExitRecord, Reason, Resp, word};
    use std::cell::RefCell;
    use std::vec;
    use std::vec::Vec;
    use zerocopy::{FromZeros, IntoBytes};

    /// A page that the host rewrites after every read.
    struct Racing {
        words: RefCell<Vec<u64>>,
        reads: RefCell<Vec<usize>>,
    }

    impl PhysMem for Racing {
        fn read_entry(&self, _: Pfn, index: usize) -> u64 {
            self.reads.borrow_mut().push(index);
            core::mem::replace(&mut self.words.borrow_mut()[index], u64::MAX)
        }
        fn write_entry(&self, _: Pfn, _: usize, _: u64) {
            panic!("a record is no table")
        }
        fn write_word(&self, _: Pfn, index: usize, value: u64) {
            self.words.borrow_mut()[index] = value;
        }
        fn put_word(&self, _: MappedPage, _: usize, _: u64) {
            panic!("a record is the host's")
        }
        fn get_word(&self, _: MappedPage, _: usize) -> u64 {
            panic!("a record is the host's")
        }
        fn zero_page(&self, _: MappedPage) {}
        fn copy_page(&self, _: MappedPage, _: MappedPage) {}
        fn copy_entries(&self, _: MappedPage, _: MappedPage, _: bool) -> u64 {
            panic!("a record is no table")
        }
    }

    fn page() -> Pfn {
        Pfn::new(9).unwrap()
    }

    #[test]
    fn each_word_of_an_answer_is_read_once_and_only_list_registers_that_are_meant() {
        for used in [0, 1, 3, 16, 17, u32::MAX] {
            let mut words: Vec<u64> = vec![0; 512];
            words[word::RESP] = 1;
            words[word::MMIO_DATA] = 0x11;
            words[word::GIC] = u64::from(used) | 2 << 32;
            let racing = Racing { words: RefCell::new(words), reads: RefCell::default() };
            let answer = Answer::read(&racing, page());
            assert_eq!((answer.resp, answer.mmio_data), (Resp::Done, 0x11));
            assert_eq!((answer.nr_lr, answer.gic_hcr), (used, 2));
            let mut gic = GicContext::default();
            let supplied = gic.supply(used, 2, 16, |n| list_register(&racing, page(), n));
            assert_eq!(supplied.is_ok(), used <= 16);
            let lrs = if used > 16 { 0 } else { usize::try_from(used).unwrap() };
            let mut reads = racing.reads.into_inner();
            assert_eq!(reads.len(), 3 + lrs);
            reads.sort_unstable();
            reads.dedup();
            assert_eq!(reads.len(), 3 + lrs, "no word twice");
        }
    }

    #[test]
    fn an_exit_writes_what_the_hypervisor_has_to_say_and_leaves_the_hosts_fields() {
        let racing = Racing { words: RefCell::new(vec![7; 512]), reads: RefCell::default() };
        ExitInfo::Dead.write(&racing, page(), 99, &[5, 6]);
        let words = racing.words.into_inner();
        assert_eq!(words[0], 8);
        assert_eq!(words[1..word::VTIMER], [0; word::VTIMER - 1]);
        assert_eq!(words[word::VTIMER], 99);
        assert_eq!(words[word::RESP..word::LR], [7; 3]);
        assert_eq!(words[word::LR..word::LR + 3], [5, 6, 7]);
        assert!(racing.reads.into_inner().is_empty());
    }

    fn of(reason: Reason) -> ExitRecord {
        let mut record = ExitRecord::new_zeroed();
        record.reason = reason as u32;
        record
    }

    #[test]
    fn each_reason_defines_its_fields_and_leaves_the_others_zero() {
        let abort = Syndrome::new(0x24 << 26 | 1 << 24 | 1 << 22 | 1 << 21 | 9 << 16 | 1 << 15 | 1 << 6);
        let mmio = PendingMmio::new(0x0900_0002, Transfer::decode(abort).unwrap()).unwrap();
        let fault = Ipa::new(0x8000_1000).unwrap();
        let flags = ExitFlags::PRIVATE | ExitFlags::DESTROYED;
        for (info, record) in [
            (ExitInfo::Irq { serror: false }, of(Reason::Irq)),
            (ExitInfo::Irq { serror: true }, ExitRecord { flags: 1 << 9, ..of(Reason::Irq) }),
            (ExitInfo::Wfx { wfe: true }, ExitRecord { want: 1, ..of(Reason::Wfx) }),
            (
                ExitInfo::Psci { function: 0xc400_0003, target: Some(3) },
                ExitRecord { data: 0xc400_0003, base: 3, ..of(Reason::Psci) },
            ),
            (
                ExitInfo::Mmio { access: mmio, data: 0xbeef },
                ExitRecord { gpa: 0x0900_0002, size: 2, dir: DIR_WRITE, data: 0xbeef, ..of(Reason::Mmio) },
            ),
            (
                ExitInfo::MemFault { page: fault, flags, repeat: 4 },
                ExitRecord { gpa: 0x8000_1000, size: 4096, flags: 0x88, repeat: 4, ..of(Reason::MemFault) },
            ),
            (ExitInfo::NeedMem { pages: 2 }, ExitRecord { need_pages: 2, ..of(Reason::NeedMem) }),
            (ExitInfo::Dead, of(Reason::Dead)),
            (ExitInfo::Sgi { value: 0x10_0001 }, ExitRecord { data: 0x10_0001, ..of(Reason::Sgi) }),
            (
                ExitInfo::Relinquished { base: 0x1000, top: 0x3000 },
                ExitRecord { base: 0x1000, top: 0x3000, ..of(Reason::Relinquished) },
            ),
            (
                ExitInfo::RipasChange { base: 0x1000, top: 0x3000, want: Want::Empty },
                ExitRecord { base: 0x1000, top: 0x3000, ..of(Reason::RipasChange) },
            ),
            (
                ExitInfo::RipasChange { base: 0x1000, top: 0x3000, want: Want::Ram { destroyed: true } },
                ExitRecord { base: 0x1000, top: 0x3000, want: 1, flags: 1 << 8, ..of(Reason::RipasChange) },
            ),
            (ExitInfo::HostCall { imm: 0xbeef }, ExitRecord { want: 0xbeef, ..of(Reason::HostCall) }),
            (ExitInfo::Trap { esr: 7 }, ExitRecord { data: 7, ..of(Reason::Trap) }),
        ] {
            let racing = Racing { words: RefCell::new(vec![7; 512]), reads: RefCell::default() };
            info.write(&racing, page(), 99, &[]);
            let record = ExitRecord { vtimer: 99, ..record };
            let want = record.as_bytes().as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            let written = racing.words.into_inner();
            assert!(written.into_iter().zip(want).take(word::VTIMER + 1).all(|(w, r)| w == r), "{info:?}");
        }
    }
}
