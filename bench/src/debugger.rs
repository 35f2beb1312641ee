//! QEMU's debugger stub, as far as a count of instructions needs it (GDB, Remote Serial Protocol): registers, memory, a
//! breakpoint.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long QEMU may take to open its socket.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a description that are asked for at once.
const PIECE: usize = 0x800;
/// The program counter's number (QEMU, gdb-xml/aarch64-core.xml); x0 to x30 have theirs.
const PC: u32 = 32;

/// A machine that stands still.
#[derive(Debug)]
pub(crate) struct Debugger {
    stream: UnixStream,
    /// What was read and is of the next packet.
    rest: Vec<u8>,
}

impl Debugger {
    /// The machine whose stub listens at `socket`. What it answers may take as long as `wall`.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) fn connect(socket: &Path, wall: Duration) -> Result<Self> {
        let until = Instant::now().checked_add(PATIENCE).context("no such time")?;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => return Err(error).context("QEMU's debugger stub"),
                Err(_) => sleep(Duration::from_millis(20)),
            }
        };
        stream.set_read_timeout(Some(wall)).context("a time limit")?;
        Ok(Self { stream, rest: Vec::new() })
    }

    /// A general register.
    ///
    /// # Errors
    /// The stub's.
    pub(crate) fn x(&mut self, number: u8) -> Result<u64> {
        self.register(number.into())
    }

    /// The program counter.
    ///
    /// # Errors
    /// The stub's.
    pub(crate) fn pc(&mut self) -> Result<u64> {
        self.register(PC)
    }

    /// Sets the program counter.
    ///
    /// # Errors
    /// The stub's.
    pub(crate) fn set_pc(&mut self, at: u64) -> Result<()> {
        self.command(&format!("P{PC:x}={}", hex(&at.to_le_bytes())))
    }

    /// A system register, by its name.
    ///
    /// # Errors
    /// The machine has none of that name; the stub's.
    pub(crate) fn system(&mut self, name: &str) -> Result<u64> {
        let features = self.ask("qSupported:xmlRegisters=aarch64")?;
        ensure!(features.contains("qXfer:features:read+"), "QEMU does not describe its registers");
        self.description("target.xml")?;
        let registers = self.description("system-registers.xml")?;
        self.register(number_of(&registers, name).with_context(|| format!("no register {name}"))?)
    }

    /// Writes instructions to where the program counter sees them.
    ///
    /// # Errors
    /// The stub's: there is no memory.
    pub(crate) fn write(&mut self, at: u64, code: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.command(&format!("M{at:x},{:x}:{}", bytes.len(), hex(&bytes)))
    }

    /// Lets the machine run until it is about to execute the instruction at `at`, wherever that is mapped.
    ///
    /// # Errors
    /// It does not come there, or not in time.
    pub(crate) fn run_to(&mut self, at: u64) -> Result<()> {
        self.command(&format!("Z0,{at:x},4"))?;
        let why = self.ask("c")?;
        let pc = self.pc()?;
        ensure!(why.starts_with("T05") && pc == at, "the machine stopped at {pc:#x} ({why})");
        Ok(())
    }

    /// Ends the machine.
    pub(crate) fn kill(mut self) {
        // It may have ended by itself.
        let _ = self.send("k");
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn register(&mut self, number: u32) -> Result<u64> {
        let answer = self.ask(&format!("p{number:x}"))?;
        unhex(&answer).with_context(|| format!("register {number} is {answer}"))
    }

    fn description(&mut self, name: &str) -> Result<String> {
        let mut text = String::new();
        loop {
            let answer = self.ask(&format!("qXfer:features:read:{name}:{:x},{PIECE:x}", text.len()))?;
            match answer.split_at_checked(1) {
                Some(("m", piece)) => text.push_str(piece),
                Some(("l", piece)) => {
                    text.push_str(piece);
                    return Ok(text);
                }
                _ => bail!("QEMU does not describe {name}: {answer}"),
            }
        }
    }

    fn command(&mut self, packet: &str) -> Result<()> {
        let answer = self.ask(packet)?;
        ensure!(answer == "OK", "QEMU answers {packet} with '{answer}'");
        Ok(())
    }

    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        let mut buffer = [0; 4096];
        loop {
            if let Some((answer, length)) = first_packet(&self.rest) {
                self.rest.drain(..length);
                self.stream.write_all(b"+").context("QEMU's debugger stub")?;
                return Ok(answer);
            }
            let count = self.stream.read(&mut buffer).context("QEMU's debugger stub")?;
            ensure!(count > 0, "the machine ended");
            self.rest.extend(buffer.get(..count).unwrap_or_default());
        }
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        self.stream.write_all(format!("${packet}#{sum:02x}").as_bytes()).context("QEMU's debugger stub")
    }
}

/// The text of the first whole packet, and how many bytes there are up to its end.
fn first_packet(bytes: &[u8]) -> Option<(String, usize)> {
    let start = bytes.iter().position(|byte| *byte == b'$')?.checked_add(1)?;
    let text = bytes.get(start..)?;
    let length = text.iter().position(|byte| *byte == b'#')?;
    let end = start.checked_add(length)?.checked_add(3)?;
    let text = String::from_utf8_lossy(text.get(..length)?).into_owned();
    (end <= bytes.len()).then_some((text, end))
}

/// The number of the register `name` in QEMU's description of all.
fn number_of(description: &str, name: &str) -> Option<u32> {
    let name = format!("name=\"{name}\"");
    let tag = description.split('<').find(|tag| tag.starts_with("reg ") && tag.contains(&name))?;
    tag.split_once("regnum=\"")?.1.split('"').next()?.parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Eight bytes, the lowest first.
fn unhex(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten().map(u64::swap_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_whole_with_its_sum() {
        assert_eq!(first_packet(b"+$OK#9a$T05"), Some(("OK".to_owned(), 7)));
        assert_eq!((first_packet(b"+$OK#9"), first_packet(b"$O"), first_packet(b"+")), (None, None, None));
    }

    #[test]
    fn registers_are_found_by_name_and_read_from_the_lowest_byte() {
        let text = "<feature><reg name=\"PMCR_EL0\" regnum=\"7\"/><reg name=\"PMCCNTR_EL0\" bitsize=\"64\" regnum=\"226\" type=\"int\"/>";
        assert_eq!((number_of(text, "PMCCNTR_EL0"), number_of(text, "PMCC")), (Some(226), None));
        assert_eq!((unhex("0cdc254000000000"), unhex("E01")), (Some(0x4025_dc0c), None));
        assert_eq!(hex(&0x7ff0_0000_u64.to_le_bytes()), "0000f07f00000000");
    }
}
