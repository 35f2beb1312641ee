//! Dumps that are right, and files that are not.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test says that it failed by a panic"
)]

mod build;

use abi::snapshot::{Kind, MAX_TABLES, RegionKind, padded};
use build::{BLOCK, COPIES, File, guest, guest_leaf, host, leaf, note_guest};
use ptdump::diff::{self, Scope};
use ptdump::map::Owner;
use ptdump::{Dump, DumpError, Map, Picture, html, json, svg, text};
use std::time::{Duration, Instant};

fn open(file: &File) -> Dump {
    Dump::parse(file.bytes()).unwrap()
}

fn lines(dump: &Dump) -> Vec<String> {
    let mut out = Vec::new();
    text::write(dump, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

fn problems(file: &File) -> Vec<String> {
    lines(&open(file))
        .into_iter()
        .filter_map(|line| Some(line.strip_prefix("INCONSISTENT: ")?.to_owned()))
        .collect()
}

#[test]
fn entries_that_say_the_same_are_one_line() {
    let lines = lines(&open(&host()));
    assert_eq!(lines[0], "---[ a test ]---");
    assert!(
        lines[1].starts_with("stage 2 of the host: 39 bits from level 1, 1 root page and "),
        "{}",
        lines[1]
    );
    let table: Vec<&str> = lines.iter().filter(|line| line.starts_with("0x")).map(String::as_str).collect();
    assert_eq!(
        table,
        [
            "0x00000a000000-0x00000a001000     4K L3 NOTE hypervisor",
            "0x000040000000-0x000040200000     2M L2 RWX AF MEM/NORMAL   owned    -> 0x000040000000",
            "0x000040200000-0x000040600000     4M L2 NOTE hypervisor",
            "0x000050000000-0x00005000a000    40K L3 RWX AF MEM/NORMAL   owned    -> 0x000050000000",
            "0x00005000a000-0x000050015000    44K L3 NOTE guest 0x101 at frame 0x80000",
            "0x000050015000-0x00005001e000    36K L3 RWX AF MEM/NORMAL   owned    -> 0x000050015000",
            "0x00005001e000-0x00005001f000     4K L3 NOTE hypervisor",
            "0x00005001f000-0x000050200000  1924K L3 RWX AF MEM/NORMAL   owned    -> 0x00005001f000",
            "0x000070000000-0x000070008000    32K L3 NOTE hypervisor",
        ]
    );
    assert!(problems(&host()).is_empty());
}

#[test]
fn a_map_joins_what_host_and_guests_know() {
    let (host, guest) = (open(&host()), open(&guest()));
    let alone = Map::new(&host, &[]).unwrap();
    let pages = |map: &Map, owner| map.totals().get(&owner).copied().unwrap_or_default() / 4096;
    assert_eq!(pages(&alone, Owner::Guest(0x101)), 11);
    assert_eq!((pages(&alone, Owner::Hyp), pages(&alone, Owner::Given)), (1024, 1));
    assert_eq!((pages(&alone, Owner::Snapshot), pages(&alone, Owner::Withheld)), (8, 1));
    let all = pages(&alone, Owner::Host) + pages(&alone, Owner::HostUntouched);
    assert_eq!(all, (1 << 18) - 11 - 1024 - 1 - 8);

    let map = Map::new(&host, std::slice::from_ref(&guest)).unwrap();
    assert_eq!((map.problems.count(), map.problems.first()), (0, &[][..]));
    assert_eq!(pages(&map, Owner::GuestShared(0x101)), 1);
    let counts = map.guests[&0x101];
    assert_eq!((counts.owned, counts.shared, counts.guarded, counts.destroyed), (11, 1, 1, 512));
    let own = map.spans.iter().find(|span| span.owner == Owner::Guest(0x101)).unwrap();
    assert_eq!((own.start, own.len(), own.gfn), (0x5000_a000, 11 * 4096, Some(0x8_0000)));
}

#[test]
fn tables_that_contradict_each_other_are_told() {
    let mut other = guest();
    other.put(0x8000_0000, 3, 0);
    other.put(0x9000_0000, 3, 0x6000_0000 | guest_leaf(3, 0));
    let map = Map::new(&open(&host()), &[open(&other)]).unwrap();
    let told: Vec<String> = map.problems.first().iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("0x60000000") && told[0].contains("host, not touched yet"), "{told:?}");
    assert!(told[1].contains("0x5000a000") && told[1].contains("not for the guest's"), "{told:?}");

    let mut astray = host();
    astray.put(0x5000_0000, 3, 0x6000_0000 | leaf(3, false));
    astray.put(0x4040_0000, 2, 0);
    let map = Map::new(&open(&astray), &[]).unwrap();
    let told: Vec<String> = map.problems.first().iter().map(ToString::to_string).collect();
    assert!(told[0].contains("the hypervisor's, and the host may have it"), "{told:?}");
    assert!(told[1].contains("not the identity"), "{told:?}");
}

#[test]
fn what_el2_never_writes_is_inconsistent() {
    let mut file = host();
    file.put(0x5000_0000, 3, 6 << 60);
    assert!(problems(&file)[0].contains("level 3: 0x6000000000000000 is corrupt (NoteType)"));
    let mut file = host();
    file.put(0x4000_0000, 2, note_guest(1, 1));
    assert!(problems(&file)[0].contains("NotePlace"), "a guest's note stands at level 3");
    let mut file = host();
    let loops = file.table(0x5000_0000, 2);
    file.pages[loops].1[0] = COPIES | 3;
    file.pages[loops].1[1] = 0x1234_5000 | 3;
    let told = problems(&file);
    assert!(told.iter().any(|line| line.contains("table 0x70000000 has another entry already")), "{told:?}");
    assert!(told.iter().any(|line| line.contains("its table 0x12345000 is not in the dump")), "{told:?}");
    let mut file = host();
    file.pages.push((0x6666_6000, vec![0; 512]));
    assert_eq!(problems(&file), ["table 0x66666000 is in the dump, but no entry leads to it"]);
}

#[test]
fn a_diff_tells_what_changed_hands() {
    let mut later = host();
    later.put(0x5001_e000, 3, 0x5001_e000 | leaf(3, false));
    for page in 40..44 {
        later.put(0x5000_0000 + page * 4096, 3, note_guest(0x101, 0x9_0000 + page));
    }
    later.put(0x4400_0000, 2, 0x4400_0000 | leaf(2, false));
    let (a, b) = (open(&host()), open(&later));
    let told = |scope| {
        let mut out = Vec::new();
        diff::write(&a, &b, scope, &mut out).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        told(Scope::Hands),
        [
            "0x00005001e000-0x00005001f000     4K  NOTE hypervisor  =>  host",
            "0x000050028000-0x00005002c000    16K  host  =>  NOTE guest 0x101 at frame 0x90028",
            "2 changes, 5 pages",
        ]
    );
    assert_eq!(told(Scope::Entries).len(), 4);
    assert!(told(Scope::Entries)[0].contains("-  =>  RWX"));
    assert!(diff::write(&a, &open(&guest()), Scope::Hands, &mut Vec::new()).is_err());
    assert_eq!(diff::changes(&a, &a, Scope::Entries, |_| Ok(())).unwrap().changes, 0);
}

/// Everything that the tool can do with these bytes.
fn read_all(bytes: Vec<u8>) -> bool {
    ptdump::read_all(bytes).is_ok()
}

#[test]
fn a_file_that_ends_anywhere_is_an_error() {
    let whole = host().bytes();
    for end in (0..400).chain((400..whole.len()).step_by(97)).chain([whole.len() - 1]) {
        let error = Dump::parse(whole[..end].to_vec()).unwrap_err();
        assert!(matches!(error, DumpError::Truncated(_) | DumpError::Magic), "{end}: {error}");
    }
    let mut more = whole.clone();
    more.push(0);
    assert!(matches!(Dump::parse(more).unwrap_err(), DumpError::Trailing(1)));
    assert!(read_all(whole));
}

#[test]
fn a_header_that_lies_is_an_error() {
    let header = |change: &dyn Fn(&mut File)| {
        let mut file = host();
        change(&mut file);
        Dump::parse(file.bytes()).unwrap_err().to_string()
    };
    assert!(header(&|f| f.header.magic[0] = b'X').contains("not a stage-2 dump"));
    assert!(header(&|f| f.header.version = 2).contains("version 2"));
    assert!(header(&|f| f.header.header_bytes = 4).contains("header of 4 bytes"));
    assert!(header(&|f| f.header.geometry ^= 3 << 56).contains("unknown kind"));
    assert!(
        header(&|f| f.header.geometry = f.header.geometry & !0xff | 60).contains("no table has this shape")
    );
    assert!(header(&|f| f.header.geometry |= 7 << 8).contains("start level"));
    assert!(header(&|f| f.header.roots = 2).contains("root pages"));
    assert!(header(&|f| f.header.fields = 3).contains("notes"));
    assert!(header(&|f| f.header.root_pa = 0x1000).contains("not where the header says"));
    assert!(header(&|f| f.regions[0].kind = 77).contains("region 0"));
    assert!(header(&|f| f.regions[1].end = f.regions[1].start).contains("region 1"));
    assert!(header(&|f| f.pages[2].0 = f.pages[1].0).contains("twice"));
    assert!(header(&|f| f.pages[2].0 |= 8).contains("not aligned"));
    let mut bytes = host().bytes();
    bytes[0x24..0x28].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Dump::parse(bytes).unwrap_err().to_string().contains("tables"));
}

/// Flips bits by a fixed rule, many times over: an answer or an error, never a panic.
#[test]
fn whatever_the_bytes_are_there_is_an_answer() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let (mut answered, mut refused) = (0, 0);
    for round in 0..600 {
        let mut bytes = if round % 2 == 0 { host().bytes() } else { guest().bytes() };
        // Half of them in the header, which decides most; the others anywhere.
        let reach = if round % 4 < 2 { 700 } else { bytes.len() as u64 };
        for _ in 0..=next() % 6 {
            let at = usize::try_from(next() % reach).unwrap();
            bytes[at] ^= 1 << (next() % 8);
        }
        if read_all(bytes) { answered += 1 } else { refused += 1 }
    }
    assert!(answered > 50 && refused > 50, "{answered} {refused}");
}

#[test]
fn names_cannot_do_harm() {
    let mut file = host();
    file.header.title = padded("\u{1b}[2J</title></script><script>alert(1)</script>&\"'");
    file.region(0x6000_0000, 0x6000_1000, RegionKind::Withheld, "</script><b onload=x>\u{7}");
    let dump = open(&file);
    let map = Map::new(&dump, &[]).unwrap();
    let picture = Picture::new(&dump, &map);
    for text in [html::draw(&picture), svg::draw(&picture), lines(&dump).join("\n")] {
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'));
    }
    for text in [html::draw(&picture), svg::draw(&picture)] {
        assert!(!text.contains("<script>alert") && !text.contains("<b onload"), "a name became markup");
        assert!(
            !text.contains("http://")
                || text.matches("http://").count() == text.matches("http://www.w3.org/").count()
        );
    }
    let mut out = Vec::new();
    json::write(&dump, Some(&map), &mut out).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(value["owners"].as_array().unwrap().len(), map.spans.len());
    assert_eq!(value["problems"]["count"], 0);
}

#[test]
fn the_pictures_show_every_owner_and_its_pages() {
    let (host, guest) = (open(&host()), open(&guest()));
    let map = Map::new(&host, &[guest]).unwrap();
    let picture = Picture::new(&host, &map);
    assert_eq!((picture.areas.len(), picture.areas[0].cell, picture.areas[0].cells.len()), (1, BLOCK, 512));
    // The block with the guest's pages and the snapshot's own.
    let starts: Vec<u64> = picture.blocks.iter().map(|block| block.start).collect();
    assert_eq!(starts, [0x5000_0000, COPIES]);
    for text in [svg::draw(&picture), html::draw(&picture)] {
        for key in &picture.legend {
            assert!(text.contains(&svg::escape(&key.owner.text())), "{:?}", key.owner);
        }
        assert!(text.contains("11 its own, 1 shared, 1 guarded, 512 destroyed"));
    }
}

/// The largest snapshot that there can be, in two seconds for each form: 20 where the build is not optimised.
#[test]
fn the_largest_dump_is_read_while_one_waits() {
    let mut file = File::new(Kind::NonProtected, 0x101);
    let mut made = 0;
    let mut ia = 0;
    // As many pages as fit, one in each block of 2 MiB.
    while file.pages.len() < MAX_TABLES as usize + 1 && made < 100_000 {
        let l2 = file.table(ia, 2);
        let pa = COPIES + 4096 * file.pages.len() as u64;
        file.pages[l2].1[usize::try_from(ia >> 21 & 511).unwrap()] = pa | 3;
        let mut words = vec![0; 512];
        words[made % 512] = (0x4000_0000 + 4096 * made as u64) | guest_leaf(3, 2);
        file.pages.push((pa, words));
        made += 1;
        ia += BLOCK;
    }
    let bytes = file.bytes();
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 2 });
    for name in ["text", "JSON"] {
        let started = Instant::now();
        let dump = Dump::parse(bytes.clone()).unwrap();
        assert_eq!(dump.tables(), MAX_TABLES);
        let problems = match name {
            "text" => text::write(&dump, &mut Vec::new()),
            _ => json::write(&dump, None, &mut Vec::new()),
        };
        assert_eq!(problems.unwrap().count(), 0, "{name}");
        let took = started.elapsed();
        println!("{name}: {took:?}");
        assert!(took < limit, "{name}: {took:?}");
    }
}
