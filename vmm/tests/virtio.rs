//! The virtio console with a driver that keeps the rules, and with ones that do not.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics says that it failed")]
#![allow(clippy::arithmetic_side_effects, reason = "addresses and small numbers of a test")]
#![allow(clippy::cast_possible_truncation, reason = "sizes are small")]

use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use vmm::Width;
use vmm::virtio::{Console, NotShared, SharedMemory};

/// The bit of a realm's shared half.
const SHARED: u64 = 1 << 35;
const BASE: u64 = SHARED | 0x4000_0000;
const SIZE: usize = 0x4000;
const QUEUE: u16 = 8;
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Ram {
    bytes: RefCell<Vec<u8>>,
    /// How often each address was read.
    reads: RefCell<BTreeMap<u64, u32>>,
    accesses: Cell<u32>,
    /// What is not RAM reads as zero.
    endless: Cell<bool>,
    /// Whenever the device looks for a chain there is another one.
    busy: Cell<bool>,
}

impl Ram {
    fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0; SIZE]),
            reads: RefCell::default(),
            accesses: Cell::default(),
            endless: Cell::default(),
            busy: Cell::default(),
        }
    }

    fn range(address: u64, len: usize) -> Result<std::ops::Range<usize>, NotShared> {
        let start = usize::try_from(address.checked_sub(BASE).ok_or(NotShared)?).map_err(|_| NotShared)?;
        let end = start.checked_add(len).filter(|end| *end <= SIZE).ok_or(NotShared)?;
        Ok(start..end)
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.bytes.borrow_mut()[Self::range(address, bytes.len()).unwrap()].copy_from_slice(bytes);
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        self.bytes.borrow()[Self::range(address, N).unwrap()].try_into().unwrap()
    }
}

impl SharedMemory for Ram {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), NotShared> {
        self.accesses.set(self.accesses.get() + 1);
        *self.reads.borrow_mut().entry(address).or_default() += 1;
        match Self::range(address, into.len()) {
            Ok(range) => into.copy_from_slice(&self.bytes.borrow()[range]),
            Err(NotShared) if self.endless.get() => into.fill(0),
            Err(NotShared) => return Err(NotShared),
        }
        let index = Guest::table(TRANSMIT, 1) + 2;
        if self.busy.get() && address == index {
            self.put(index, &u16::from_le_bytes(self.get(index)).wrapping_add(1).to_le_bytes());
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), NotShared> {
        self.accesses.set(self.accesses.get() + 1);
        self.bytes.borrow_mut()[Self::range(address, from.len())?].copy_from_slice(from);
        Ok(())
    }
}

/// A driver of one console.
struct Guest {
    ram: Ram,
    console: Console,
}

impl Guest {
    fn load(&self, offset: u64) -> u32 {
        self.console.read(offset, Width::Four)
    }

    fn store(&mut self, offset: u64, value: u32) -> bool {
        self.console.write(offset, Width::Four, value.into())
    }

    fn table(queue: u32, kind: u64) -> u64 {
        BASE + u64::from(queue) * 0x1000 + kind * 0x400
    }

    fn features(&mut self, wanted: [u32; 2]) -> u32 {
        self.store(0x70, 0);
        self.store(0x70, 1 | 2);
        for (nth, word) in (0..).zip(wanted) {
            self.store(0x24, nth);
            self.store(0x20, word);
        }
        self.store(0x70, 1 | 2 | 8);
        self.load(0x70)
    }

    fn queue(&mut self, queue: u32, size: u32, tables: [u64; 3]) -> u32 {
        self.store(0x30, queue);
        self.store(0x38, size);
        for (offset, table) in [0x80, 0x90, 0xa0].into_iter().zip(tables) {
            self.store(offset, table as u32);
            self.store(offset + 4, (table >> 32) as u32);
        }
        self.store(0x44, 1);
        self.load(0x44)
    }

    /// What Linux does before it uses the device.
    fn ready() -> Self {
        let mut guest = Self { ram: Ram::new(), console: Console::default() };
        assert_eq!(guest.features([0, 3]), 1 | 2 | 8);
        for queue in [RECEIVE, TRANSMIT] {
            let tables = [0, 1, 2].map(|kind| Self::table(queue, kind));
            assert_eq!(guest.queue(queue, QUEUE.into(), tables), 1);
        }
        guest.store(0x70, 1 | 2 | 8 | 4);
        guest
    }

    fn descriptor(&self, queue: u32, n: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = Self::table(queue, 0) + 16 * u64::from(n);
        self.ram.put(at, &address.to_le_bytes());
        self.ram.put(at + 8, &len.to_le_bytes());
        self.ram.put(at + 12, &flags.to_le_bytes());
        self.ram.put(at + 14, &next.to_le_bytes());
    }

    fn offer(&self, queue: u32, head: u16) {
        let index = u16::from_le_bytes(self.ram.get(Self::table(queue, 1) + 2));
        self.ram.put(Self::table(queue, 1) + 4 + 2 * u64::from(index % QUEUE), &head.to_le_bytes());
        self.ram.put(Self::table(queue, 1) + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// The index of the device's ring, and its entry before that.
    fn used(&self, queue: u32) -> (u16, u32, u32) {
        let at = Self::table(queue, 2);
        let index = u16::from_le_bytes(self.ram.get(at + 2));
        let entry = at + 4 + 8 * u64::from(index.wrapping_sub(1) % QUEUE);
        (index, u32::from_le_bytes(self.ram.get(entry)), u32::from_le_bytes(self.ram.get(entry + 4)))
    }

    fn transmit(&mut self, room: usize) -> Vec<u8> {
        let mut out = vec![0; room];
        let sent = self.console.transmit(&self.ram, &mut out);
        out.truncate(sent);
        out
    }

    fn needs_reset(&self) -> bool {
        self.load(0x70) & 64 != 0
    }
}

const DATA: u64 = BASE + 0x3000;

#[test]
fn it_is_a_modern_console_that_insists_on_device_addresses() {
    let mut guest = Guest { ram: Ram::new(), console: Console::default() };
    assert_eq!([0, 4, 8].map(|at| guest.load(at)), [0x7472_6976, 2, 3]);
    let offered = [0, 1, 2].map(|word| {
        guest.store(0x14, word);
        guest.load(0x10)
    });
    assert_eq!(offered, [0, 3, 0], "VERSION_1 and ACCESS_PLATFORM");
    for refused in [[0, 0], [0, 1], [0, 2], [1, 3], [0, 7]] {
        assert_eq!(guest.features(refused), 1 | 2, "{refused:x?}");
    }
    assert_eq!(guest.features([0, 3]), 1 | 2 | 8);
    guest.store(0x24, 1);
    guest.store(0x20, 0);
    guest.store(0x70, 1 | 2 | 8 | 4);
    assert_eq!(guest.load(0x70), 1 | 2 | 8 | 4, "what is agreed stays");
    guest.store(0x70, 0);
    guest.store(0x24, 2);
    guest.store(0x20, 1);
    for (word, value) in [(0, 0), (1, 3)] {
        guest.store(0x24, word);
        guest.store(0x20, value);
    }
    guest.store(0x70, 8);
    assert_eq!(guest.load(0x70), 0, "a feature of the future");
    assert_eq!(guest.console.read(0, Width::One), 0);
}

#[test]
fn a_queue_is_ready_only_if_its_tables_can_be() {
    let mut guest = Guest { ram: Ram::new(), console: Console::default() };
    guest.features([0, 3]);
    guest.store(0x30, 0);
    assert_eq!(guest.load(0x34), 16);
    let tables = [BASE, BASE + 0x400, BASE + 0x800];
    for (size, tables) in [
        (0, tables),
        (3, tables),
        (32, tables),
        (1 << 31, tables),
        (8, [BASE + 8, tables[1], tables[2]]),
        (8, [tables[0], BASE + 1, tables[2]]),
        (8, [tables[0], tables[1], BASE + 2]),
        (8, [!15, tables[1], tables[2]]),
        (8, [tables[0], tables[1], !3]),
    ] {
        assert_eq!(guest.queue(0, size, tables), 0, "{size} {tables:x?}");
    }
    assert_eq!(guest.queue(2, 8, tables), 0, "there are two");
    guest.store(0x30, 0);
    assert_eq!(guest.queue(0, 8, tables), 1);
    guest.store(0x44, 0);
    assert_eq!(guest.load(0x44), 0);
}

#[test]
fn what_the_guest_sends_comes_out_in_order_and_is_given_back() {
    let mut guest = Guest::ready();
    guest.ram.put(DATA, b"hello, world");
    guest.descriptor(TRANSMIT, 3, DATA, 5, NEXT, 1);
    guest.descriptor(TRANSMIT, 1, DATA + 5, 0, NEXT, 0);
    guest.descriptor(TRANSMIT, 0, DATA + 5, 7, 0, 0);
    guest.offer(TRANSMIT, 3);
    assert!(guest.store(0x50, TRANSMIT) && guest.store(0x50, RECEIVE) && !guest.store(0x50, 2));
    assert_eq!(guest.transmit(7), b"hello, ");
    assert_eq!((guest.used(TRANSMIT).0, guest.console.interrupt()), (0, false), "not all of it was taken");
    assert_eq!(guest.transmit(64), b"world");
    assert_eq!(guest.used(TRANSMIT), (1, 3, 0));
    assert!(guest.console.interrupt());
    assert_eq!(guest.load(0x60), 1);
    guest.store(0x64, 2);
    assert!(guest.console.interrupt());
    guest.store(0x64, 1);
    assert!(!guest.console.interrupt());
    assert_eq!(guest.transmit(64), b"");
    assert!(!guest.console.interrupt());
}

#[test]
fn the_rings_go_round() {
    let mut guest = Guest::ready();
    for n in 0..70_000_u32 {
        let byte = n.to_le_bytes()[0];
        guest.ram.put(DATA, &[byte]);
        guest.descriptor(TRANSMIT, 2, DATA, 1, 0, 0);
        guest.offer(TRANSMIT, 2);
        assert_eq!(guest.transmit(8), [byte], "{n}");
    }
    assert_eq!(guest.used(TRANSMIT).0, (70_000_u32 % 65_536) as u16);
}

#[test]
fn what_arrives_waits_until_the_guest_has_room() {
    let mut guest = Guest::ready();
    assert_eq!(guest.console.receive(&guest.ram, b"early"), 0);
    guest.descriptor(RECEIVE, 0, DATA, 2, WRITE | NEXT, 1);
    guest.descriptor(RECEIVE, 1, DATA + 16, 2, WRITE, 0);
    guest.offer(RECEIVE, 0);
    assert_eq!(guest.console.receive(&guest.ram, b""), 0);
    assert_eq!(guest.console.receive(&guest.ram, b"abcdef"), 4);
    assert_eq!((guest.ram.get(DATA), guest.ram.get(DATA + 16)), (*b"ab\0", *b"cd\0"));
    assert_eq!(guest.used(RECEIVE), (1, 0, 4));
    guest.offer(RECEIVE, 0);
    assert_eq!(guest.console.receive(&guest.ram, b"x"), 1, "one that is not full is the guest's too");
    assert_eq!(guest.used(RECEIVE), (2, 0, 1));
}

/// Each is one lie of the guest's, told in a ring that is right otherwise.
#[test]
fn a_ring_that_makes_no_sense_stops_the_device_until_it_is_reset() {
    let good = |guest: &Guest| guest.descriptor(TRANSMIT, 0, DATA, 4, 0, 0);
    type Lie<'a> = (&'a str, &'a dyn Fn(&Guest));
    let lies: [Lie<'_>; 9] = [
        ("more chains than descriptors", &|g| {
            g.ram.put(Guest::table(TRANSMIT, 1) + 2, &(QUEUE + 1).to_le_bytes());
        }),
        ("a head that does not exist", &|g| g.offer(TRANSMIT, QUEUE)),
        ("a next that does not exist", &|g| {
            g.descriptor(TRANSMIT, 0, DATA, 4, NEXT, QUEUE);
            g.offer(TRANSMIT, 0);
        }),
        ("a loop", &|g| {
            g.descriptor(TRANSMIT, 0, DATA, 0, NEXT, 0);
            g.offer(TRANSMIT, 0);
        }),
        ("a table of descriptors", &|g| {
            g.descriptor(TRANSMIT, 0, DATA, 16, 4, 0);
            g.offer(TRANSMIT, 0);
        }),
        ("a buffer to write to", &|g| {
            g.descriptor(TRANSMIT, 0, DATA, 4, WRITE, 0);
            g.offer(TRANSMIT, 0);
        }),
        ("a buffer without an end", &|g| {
            g.ram.endless.set(true);
            g.descriptor(TRANSMIT, 0, u64::MAX, 2, 0, 0);
            g.offer(TRANSMIT, 0);
        }),
        ("a buffer that is private", &|g| {
            g.descriptor(TRANSMIT, 0, DATA & !SHARED, 4, 0, 0);
            g.offer(TRANSMIT, 0);
        }),
        ("a buffer that is shared in part", &|g| {
            g.descriptor(TRANSMIT, 0, BASE + SIZE as u64 - 2, 4, 0, 0);
            g.offer(TRANSMIT, 0);
        }),
    ];
    for (lie, tell) in lies {
        let mut guest = Guest::ready();
        good(&guest);
        guest.descriptor(RECEIVE, 0, DATA, 4, WRITE, 0);
        guest.offer(RECEIVE, 0);
        tell(&guest);
        assert_eq!(guest.transmit(64), b"", "{lie}");
        assert!(guest.needs_reset() && guest.console.interrupt(), "{lie}");
        assert_eq!((guest.load(0x60), guest.used(TRANSMIT).0), (2, 0), "{lie}");
        assert_eq!(guest.console.receive(&guest.ram, b"x"), 0, "{lie}");
        guest.store(0x70, 0);
        assert!(!guest.needs_reset() && !guest.console.interrupt(), "{lie}");
    }
}

#[test]
fn nothing_moves_before_the_driver_is_ready_and_after_a_reset() {
    let mut guest = Guest::ready();
    guest.descriptor(TRANSMIT, 0, DATA, 1, 0, 0);
    guest.offer(TRANSMIT, 0);
    guest.store(0x70, 0);
    assert_eq!((guest.transmit(8).len(), guest.ram.accesses.get()), (0, 0));
    assert_eq!(guest.features([0, 3]), 1 | 2 | 8);
    let tables = [0, 1, 2].map(|kind| Guest::table(TRANSMIT, kind));
    guest.queue(TRANSMIT, QUEUE.into(), tables);
    assert_eq!((guest.transmit(8).len(), guest.ram.accesses.get()), (0, 0), "DRIVER_OK");
    guest.features([0, 1]);
    guest.queue(TRANSMIT, QUEUE.into(), tables);
    guest.store(0x70, 1 | 2 | 4);
    assert_eq!((guest.transmit(8).len(), guest.ram.accesses.get()), (0, 0), "FEATURES_OK");
}

#[test]
fn a_guest_that_always_has_another_empty_chain_does_not_keep_the_host() {
    let mut guest = Guest::ready();
    guest.descriptor(TRANSMIT, 0, DATA, 0, 0, 0);
    guest.offer(TRANSMIT, 0);
    guest.ram.busy.set(true);
    assert_eq!(guest.transmit(64), b"");
    assert!(!guest.needs_reset() && guest.ram.accesses.get() <= 16 * 5, "{}", guest.ram.accesses.get());
}

/// Whoever checks one value and uses another reads twice.
#[test]
fn a_word_of_a_ring_is_read_once() {
    let mut guest = Guest::ready();
    guest.descriptor(TRANSMIT, 0, DATA, 4, NEXT, 1);
    guest.descriptor(TRANSMIT, 1, DATA + 4, 4, 0, 0);
    guest.offer(TRANSMIT, 0);
    assert_eq!(guest.transmit(8).len(), 8);
    let reads = guest.ram.reads.borrow();
    let twice: Vec<_> = reads.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty() && reads.len() == 6, "{reads:x?}");
}

fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..16_u32,
        Just(SHARED as u32 | BASE as u32),
        (0..0x400_u32).prop_map(|n| BASE as u32 + 16 * n),
        Just((BASE >> 32) as u32),
        any::<u32>(),
    ]
}

proptest! {
    #[test]
    fn no_ring_panics_or_keeps_the_host_for_long(
        filling in prop::collection::vec(prop_oneof![3 => 0..9_u8, 1 => any::<u8>()], 0x100),
        stores in prop::collection::vec((prop::sample::select(vec![0x30_u64, 0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x50, 0x64, 0x70]), word()), 0..40),
        room in 0..256_usize,
        heads in prop::collection::vec(0..10_u16, 0..8),
    ) {
        let mut guest = Guest::ready();
        for table in [(RECEIVE, 0), (RECEIVE, 1), (TRANSMIT, 0)] {
            guest.ram.put(Guest::table(table.0, table.1), &filling);
        }
        for head in heads {
            guest.offer(TRANSMIT, head);
        }
        for (offset, value) in stores.into_iter().chain([(0x50, TRANSMIT)]) {
            guest.store(offset, value);
            guest.ram.accesses.set(0);
            prop_assert!(guest.transmit(room).len() <= room);
            prop_assert!(guest.ram.accesses.get() <= 16 * (2 * 16 + 5));
            guest.ram.accesses.set(0);
            prop_assert!(guest.console.receive(&guest.ram, &filling[..room]) <= room);
            prop_assert!(guest.ram.accesses.get() <= 2 * 16 + 5);
        }
    }
}
