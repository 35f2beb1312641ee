//! How figures grow: with pages a call, tables in a snapshot, RAM, VMs that are alive, CPUs that call at once.

use crate::operation::CPUS;
use crate::ours::in_parallel;
use crate::plot::{Line, Plot};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use xtask::cost::Counted;
use xtask::images::{Build, DEVELOPMENT, Images};
use xtask::machine::Memory;
use xtask::qemu::Qemu;
use xtask::show::grouped;
use xtask::table::Table;

/// One figure by what grows.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    /// How it is called.
    pub name: &'static str,
    /// Its metrics are named by this and, where one boot gives all points, `_` and the point.
    metric: &'static str,
    /// What follows the point in the metric's name.
    suffix: &'static str,
    /// The metric is of a whole call, the figure of each of the things that grow.
    each: bool,
}

const fn series(name: &'static str, metric: &'static str) -> Series {
    Series { name, metric, suffix: "", each: false }
}

/// What a point of a curve is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// A metric of the one boot.
    Metric,
    /// A boot with so many GiB.
    Ram,
    /// A boot with so many CPUs.
    Cpus,
}

/// Some figures by one thing that grows.
#[derive(Debug, Clone, Copy)]
pub struct Curve {
    /// Its name, and that of its picture.
    pub name: &'static str,
    /// What its figures are.
    pub title: &'static str,
    /// What grows.
    pub axis: &'static str,
    args: &'static str,
    features: &'static [&'static str],
    point: Point,
    points: &'static [u32],
    series: &'static [Series],
}

const PAGES: &[u32] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// All curves.
pub const CURVES: &[Curve] = &[
    Curve {
        name: "pages",
        title: "instructions a page",
        axis: "pages a call",
        args: "scenario=cost curve=pages",
        features: &[],
        point: Point::Metric,
        points: PAGES,
        series: &[
            Series { each: true, ..series("HOST_DONATE_HYP", "curve_lend") },
            Series { each: true, ..series("HYP_DONATE_HOST", "curve_take_back") },
            Series { each: true, ..series("GUEST_UNSHARE", "curve_unshare") },
            Series { each: true, ..series("GUEST_RECLAIM", "curve_reclaim") },
            Series { each: true, ..series("RGUARD_MAP", "curve_guard_map") },
        ],
    },
    Curve {
        name: "tables",
        title: "instructions a table",
        axis: "tables in a snapshot",
        args: "scenario=snapshot_cost curve=tables",
        features: DEVELOPMENT.features,
        point: Point::Metric,
        points: &[3, 10, 30, 100, 300, 1000, 3000, 10_000],
        series: &[
            Series { suffix: "_call", ..series("S2_SNAPSHOT", "snapshot_guest") },
            Series { suffix: "_copy", ..series("the copy alone", "snapshot_guest") },
        ],
    },
    Curve {
        name: "ram",
        title: "instructions",
        axis: "GiB of RAM",
        args: "scenario=cost curve=ram",
        features: &[],
        point: Point::Ram,
        points: &[1, 2, 4, 8, 16, 32, 64],
        series: &[series("boot", "curve_boot")],
    },
    Curve {
        name: "carve-out",
        title: "KiB",
        axis: "GiB of RAM",
        args: "scenario=cost curve=ram",
        features: &[],
        point: Point::Ram,
        points: &[1, 2, 4, 8, 16, 32, 64],
        series: &[series("carve-out", "carve_out")],
    },
    Curve {
        name: "vms",
        title: "instructions",
        axis: "VMs alive",
        args: "scenario=cost curve=vms",
        features: &[],
        point: Point::Metric,
        points: &[1, 2, 4, 8, 16, 32, 64],
        series: &[
            series("one more VM", "curve_vm_create"),
            series("its end", "curve_vm_destroy"),
            series("an exit of the first", "curve_vm_exit"),
        ],
    },
    Curve {
        name: "cpus",
        title: "instructions a call",
        axis: "CPUs that call at once",
        args: "scenario=cost curve=cpus",
        features: &["hyp/bench"],
        point: Point::Cpus,
        points: &[1, 2, 4, 8],
        series: &[series("share, unshare", "curve_call"), series("looks at a held lock", "lock_spins")],
    },
];

/// Figures of one curve on one CPU model: for each series one for each point.
pub type Figures = BTreeMap<String, Vec<u64>>;
/// Those of all curves, by curve and CPU model.
pub type Measured = BTreeMap<String, BTreeMap<String, Figures>>;

impl Curve {
    fn boots(&self) -> Vec<(u32, Memory)> {
        match self.point {
            Point::Metric => vec![(1, Memory::gib(1))],
            Point::Ram => self.points.iter().map(|ram| (1, Memory::gib(*ram))).collect(),
            Point::Cpus => self.points.iter().map(|cpus| (*cpus, Memory::gib(1))).collect(),
        }
    }

    fn measure(&self, qemu: &Qemu, images: &Images, cpu: &str) -> Result<Figures> {
        let mut values = Vec::new();
        for (smp, mem) in self.boots() {
            let column = Counted { args: self.args, cpu, smp, mem }.boot(qemu, images)?;
            values.push(BTreeMap::from_iter(column.metrics.into_iter().map(|m| (m.name, m.value))));
        }
        let figures = self.series.iter().map(|series| {
            let figure = |(nth, point): (usize, &u32)| self.figure(&values, series, nth, *point);
            let figures = self.points.iter().enumerate().map(figure).collect::<Result<_>>()?;
            Ok((series.name.to_owned(), figures))
        });
        figures.collect()
    }

    fn figure(
        &self,
        boots: &[BTreeMap<String, u64>],
        series: &Series,
        nth: usize,
        point: u32,
    ) -> Result<u64> {
        let numbered = self.point == Point::Metric || series.metric == "curve_call";
        let name = match numbered {
            true => format!("{}_{point}{}", series.metric, series.suffix),
            false => series.metric.to_owned(),
        };
        let boot = boots.get(if self.point == Point::Metric { 0 } else { nth });
        let value = *boot.and_then(|values| values.get(&name)).with_context(|| format!("no {name}"))?;
        let each = if series.each { u64::from(point) } else { 1 };
        let value = if series.metric == "carve_out" { value >> 10 } else { value };
        Ok(value.saturating_add(each / 2).checked_div(each).unwrap_or(0))
    }

    /// Its picture.
    #[must_use]
    pub fn plot(&self, figures: &BTreeMap<String, Figures>) -> Plot<'_> {
        let lines = figures.iter().flat_map(|(cpu, figures)| {
            self.series.iter().enumerate().filter_map(move |(nth, series)| {
                let values = figures.get(series.name)?.clone();
                Some(Line {
                    name: format!("{}, {cpu}", series.name),
                    colour: nth,
                    dashed: cpu != CPUS[0],
                    values,
                })
            })
        });
        Plot { title: self.title, axis: self.axis, points: self.points, lines: lines.collect() }
    }

    /// Its table: a line for each series and CPU model.
    #[must_use]
    pub fn table(&self, figures: &BTreeMap<String, Figures>) -> Table {
        let mut head = vec![format!("{}, by {}", self.title, self.axis)];
        head.extend(self.points.iter().map(|point| grouped(u64::from(*point))));
        let mut rows = vec![head];
        for series in self.series {
            for (cpu, figures) in figures {
                let mut row = vec![format!("{}, {cpu}", series.name)];
                row.extend(figures.get(series.name).into_iter().flatten().map(|value| grouped(*value)));
                rows.push(row);
            }
        }
        Table { rows, words: 1 }
    }

    /// The file of its picture.
    #[must_use]
    pub fn picture(&self) -> PathBuf {
        xtask::workspace().join(format!("docs/cost-{}.svg", self.name))
    }
}

/// Measures all curves; `said` is told of each.
///
/// # Errors
/// An image does not build; a machine did not come to an orderly end.
pub fn measure(qemu: &Qemu, said: impl Fn(&str) + Sync) -> Result<Measured> {
    let mut work = Vec::new();
    for curve in CURVES {
        let images = Build { features: curve.features, ..Build::default() }.run()?;
        work.extend(CPUS.map(|cpu| (curve, cpu, images.clone())));
    }
    let done: Vec<(&Curve, &str, Figures)> = in_parallel(work, |(curve, cpu, images)| {
        let name = format!("{}, {cpu}", curve.name);
        said(&name);
        Ok((curve, cpu, curve.measure(qemu, &images, cpu).context(name)?))
    })?;
    let mut measured = Measured::new();
    for (curve, cpu, figures) in done {
        measured.entry(curve.name.to_owned()).or_default().insert(cpu.to_owned(), figures);
    }
    Ok(measured)
}

fn file() -> PathBuf {
    xtask::workspace().join("bench/curves.json")
}

/// The committed curves.
///
/// # Errors
/// They cannot be read.
pub fn read() -> Result<Measured> {
    let text = fs::read_to_string(file()).with_context(|| format!("cannot read {}", file().display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} holds no curves", file().display()))
}

/// Makes these the committed ones.
///
/// # Errors
/// They cannot be written.
pub fn write(measured: &Measured) -> Result<()> {
    let mut text = String::from("{");
    for (nth, (curve, cpus)) in measured.iter().enumerate() {
        text.push_str(if nth == 0 { "\n" } else { ",\n" });
        text.push_str(&format!("  {}: {}", serde_json::to_string(curve)?, serde_json::to_string(cpus)?));
    }
    text.push_str("\n}\n");
    fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
}

/// Whether two measurements differ: a line for each curve that does.
#[must_use]
pub fn differences(before: &Measured, now: &Measured) -> Vec<String> {
    let mut lines = Vec::new();
    for curve in CURVES {
        for cpu in CPUS {
            let of = |all: &Measured| all.get(curve.name).and_then(|cpus| cpus.get(cpu)).cloned();
            if of(before) != of(now) {
                lines.push(format!("{}, {cpu}: {:?} became {:?}", curve.name, of(before), of(now)));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_curves_have_every_point() {
        let measured = read().unwrap();
        for curve in CURVES {
            for cpu in CPUS {
                for series in curve.series {
                    assert_eq!(measured[curve.name][cpu][series.name].len(), curve.points.len());
                }
            }
        }
    }

    #[test]
    fn the_committed_pictures_are_what_the_committed_figures_give() {
        let measured = read().unwrap();
        for curve in CURVES {
            let committed = fs::read_to_string(curve.picture()).unwrap();
            assert!(committed == curve.plot(&measured[curve.name]).svg(), "run scripts/bench.sh --page");
        }
    }

    #[test]
    fn a_figure_for_each_thing_is_the_call_divided() {
        let curve = CURVES[0];
        let boots = [BTreeMap::from([("curve_lend_4".to_owned(), 402)])];
        assert_eq!(curve.figure(&boots, &curve.series[0], 2, 4).unwrap(), 101);
        assert!(curve.figure(&boots, &curve.series[0], 3, 8).is_err());
    }
}
