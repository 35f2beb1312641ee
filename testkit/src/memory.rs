//! RAM by page number, with the caches that a hand-over of pages must deal with.
//!
//! Every page has two contents: what cacheable accesses see, and what is at the point of
//! coherency, where non-cacheable accesses and devices look. A line that is cached keeps its own
//! contents until it is cleaned or invalidated. The instruction side keeps what it fetched until
//! it is invalidated.
//!
//! Pages are found by index, not by pointer, and made when they are first touched: a machine with
//! a lot of RAM costs nothing, and Miri has nothing to complain about.
#![forbid(unsafe_code)]

use hyp::hw::ENTRIES;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const LINE_WORDS: usize = 8;

/// What a non-cacheable alias can tell from a cacheable one.
#[derive(Debug)]
struct Lines {
    /// Contents at the point of coherency.
    ram: Box<[u64; ENTRIES]>,
    /// Lines in the data cache, one bit each.
    present: u64,
    /// Lines that differ from RAM because of a store.
    dirty: u64,
    /// Lines whose last store has not reached the point of unification.
    beyond_pou: u64,
}

#[derive(Debug)]
struct Frame {
    /// What cacheable accesses see.
    words: [AtomicU64; ENTRIES],
    lines: Mutex<Option<Lines>>,
    /// What the instruction cache holds, if anything.
    fetched: Mutex<Option<Box<[u64; ENTRIES]>>>,
    tags: Mutex<[u8; 256]>,
}

impl Frame {
    fn new() -> Self {
        Self {
            words: [const { AtomicU64::new(0) }; ENTRIES],
            lines: Mutex::new(None),
            fetched: Mutex::new(None),
            tags: Mutex::new([0; 256]),
        }
    }

    fn words(&self) -> Box<[u64; ENTRIES]> {
        Box::new(std::array::from_fn(|i| self.words[i].load(Ordering::Acquire)))
    }

    fn lines(&self) -> MutexGuard<'_, Option<Lines>> {
        lock(&self.lines)
    }

    fn store(&self, index: usize, value: u64) {
        let mut lines = self.lines();
        let lines =
            lines.get_or_insert_with(|| Lines { ram: self.words(), present: 0, dirty: 0, beyond_pou: 0 });
        let line = 1 << (index / LINE_WORDS);
        lines.present |= line;
        lines.dirty |= line;
        lines.beyond_pou |= line;
        self.words[index].store(value, Ordering::Release);
    }
}

/// A test that fails poisons what it holds; the next one to look wants to see it all the same.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The RAM of a machine.
#[derive(Debug)]
pub struct Memory {
    base: u64,
    frames: Box<[OnceLock<Box<Frame>>]>,
    dic: bool,
    idc: bool,
    /// Frames that have no allocation tags.
    no_tags: Range<u64>,
}

impl Memory {
    pub(crate) fn new(base: u64, pages: usize, no_tags: Range<u64>, dic: bool, idc: bool) -> Self {
        Self { base, frames: (0..pages).map(|_| OnceLock::new()).collect(), dic, idc, no_tags }
    }

    /// First frame of RAM.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Frames of RAM.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.frames.len() as u64
    }

    /// True if the frame is RAM.
    #[must_use]
    pub const fn contains(&self, page: u64) -> bool {
        page >= self.base && page - self.base < self.frames.len() as u64
    }

    #[track_caller]
    fn frame(&self, page: u64) -> &Frame {
        let cell = usize::try_from(page.wrapping_sub(self.base)).ok().and_then(|i| self.frames.get(i));
        let Some(cell) = cell else { panic!("external abort: no RAM at frame {page:#x}") };
        cell.get_or_init(|| Box::new(Frame::new()))
    }

    /// A cacheable load that leaves no trace: EL2 and table walkers.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[must_use]
    #[track_caller]
    pub fn read(&self, page: u64, index: usize) -> u64 {
        self.frame(page).words[index].load(Ordering::Acquire)
    }

    /// True if nobody can find anything but zeros in the page, by whatever alias.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[must_use]
    #[track_caller]
    pub fn is_zero(&self, page: u64) -> bool {
        let frame = self.frame(page);
        let lines = frame.lines();
        frame.words.iter().all(|word| word.load(Ordering::Acquire) == 0)
            && lines.as_ref().is_none_or(|lines| lines.ram.iter().all(|&word| word == 0))
    }

    /// A cacheable store.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[track_caller]
    pub fn write(&self, page: u64, index: usize, value: u64) {
        self.frame(page).store(index, value);
    }

    /// A cacheable load by somebody who may keep the line in the cache.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[must_use]
    #[track_caller]
    pub fn read_and_cache(&self, page: u64, index: usize) -> u64 {
        let frame = self.frame(page);
        let mut lines = frame.lines();
        let lines =
            lines.get_or_insert_with(|| Lines { ram: frame.words(), present: 0, dirty: 0, beyond_pou: 0 });
        lines.present |= 1 << (index / LINE_WORDS);
        frame.words[index].load(Ordering::Acquire)
    }

    /// A load past the cache: non-cacheable or by a device.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[must_use]
    #[track_caller]
    pub fn read_ram(&self, page: u64, index: usize) -> u64 {
        let frame = self.frame(page);
        match &*frame.lines() {
            Some(lines) => lines.ram[index],
            None => frame.words[index].load(Ordering::Acquire),
        }
    }

    /// A store past the cache. A cached line keeps what it has.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[track_caller]
    pub fn write_ram(&self, page: u64, index: usize, value: u64) {
        let frame = self.frame(page);
        let mut lines = frame.lines();
        let cached = lines.as_ref().is_some_and(|l| l.present >> (index / LINE_WORDS) & 1 == 1);
        if let Some(lines) = &mut *lines {
            lines.ram[index] = value;
        }
        if !cached {
            frame.words[index].store(value, Ordering::Release);
        }
    }

    /// An instruction fetch, which fills the instruction cache.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[must_use]
    #[track_caller]
    pub fn fetch(&self, page: u64, index: usize) -> u64 {
        let frame = self.frame(page);
        let unified = || {
            let mut seen = frame.words();
            if let Some(lines) = frame.lines().as_ref().filter(|_| !self.idc) {
                for (i, word) in seen.iter_mut().enumerate() {
                    if lines.beyond_pou >> (i / LINE_WORDS) & 1 == 1 {
                        *word = lines.ram[i];
                    }
                }
            }
            seen
        };
        if self.dic {
            return unified()[index];
        }
        lock(&frame.fetched).get_or_insert_with(unified)[index]
    }

    pub(crate) fn clean(&self, page: u64, invalidate: bool) {
        let frame = self.frame(page);
        let mut slot = frame.lines();
        let Some(lines) = &mut *slot else { return };
        for index in 0..ENTRIES {
            let line = 1 << (index / LINE_WORDS);
            if lines.dirty & line != 0 {
                lines.ram[index] = frame.words[index].load(Ordering::Acquire);
            }
            if invalidate {
                frame.words[index].store(lines.ram[index], Ordering::Release);
            }
        }
        (lines.dirty, lines.beyond_pou) = (0, 0);
        if invalidate {
            *slot = None;
        }
    }

    pub(crate) fn invalidate_icache(&self, page: u64) {
        let frame = self.frame(page);
        if let Some(lines) = &mut *frame.lines() {
            lines.beyond_pou = 0;
        }
        *lock(&frame.fetched) = None;
    }

    /// The allocation tag of a 16-byte granule, 0..=255 in the page.
    ///
    /// # Panics
    /// Where there is no RAM.
    #[must_use]
    pub fn tag(&self, page: u64, granule: u8) -> u8 {
        self.tags(page)[usize::from(granule)]
    }

    /// Sets the allocation tag of a granule.
    ///
    /// # Panics
    /// Where there is no RAM.
    pub fn set_tag(&self, page: u64, granule: u8, tag: u8) {
        self.tags(page)[usize::from(granule)] = tag & 0xf;
    }

    pub(crate) fn zero_tags(&self, page: u64) {
        *self.tags(page) = [0; 256];
    }

    #[track_caller]
    fn tags(&self, page: u64) -> MutexGuard<'_, [u8; 256]> {
        assert!(!self.no_tags.contains(&page), "frame {page:#x} has no tags");
        lock(&self.frame(page).tags)
    }
}
