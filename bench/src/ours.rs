//! Rampart's own figures: one boot for each section and machine.

use crate::figures::{SECTIONS, Section};
use crate::operation::CPUS;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::thread::{available_parallelism, scope};
use xtask::cost::Counted;
use xtask::images::{Build, Images};
use xtask::machine::Memory;
use xtask::qemu::Qemu;

/// Metrics that describe a run rather than the hypervisor.
const NO_FIGURES: [&str; 4] = ["calibration", "memory", "stack_used", "lock_spins"];

/// The figures of one boot, by name.
pub type Values = BTreeMap<String, u64>;

/// One boot that gives the figures of a section.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Its figures.
    pub section: &'static Section,
    /// CPU model.
    pub cpu: &'static str,
    /// RAM in GiB.
    pub gibibytes: u32,
}

impl Run {
    /// All boots.
    pub fn all() -> impl Iterator<Item = Self> {
        SECTIONS.into_iter().flat_map(Self::of)
    }

    /// The boots of one section.
    pub fn of(section: &'static Section) -> impl Iterator<Item = Self> {
        let machines = section.gibibytes.iter().flat_map(|ram| CPUS.map(|cpu| (cpu, *ram)));
        machines.map(move |(cpu, gibibytes)| Self { section, cpu, gibibytes })
    }

    /// How the baseline names it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}, {}, {} GiB", self.section.name, self.cpu, self.gibibytes)
    }

    fn measure(&self, qemu: &Qemu, images: &Images) -> Result<Values> {
        let mem = Memory::gib(self.gibibytes);
        let args = format!("scenario={}", self.section.scenario);
        let column = Counted { args: &args, cpu: self.cpu, smp: 1, mem }.boot(qemu, images)?;
        let mut values = Values::new();
        for metric in column.metrics.into_iter().filter(|metric| !NO_FIGURES.contains(&metric.name.as_str()))
        {
            let name = metric.name;
            ensure!(values.insert(name.clone(), metric.value).is_none(), "two figures are named {name}");
        }
        Ok(values)
    }
}

/// What was measured, by [`Run::name`].
pub type Measured = BTreeMap<String, Values>;

/// Builds the images, boots every machine and gives their figures; `said` is told of each boot.
///
/// # Errors
/// An image does not build; a machine did not come to an orderly end.
pub fn measure(qemu: &Qemu, said: impl Fn(&Run) + Sync) -> Result<Measured> {
    let mut work = Vec::new();
    for section in SECTIONS {
        let images = Build { features: section.features, ..Build::default() }.run()?;
        work.extend(Run::of(section).map(|run| (run, images.clone())));
    }
    in_parallel(work, |(run, images)| {
        said(&run);
        Ok((run.name(), run.measure(qemu, &images).with_context(|| run.name())?))
    })
}

/// `job` for each piece of `work`, as many at once as there are CPUs.
///
/// # Errors
/// That of a job that failed.
pub fn in_parallel<W: Send, T: Send, C: FromIterator<T>>(
    work: Vec<W>,
    job: impl Fn(W) -> Result<T> + Sync,
) -> Result<C> {
    let threads = available_parallelism().map_or(1, NonZero::get);
    let (work, done) = (Mutex::new(work.into_iter().enumerate()), Mutex::new(Vec::new()));
    let next = || work.lock().ok()?.next();
    scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((nth, piece)) = next() {
                    let result = job(piece);
                    if let Ok(mut done) = done.lock() {
                        done.push((nth, result));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().ok().context("a thread panicked")?;
    done.sort_unstable_by_key(|(nth, _)| *nth);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_work() {
        let doubled: Vec<u32> = in_parallel((0..100).collect(), |n: u32| Ok(2 * n)).unwrap();
        assert_eq!(doubled, (0..100).map(|n| 2 * n).collect::<Vec<_>>());
        assert!(
            in_parallel::<_, u32, Vec<_>>(vec![1, 2], |n| {
                ensure!(n != 2, "two");
                Ok(n)
            })
            .is_err()
        );
    }
}
