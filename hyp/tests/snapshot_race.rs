//! Snapshots while other CPUs do their worst: S-10 and S-11 of docs/snapshot.md.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use abi::snapshot::{END, HOST, MAGIC, Request, VERSION};
use abi::{Errno, HostFn};
use hyp::addr::Pfn;
use hyp::hcall::{HostRegs, dispatch};
use hyp::pgtable::Access;
use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};
use std::thread;
use testkit::features::{CORTEX_A72, MAX};
use testkit::{Done, Setup, World};
use zerocopy::IntoBytes;

/// Unless RACE_ROUNDS says otherwise.
const ROUNDS: u64 = 400;
const TABLES: u64 = 12;

fn rounds() -> u64 {
    std::env::var("RACE_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"))
}

/// Pages of one snapshot: the descriptor, the root, the chain.
struct Pages {
    desc: u64,
    root: u64,
    chain: Vec<u64>,
}

impl Pages {
    fn at(world: &World, nth: u64) -> Self {
        let base = world.page(nth).raw();
        Self { desc: base, root: base + 1, chain: (2..2 + TABLES).map(|n| base + n).collect() }
    }

    fn write(&self, world: &World) {
        let memory = world.sim.memory();
        let request = Request {
            magic: MAGIC,
            version: VERSION,
            flags: 0,
            pgd_pfn: self.root,
            pgd_pages: 1,
            nr_tables: u32::try_from(self.chain.len()).unwrap(),
            head_pfn: self.chain[0],
            reserved: [0; 4],
        };
        for (word, bytes) in request.as_bytes().chunks_exact(8).enumerate() {
            memory.write(self.desc, word, u64::from_le_bytes(bytes.try_into().unwrap()));
        }
        for (n, page) in self.chain.iter().enumerate() {
            memory.write(*page, 0, self.chain.get(n + 1).copied().unwrap_or(END));
        }
    }

    fn touch(&self, world: &World) {
        for page in self.chain.iter().chain([&self.desc, &self.root]) {
            assert!(world.touch(0, Pfn::new(*page).unwrap(), Access::W));
        }
    }
}

fn call(world: &World, cpu: usize, function: HostFn, args: [u64; 3]) -> Result<[u64; 2], Errno> {
    let mut regs: HostRegs = [0; 18];
    regs[0] = function.id().into();
    regs[1..4].copy_from_slice(&args);
    dispatch(&world.hyp, &world.cpus[cpu], &mut regs);
    assert_eq!(regs[0], 0);
    Errno::from_reg(regs[1]).expect("an errno").map(|()| [regs[2], regs[3]])
}

fn snapshot(world: &World, cpu: usize, pages: &Pages) -> Result<[u64; 2], Errno> {
    call(world, cpu, HostFn::S2Snapshot, [HOST, pages.desc, 0])
}

/// S-10. What the other CPU writes are frames that are nobody's, EL2's, or the buffer's own.
#[test]
fn s_10_a_cpu_that_rewrites_descriptor_and_chain_wins_nothing() {
    for features in [MAX, CORTEX_A72] {
        let features = hyp::hw::CpuFeatures { pa_bits: 39, ..features };
        let world = Setup { cpus: 2, ..Setup::new(features) }.start();
        world.sim.record(false);
        let pages = Pages::at(&world, 3000);
        pages.touch(&world);
        pages.write(&world);
        snapshot(&world, 0, &pages).expect("undisturbed, it works");
        let before = world.state(&[]);
        let victim = world.page(20).raw();
        let sum = world.contents(world.page(20));
        let done = Done::default();
        let mut seen = BTreeMap::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let words = [END, 0, victim, pages.desc, pages.root, pages.chain[3], 0x10_0000, u64::MAX - 1];
                let targets = [(pages.desc, 1), (pages.desc, 2), (pages.desc, 3), (pages.chain[2], 0)];
                let context = world.hyp.host_context();
                for n in 0.. {
                    if done.is_set() {
                        break;
                    }
                    let (page, word) = targets[n % targets.len()];
                    world.sim.store(context, page << 12 | word << 3, true, words[n % words.len()]);
                    if n % 3 == 0 {
                        thread::yield_now();
                    }
                }
            });
            let _done = done.on_drop();
            for round in 0..rounds() {
                if round % 2 == 0 {
                    pages.write(&world);
                }
                let answer = snapshot(&world, 0, &pages);
                *seen.entry(format!("{:?}", answer.map(drop))).or_insert(0) += 1;
                match answer {
                    Ok(_) | Err(Errno::Einval | Errno::Eperm | Errno::Erange | Errno::Enomem) => {}
                    Err(e) => panic!("{e:?}"),
                }
                assert_eq!(world.state(&[]), before, "round {round}");
                pages.touch(&world);
            }
        });
        assert_eq!(world.contents(world.page(20)), sum);
        assert!(seen.len() > 1, "nothing raced: {seen:?}");
    }
}

#[test]
fn s_11_two_snapshots_at_once_are_one_after_the_other_or_one_is_busy() {
    let features = hyp::hw::CpuFeatures { pa_bits: 39, ..CORTEX_A72 };
    let world = Setup { cpus: 2, ..Setup::new(features) }.start();
    world.sim.record(false);
    let (one, other) = (Pages::at(&world, 3000), Pages::at(&world, 4000));
    for pages in [&one, &other] {
        pages.touch(&world);
        pages.write(&world);
        snapshot(&world, 0, pages).expect("alone, it works");
    }
    let before = world.state(&[]);
    for same in [false, true] {
        let mut worked = 0;
        for _ in 0..rounds() / 4 {
            let second = if same { &one } else { &other };
            one.write(&world);
            second.write(&world);
            let barrier = Barrier::new(2);
            let run = |cpu, pages: &Pages| {
                barrier.wait();
                snapshot(&world, cpu, pages)
            };
            let answers = thread::scope(|scope| {
                let elsewhere = scope.spawn(|| run(1, second));
                [run(0, &one), elsewhere.join().unwrap()]
            });
            worked += answers.iter().filter(|answer| answer.is_ok()).count();
            for answer in answers {
                // With one buffer the second finds the copy of the first in it: no descriptor's chain.
                let fine = match answer {
                    Ok(_) | Err(Errno::Ebusy) => true,
                    Err(e) => same && matches!(e, Errno::Eperm | Errno::Einval | Errno::Erange),
                };
                assert!(fine, "{answers:?}");
            }
            assert!(answers.iter().any(Result::is_ok), "{answers:?}");
            assert_eq!(world.state(&[]), before);
        }
        assert!(worked > 0);
    }
}

/// A page that is on its way into or out of a snapshot is nobody's to give, and nothing is lost.
#[test]
fn s_11_pages_that_are_lent_and_shared_meanwhile_have_one_owner() {
    let features = hyp::hw::CpuFeatures { pa_bits: 39, ..MAX };
    let world = Setup { cpus: 2, ..Setup::new(features) }.start();
    world.sim.record(false);
    let pages = Pages::at(&world, 3000);
    pages.touch(&world);
    pages.write(&world);
    snapshot(&world, 0, &pages).expect("alone, it works");
    let before = world.state(&[]);
    let done = Done::default();
    // A page that is lent is not the host's to write a link into.
    let lending = Mutex::new(());
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if done.is_set() {
                    break;
                }
                let _lent = lending.lock().unwrap();
                let page = pages.chain[n % pages.chain.len()];
                let (give, take) = match n % 2 {
                    0 => (HostFn::HostDonateHyp, HostFn::HypDonateHost),
                    _ => (HostFn::HostShareHyp, HostFn::HostUnshareHyp),
                };
                match call(&world, 1, give, [page, 1, 0]) {
                    Ok(_) => assert_eq!(call(&world, 1, take, [page, 1, 0]), Ok([0, 0])),
                    Err(e) => assert_eq!(e, Errno::Eperm),
                }
            }
        });
        let _done = done.on_drop();
        for _ in 0..rounds() {
            {
                let _none_is_lent = lending.lock().unwrap();
                pages.write(&world);
            }
            match snapshot(&world, 0, &pages) {
                // A page that was lent came back as zeros: its link ends nowhere.
                Ok(_) | Err(Errno::Eperm | Errno::Einval | Errno::Erange) => {}
                Err(e) => panic!("{e:?}"),
            }
        }
    });
    assert_eq!(world.state(&[]), before);
}
