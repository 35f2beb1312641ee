//! The driver's requests, as `linux/rampart.h` has them.
#![forbid(unsafe_code)]

use crate::arch;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use zerocopy::FromBytes;

/// Where the driver is.
pub(crate) const PATH: &str = "/dev/rampart";
/// Version of the requests that this program makes.
pub(crate) const ABI: u32 = 1;
/// Most pages of one request.
pub(crate) const MOST_PAGES: u32 = 512;
/// Figures of a census.
pub(crate) const FIGURES: usize = 20;
const MAGIC: u32 = 0xb7;

/// An argument of a request: plain words, as the kernel writes what it likes there.
pub(crate) trait Request: FromBytes {
    /// Which request.
    const NR: u32;
    /// Whether the kernel reads it too.
    const DIRECTION: u32 = READ_AND_WRITE;
}

const READ: u32 = 2;
const READ_AND_WRITE: u32 = 3;

/// The number of a request (Linux, include/uapi/asm-generic/ioctl.h).
pub(crate) const fn number<T: Request>() -> u32 {
    request(T::DIRECTION, size_of::<T>(), T::NR)
}

/// Direction, size of the argument, magic, which request.
const fn request(direction: u32, size: usize, nr: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "14 bits")]
    let size = (size & 0x3fff) as u32;
    direction << 30 | size << 16 | MAGIC << 8 | nr
}

/// RAMPART_INFO.
#[derive(Debug, Default, Clone, Copy, FromBytes)]
#[repr(C)]
pub(crate) struct Info {
    pub(crate) abi: u32,
    pub(crate) vm: u32,
    pub(crate) version: u64,
    pub(crate) capabilities: u64,
    pub(crate) lent: u64,
    pub(crate) shared: u64,
    pub(crate) given: u64,
    pub(crate) kept: u64,
}

impl Request for Info {
    const NR: u32 = 0;
    const DIRECTION: u32 = READ;
}

/// RAMPART_LEND, RAMPART_TAKE_BACK, RAMPART_SHARE and RAMPART_UNSHARE, by `NR`.
#[derive(Debug, Default, Clone, Copy, FromBytes)]
#[repr(C)]
pub(crate) struct Pages<const NR: u32> {
    pub(crate) nr: u32,
    pub(crate) reserved: u32,
}

pub(crate) type Lend = Pages<1>;
pub(crate) type TakeBack = Pages<2>;
pub(crate) type Share = Pages<3>;
pub(crate) type Unshare = Pages<4>;

impl<const NR: u32> Pages<NR> {
    /// The request for so many pages.
    pub(crate) const fn of(nr: u32) -> Self {
        Self { nr, reserved: 0 }
    }
}

impl<const NR: u32> Request for Pages<NR> {
    const NR: u32 = NR;
}

/// RAMPART_VM_CREATE.
#[derive(Debug, Default, Clone, Copy, FromBytes)]
#[repr(C)]
pub(crate) struct Vm {
    pub(crate) flags: u32,
    pub(crate) ipa_bits: u32,
    pub(crate) handle: u32,
    pub(crate) reserved: u32,
}

impl Request for Vm {
    const NR: u32 = 5;
}

/// RAMPART_VM_DONATE.
#[derive(Debug, Default, Clone, Copy, FromBytes)]
#[repr(C)]
pub(crate) struct Donation {
    pub(crate) gfn: u64,
    pub(crate) nr: u32,
    pub(crate) reserved: u32,
}

impl Request for Donation {
    const NR: u32 = 6;
}

/// RAMPART_VM_DESTROY.
pub(crate) const VM_DESTROY: u32 = request(0, 0, 7);

/// RAMPART_SNAPSHOT.
#[derive(Debug, Default, Clone, Copy, FromBytes)]
#[repr(C)]
pub(crate) struct Snapshot {
    pub(crate) buffer: u64,
    pub(crate) length: u64,
    pub(crate) target: u32,
    pub(crate) roots: u32,
    pub(crate) tables: u32,
    pub(crate) reserved: u32,
    pub(crate) geometry: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// No [`Request`], as it names memory: [`Device::snapshot`] makes it.
pub(crate) const SNAPSHOT: u32 = request(READ_AND_WRITE, size_of::<Snapshot>(), 8);

/// RAMPART_CENSUS.
#[derive(Debug, Default, Clone, Copy, FromBytes)]
#[repr(C)]
pub(crate) struct Census {
    pub(crate) findings: u64,
    pub(crate) figure: [u64; FIGURES],
}

impl Request for Census {
    const NR: u32 = 9;
    const DIRECTION: u32 = READ;
}

/// The open device. What is given away through it comes back when it is closed.
#[derive(Debug)]
pub(crate) struct Device(File);

impl Device {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(PATH);
        Ok(Self(file.with_context(|| format!("{PATH} (is the driver loaded?)"))?))
    }

    pub(crate) fn ask<T: Request>(&self, mut argument: T) -> io::Result<T> {
        arch::ioctl(self.0.as_fd(), &mut argument)?;
        Ok(argument)
    }

    /// Takes a snapshot; the tables go to `room`. With an error too, `request` has the driver's answer.
    pub(crate) fn snapshot(&self, request: &mut Snapshot, room: &mut [u8]) -> io::Result<()> {
        arch::ioctl_snapshot(self.0.as_fd(), request, room)
    }

    pub(crate) fn destroy_vm(&self) -> io::Result<()> {
        arch::ioctl_nowhere(self.0.as_fd(), VM_DESTROY, 0)
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The errno that a request was refused with, 0 for none.
pub(crate) fn errno<T>(result: &io::Result<T>) -> i32 {
    result.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::mem::offset_of;
    use std::process::Command;

    /// What a C compiler makes of `linux/rampart.h`: each expression's value.
    fn of_the_header(expressions: &[String]) -> Vec<u64> {
        let mut source = String::from(
            "#include <stddef.h>\n#include <stdio.h>\n#include \"rampart.h\"\nint main(void) {\n",
        );
        for expression in expressions {
            writeln!(source, "printf(\"%llu\\n\", (unsigned long long)({expression}));").unwrap();
        }
        source.push_str("return 0; }\n");
        let folder = std::env::temp_dir().join(format!("rampartctl-header-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (file, program) = (folder.join("header.c"), folder.join("header"));
        std::fs::write(&file, source).unwrap();
        let include = format!("-I{}/../linux", env!("CARGO_MANIFEST_DIR"));
        let built = Command::new("cc").args([&include, "-o"]).arg(&program).arg(&file).status().unwrap();
        assert!(built.success());
        let output = Command::new(&program).output().unwrap().stdout;
        std::fs::remove_dir_all(&folder).unwrap();
        String::from_utf8(output).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn requests_are_those_of_the_drivers_header() {
        let mut expected: Vec<(String, u64)> = vec![
            ("RAMPART_ABI".into(), ABI.into()),
            ("RAMPART_MOST_PAGES".into(), MOST_PAGES.into()),
            ("RAMPART_CENSUS_FIGURES".into(), FIGURES as u64),
            ("RAMPART_INFO".into(), number::<Info>().into()),
            ("RAMPART_LEND".into(), number::<Lend>().into()),
            ("RAMPART_TAKE_BACK".into(), number::<TakeBack>().into()),
            ("RAMPART_SHARE".into(), number::<Share>().into()),
            ("RAMPART_UNSHARE".into(), number::<Unshare>().into()),
            ("RAMPART_VM_CREATE".into(), number::<Vm>().into()),
            ("RAMPART_VM_DONATE".into(), number::<Donation>().into()),
            ("RAMPART_VM_DESTROY".into(), VM_DESTROY.into()),
            ("RAMPART_SNAPSHOT".into(), SNAPSHOT.into()),
            ("RAMPART_CENSUS".into(), number::<Census>().into()),
            ("sizeof(struct rampart_table)".into(), size_of::<abi::snapshot::DumpPage>() as u64),
        ];
        macro_rules! fields {
            ($($structure:literal $type:ty { $($field:ident)* })*) => {$($({
                let name = format!("offsetof(struct {}, {})", $structure, stringify!($field));
                expected.push((name, offset_of!($type, $field) as u64));
            })*)*};
        }
        fields! {
            "rampart_info" Info { abi vm version capabilities lent shared given kept }
            "rampart_pages" Lend { nr reserved }
            "rampart_vm" Vm { flags ipa_bits handle reserved }
            "rampart_donation" Donation { gfn nr reserved }
            "rampart_snapshot" Snapshot { buffer length target roots tables reserved geometry start end }
            "rampart_census" Census { findings figure }
        }
        let (expressions, values): (Vec<String>, Vec<u64>) = expected.into_iter().unzip();
        let found = of_the_header(&expressions);
        assert_eq!(found.len(), expressions.len());
        for ((expression, value), found) in expressions.iter().zip(values).zip(found) {
            assert_eq!(found, value, "{expression}");
        }
    }
}
