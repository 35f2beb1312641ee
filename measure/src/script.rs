//! A realm as text: one line for each thing its host did, in the order in which it did them.
//!
//! | line | call |
//! |---|---|
//! | `vm FLAGS BITS` | VM_CREATE, the first line |
//! | `vcpu IDX PC X0` | VCPU_CREATE |
//! | `image IPA FILE` | VM_POPULATE with MEASURE of a file's pages, ascending, zeros behind its end |
//! | `unmeasured IPA PAGES` | VM_POPULATE without, ascending |
//! | `ram BASE TOP` | VM_INIT_RIPAS |
//!
//! Numbers are decimal, or hexadecimal behind `0x`; what follows a `#` says nothing.
#![forbid(unsafe_code)]

use crate::{PAGE, Realm, State};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;

/// The initial measurement of the realm that `text` describes. Names of files are taken from `folder` on.
///
/// # Errors
/// A line that makes no sense, with its number; a file that cannot be read.
pub fn measure(text: &str, folder: &Path) -> Result<Vec<u8>> {
    let mut realm = None;
    for (n, line) in (1..).zip(text.lines()) {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        step(&mut realm, &words, folder).with_context(|| format!("line {n}: {line}"))?;
    }
    Ok(realm.context("no `vm` line")?.finish())
}

fn step(realm: &mut Option<Realm>, words: &[&str], folder: &Path) -> Result<()> {
    let &[name, ref rest @ ..] = words else { return Ok(()) };
    if let ("vm", [flags, bits], None) = (name, rest, &realm) {
        *realm = Some(Realm::new(number(flags)?, number(bits)?));
        return Ok(());
    }
    let realm = realm.as_mut().context("the first line is `vm`")?;
    match (name, rest) {
        ("vcpu", [idx, pc, x0]) => realm.vcpu(number(idx)?, number(pc)?, number(x0)?),
        ("image", [ipa, file]) => {
            let bytes = fs::read(folder.join(file)).with_context(|| format!("cannot read {file}"))?;
            for (ipa, part) in frames(number(ipa)?)?.zip(bytes.chunks(PAGE)) {
                let mut page = [0; PAGE];
                page.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
                realm.page(ipa, &page);
            }
        }
        ("unmeasured", [ipa, pages]) => {
            let pages = usize::try_from(number(pages)?)?;
            frames(number(ipa)?)?.take(pages).for_each(|ipa| realm.unmeasured_page(ipa));
        }
        ("ram", [base, top]) => {
            let (base, top) = (number(base)?, number(top)?);
            ensure!(base < top && (base | top).is_multiple_of(PAGE as u64), "no range of pages");
            realm.memory(base, top, State::Ram);
        }
        _ => bail!("not a line of a realm"),
    }
    Ok(())
}

/// Addresses of frames from `ipa` on.
fn frames(ipa: u64) -> Result<impl Iterator<Item = u64>> {
    ensure!(ipa.is_multiple_of(PAGE as u64), "no address of a page");
    Ok((ipa..).step_by(PAGE))
}

fn number(word: &str) -> Result<u64> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.with_context(|| format!("{word} is no number"))
}

#[cfg(test)]
mod tests {
    use super::measure;
    use crate::{Realm, State};
    use std::path::Path;

    #[test]
    fn a_script_is_what_its_lines_say() {
        let mut realm = Realm::new(3, 33);
        realm.vcpu(0, 0x8000_0000, 7);
        realm.unmeasured_page(0x8000_0000);
        realm.unmeasured_page(0x8000_1000);
        realm.memory(0x8000_0000, 0x8000_4000, State::Ram);
        let text = "# a realm\nvm 3 33\nvcpu 0 0x80000000 7\n\nram 0x80002000 0x80004000\n\
                    unmeasured 0x80000000 2 # pages\nram 0x80000000 0x80002000\n";
        assert_eq!(measure(text, Path::new("")).unwrap(), realm.finish());
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for (text, line) in [
            ("vcpu 0 0 0", "line 1"),
            ("vm 3 33\nvm 3 33", "line 2"),
            ("vm 3 33\nram 1 2", "line 2"),
            ("vm 3 33\n\nunmeasured 8 1", "line 3"),
            ("vm 3 x", "line 1"),
            ("vm 3 33\nimage 0 there-is-no-such-file", "line 2"),
            ("", "no `vm` line"),
        ] {
            let error = format!("{:#}", measure(text, Path::new("")).unwrap_err());
            assert!(error.contains(line), "{error}");
        }
    }
}
