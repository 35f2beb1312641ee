//! A snapshot of a stage-2 table, in the file that `ptdump` reads (docs/snapshot.md).
#![forbid(unsafe_code)]

use crate::device::{Device, Info, Snapshot};
use crate::tree;
use abi::snapshot::{DUMP_MAGIC, DUMP_VERSION, DumpHeader, DumpPage, FIELDS, Region, RegionKind, padded};
use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use zerocopy::IntoBytes;

const TABLE: usize = size_of::<DumpPage>();
/// Room for the tables of a machine whose memory is mapped in blocks; more is asked for where it is not.
const FIRST_ROOM: usize = 64 * TABLE;
/// A table that grows between two attempts is asked for again.
const TRIES: u32 = 4;

/// Takes a snapshot of `target` (0: the host's own table) and writes it to `out`.
///
/// # Errors
/// The driver's; `out` cannot be written.
pub(crate) fn write(device: &Device, target: u32, title: &str, out: &mut impl Write) -> Result<()> {
    let (taken, tables) = take(device, target)?;
    let info = device.ask(Info::default()).context("RAMPART_INFO")?;
    let mut regions = tree::machine();
    regions.push(Region {
        start: taken.start,
        end: taken.end,
        kind: RegionKind::Snapshot as u32,
        reserved: 0,
        name: padded("this snapshot"),
    });
    let header = DumpHeader {
        magic: DUMP_MAGIC,
        version: DUMP_VERSION,
        header_bytes: u16::try_from(size_of::<DumpHeader>())?,
        target,
        geometry: taken.geometry,
        root_pa: taken.start,
        roots: taken.roots,
        tables: taken.tables,
        regions: u32::try_from(regions.len())?,
        fields: u32::try_from(FIELDS.len())?,
        hyp_version: info.version,
        hyp_caps: info.capabilities,
        title: padded(title),
    };
    out.write_all(header.as_bytes())?;
    out.write_all(regions.as_bytes())?;
    out.write_all(FIELDS.as_bytes())?;
    // The driver's form is the file's.
    out.write_all(&tables)?;
    out.flush()?;
    Ok(())
}

fn take(device: &Device, target: u32) -> Result<(Snapshot, Vec<u8>)> {
    let mut room = FIRST_ROOM;
    for _ in 0..TRIES {
        let mut tables = vec![0_u8; room];
        let mut answer = Snapshot { target, ..Snapshot::default() };
        let result = device.snapshot(&mut answer, &mut tables);
        let length = usize::try_from(answer.length)?;
        match result {
            Ok(()) => {
                tables.truncate(length);
                let pages = answer.roots.checked_add(answer.tables).context("too many tables")?;
                ensure!(tables.len() == usize::try_from(pages)?.saturating_mul(TABLE), "half a snapshot");
                return Ok((answer, tables));
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => room = length,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                bail!("this build of the hypervisor takes no snapshots: feature debug-snapshot");
            }
            Err(error) => return Err(error).context("RAMPART_SNAPSHOT"),
        }
    }
    bail!("the table grows faster than it can be copied");
}
