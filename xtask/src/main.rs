//! `xtask`: the library's verbs for people. `scripts/qemu-boot.sh` calls `xtask boot`.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Parser, Subcommand};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xtask::campaign::{self, campaign};
use xtask::images::{Build, DEVELOPMENT, Images};
use xtask::linux::{self, Driver, Effort, Extras, Linux, Run};
use xtask::linux_guest::{self, Guest, Story};
use xtask::machine::{Host, Machine, Memory, shell_line};
use xtask::ownership::Ownership;
use xtask::protocol::Report;
use xtask::qemu::Qemu;
use xtask::run::{Limits, Outcome, run};
use xtask::show::{self, Style};
use xtask::symbols::{Symbols, backtrace};
use xtask::{cost, flat, handed, kernel};

/// Builds Rampart's images, boots them under QEMU and reads what they say.
#[derive(Debug, Parser)]
#[command(name = "xtask")]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Boots one machine; without options the demo, and then the cost figures.
    Boot(Box<Boot>),
    /// Builds the images and prints where they are.
    Build(BuildOptions),
    /// Boots hostile hosts until the time is over; docs/testing.md, "The campaign".
    Campaign(CampaignOptions),
    /// Writes the answers that campaigns met into docs/coverage.md, from their results.
    Coverage {
        /// target/campaign/SEED/CPU.json of each.
        #[arg(required = true)]
        results: Vec<PathBuf>,
    },
    /// Writes the lines of each module that the tests ran into docs/coverage.md; scripts/coverage.sh calls it.
    Lines {
        /// What `llvm-cov export --summary-only` printed.
        report: PathBuf,
    },
    /// Adds function, file and line to the backtraces of a console log on standard input.
    Symbolise(SymboliseOptions),
}

#[derive(Debug, Args)]
#[command(override_usage = "scripts/qemu-boot.sh [OPTIONS]")]
struct Boot {
    /// CPU model: max, cortex-a72, neoverse-n2, cortex-a53, or any other of QEMU's 64-bit models.
    #[arg(long, default_value = "max")]
    cpu: String,
    /// Number of CPUs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    smp: u32,
    /// Amount of RAM, as QEMU writes it: 512M, 1G, 16G.
    #[arg(long, default_value = "1G")]
    mem: Memory,
    /// The scenario that the host runs; host-shim/src/scenarios/mod.rs lists them.
    #[arg(long, default_value = "demo", conflicts_with = "host")]
    scenario: String,
    /// Another host: `linux` is Debian's unmodified kernel, which checks the machine and powers it off; any other word is
    /// an arm64 Image file: the console is yours and there is no time limit.
    #[arg(long, value_name = "linux|FILE")]
    host: Option<PathBuf>,
    /// Debian's unmodified Linux as a guest of the host shim: `linux`, nothing else.
    #[arg(long, value_name = "linux", value_parser = ["linux"], conflicts_with_all = ["host", "scenario"])]
    guest: Option<String>,
    /// The guest is a realm: its memory is out of the host's reach.
    #[arg(long, requires = "guest")]
    realm: bool,
    /// A plain Linux and a realm at once, beside a guest that leaves in every way it can.
    #[arg(long, requires = "guest", conflicts_with_all = ["realm", "shell"])]
    together: bool,
    /// A realm after the other, which the host attacks each in another way; --append attack=NAME for one way.
    #[arg(long, requires = "guest", conflicts_with_all = ["realm", "shell", "together"])]
    hostile: bool,
    /// Guests of both kinds, which end while they run; --append rounds=N for more of them.
    #[arg(long, requires = "guest", conflicts_with_all = ["realm", "shell", "together", "hostile"])]
    ended: bool,
    /// Virtual CPUs of the guest.
    #[arg(long, requires = "guest", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    vcpus: u32,
    /// An arm64 Image that is the guest's kernel instead of Debian's.
    #[arg(long, requires = "guest", value_name = "FILE")]
    guest_kernel: Option<PathBuf>,
    /// RAM of the guest in MiB.
    #[arg(long, requires = "guest", value_name = "MIB", default_value_t = 256)]
    guest_mem: u32,
    /// A shell in Debian's Linux.
    #[arg(long)]
    shell: bool,
    /// As little of each check of Debian's Linux as shows something.
    #[arg(long, requires = "host", conflicts_with = "shell")]
    short: bool,
    /// The driver of Debian's Linux and rampartctl, with the development image: their checks, or with --shell a shell.
    #[arg(long, requires = "host", conflicts_with = "short")]
    driver: bool,
    /// Where --driver leaves a snapshot of Linux's stage-2 table, for ptdump.
    #[arg(long, value_name = "FILE", requires = "driver", conflicts_with = "shell")]
    snapshot: Option<PathBuf>,
    /// RAM disk for a host's Image file, placed at 0x50000000, in 256 MiB or less at 0x48200000.
    #[arg(long, value_name = "FILE", requires = "host")]
    initrd: Option<PathBuf>,
    /// More words for the host's command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Cargo features of the images, as package/feature, separated by commas.
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    features: Vec<String>,
    /// What the hypervisor says: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    #[arg(value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: String,
    /// More words for the hypervisor's command line, as docs/boot.md lists them: mte=conservative,
    /// no-tags=0x7f000000,0x1000000.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    hypervisor_append: String,
    /// Let a reset start the machine again, as scenario guest_reset needs it.
    #[arg(long)]
    reboot: bool,
    /// Draw who owns which page at the scenario's most interesting moment, into a page for a browser (or a still
    /// picture, if the name ends with .svg). With the development image, which lets the host take snapshots.
    #[arg(long, value_name = "FILE", conflicts_with = "host")]
    ownership_map: Option<PathBuf>,
    /// Wait for a debugger on TCP port 1234 before the first instruction.
    #[arg(long)]
    gdb: bool,
    /// Show the console as it is.
    #[arg(long)]
    verbose: bool,
    /// Print QEMU's command line and run nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON.
    #[arg(long, conflicts_with_all = ["verbose", "host"])]
    json: bool,
    /// Stop a scenario after so many seconds: 60, or 900 for Debian's Linux.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

#[derive(Debug, Args)]
struct BuildOptions {
    /// Cargo features as package/feature, separated by commas.
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
    /// With debug assertions and no optimisation.
    #[arg(long)]
    debug: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "scripts/campaign.sh [OPTIONS]")]
struct CampaignOptions {
    /// Minutes after which no boot begins.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// What is drawn; the same seed draws the same. By default the time.
    #[arg(long)]
    seed: Option<u64>,
    /// CPU model.
    #[arg(long, default_value = "max")]
    cpu: String,
    /// The image with the audit alone, which is faster than the one with the specification.
    #[arg(long)]
    audited: bool,
    /// Print the result as JSON, and only that.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SymboliseOptions {
    /// The hypervisor's ELF file; by default that of the last release build.
    #[arg(long, value_name = "FILE")]
    elf: Option<PathBuf>,
}

/// What the hypervisor starts as its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload<'a> {
    /// The host image, with a scenario by name.
    Scenario(&'a str),
    /// Debian's Linux.
    Linux(Run),
    /// The host image, with Debian's Linux as its guest.
    Guest(Guest),
    /// An Image file.
    File(&'a Path),
}

impl Boot {
    fn payload(&self) -> Result<Payload<'_>> {
        let debian = self.host.as_deref().is_some_and(|host| host == "linux");
        ensure!(debian || !(self.short || self.driver), "--short and --driver are for --host linux");
        ensure!(
            debian || self.guest.is_some() || !self.shell,
            "--shell is for --host linux and --guest linux"
        );
        ensure!(!debian || self.initrd.is_none(), "--host linux has a RAM disk of its own");
        Ok(match &self.host {
            None if self.guest.is_some() => Payload::Guest(Guest {
                realm: self.realm,
                vcpus: self.vcpus,
                mebibytes: self.guest_mem,
                shell: self.shell,
                story: match (self.together, self.hostile, self.ended) {
                    (true, ..) => Story::Together,
                    (_, true, _) => Story::Hostile,
                    (_, _, true) => Story::Ended,
                    _ => Story::Alone,
                },
                quiet: !self.verbose,
            }),
            None => Payload::Scenario(&self.scenario),
            Some(_) if debian && self.shell => Payload::Linux(Run::Shell),
            Some(_) if debian && self.short => Payload::Linux(Run::Checks(Effort::Short)),
            Some(_) if debian && self.driver => Payload::Linux(Run::Driver),
            Some(_) if debian => Payload::Linux(Run::Checks(Effort::Full)),
            Some(file) => Payload::File(file),
        })
    }
}

impl<'a> Payload<'a> {
    /// The scenario that the console is to show; none if the console is the user's.
    fn scenario(self) -> Option<&'a str> {
        match self {
            Self::Scenario(name) => Some(name),
            Self::Linux(Run::Checks(_) | Run::Driver) => Some(linux::SCENARIO),
            Self::Guest(guest) => (!guest.shell).then_some(guest.scenario()),
            Self::Linux(Run::Shell | Run::Cost | Run::See | Run::Kexec) | Self::File(_) => None,
        }
    }

    fn limit(self) -> Duration {
        let linux = matches!(self, Self::Linux(_) | Self::Guest(_));
        Duration::from_secs(if linux { 900 } else { 60 })
    }
}

fn main() -> ExitCode {
    let result = match Command::parse().verb {
        Verb::Boot(options) => boot(&options),
        Verb::Build(options) => build(&options),
        Verb::Campaign(options) => run_campaign(options),
        Verb::Coverage { results } => xtask::coverage::write(&results),
        Verb::Lines { report } => xtask::lines::write(&report),
        Verb::Symbolise(options) => symbolise(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the release images, with a word about it where it takes long.
fn release_images() -> Result<Images> {
    let build = Build::default();
    if !build.images().host.flat.exists() {
        eprintln!("building the images");
    }
    build.run()
}

fn boot(options: &Boot) -> Result<()> {
    let payload = options.payload()?;
    let qemu = Qemu::find()?;
    let ownership = options.ownership_map.as_deref().map(Ownership::new).transpose()?;
    let mut features: Vec<&str> = options.features.iter().map(String::as_str).collect();
    if ownership.is_some() {
        features.extend(DEVELOPMENT.features);
    }
    if options.driver {
        features.extend(linux::DRIVER_FEATURES);
    }
    let images = if features.is_empty() {
        release_images()?
    } else {
        Build { features: &features, ..Build::default() }.run()?
    };
    let machine = machine(options, payload, &images, ownership.as_ref())?;
    if options.dry_run {
        println!("{} {}", shell_line([&qemu.path]), shell_line(machine.args()));
        return Ok(());
    }
    machine.check()?;
    if options.gdb {
        explain_debugger(&images)?;
    }
    let Some(scenario) = payload.scenario() else {
        let status = qemu.command(machine.args()).status().context("cannot start QEMU")?;
        ensure!(status.success(), "QEMU ended with {status}");
        return Ok(());
    };
    let limit = options.timeout.map_or(payload.limit(), Duration::from_secs);
    let wall = if options.gdb { Duration::from_secs(u64::from(u32::MAX)) } else { limit };
    let limits = Limits { wall, ..Limits::seconds(0) };
    let style = Style::of_stdout();
    if !options.json {
        println!("Rampart under QEMU {}: {} x {}, {}", qemu.version, machine.smp, machine.cpu, machine.mem);
    }
    let mut command = qemu.command(machine.args());
    if let Some(ownership) = &ownership {
        command.current_dir(ownership.folder());
    }
    let mut inside = handed::Inside::default();
    let outcome = run(command, &limits, |line| {
        if inside.a_file(line) {
            // Nothing that a person reads.
        } else if options.verbose {
            println!("{line}");
        } else if let (false, Some(line)) = (options.json, show::line(style, line)) {
            println!("{line}");
        }
    })?;
    let report = Report::parse(&outcome.console);
    let verdict = judge(scenario, &outcome, &report, &images);
    if let (Some(file), true) = (&options.snapshot, verdict.is_ok()) {
        let bytes = handed::file(&outcome.console, linux::SNAPSHOT)?;
        std::fs::write(file, bytes).with_context(|| file.display().to_string())?;
    }
    let dumps = match &ownership {
        Some(ownership) if verdict.is_ok() => ownership.draw()?,
        _ => Vec::new(),
    };
    let columns = if verdict.is_ok() && scenario == "demo" && !options.gdb {
        if !options.json {
            println!("\nCost, counted instruction by instruction on one CPU; EL2's own figures:");
        }
        cost::measure(&qemu, &images)?
    } else {
        Vec::new()
    };
    if options.json {
        let result = serde_json::json!({
            "scenario": scenario,
            "qemu": qemu.version.to_string(),
            "cpu": machine.cpu,
            "smp": machine.smp,
            "mem": machine.mem,
            "ok": verdict.is_ok(),
            "reason": verdict.as_ref().err().map(|error| format!("{error:#}")),
            "milliseconds": u64::try_from(outcome.took.as_millis())?,
            "report": report,
            "cost": columns,
        });
        println!("{result:#}");
    } else if verdict.is_ok() {
        if !columns.is_empty() {
            print!("{}", cost::table(&columns).text());
        }
        println!("\n{scenario}: {} checks held, orderly end", report.passed.len());
        if let Some(file) = options.ownership_map.as_deref().filter(|_| !dumps.is_empty()) {
            let dumps: Vec<String> = dumps.iter().map(|path| path.display().to_string()).collect();
            println!("ownership map: {}, of {}", file.display(), dumps.join(" "));
        }
    }
    verdict
}

/// The archive with the kernel of the host's guest.
fn guest_archive(options: &Boot, images: &Images) -> Result<PathBuf> {
    let mut linux = Linux::find()?;
    if let Some(kernel) = &options.guest_kernel {
        linux.kernel.clone_from(kernel);
    }
    linux_guest::archive(&linux, &images.guest.flat)
}

/// The host and its RAM disk.
fn host(options: &Boot, payload: Payload<'_>, images: &Images) -> Result<(Host, Option<PathBuf>)> {
    let (image, args, initrd) = match payload {
        Payload::Scenario(name) => {
            (images.host.flat.clone(), format!("scenario={name}"), Some(images.guest.flat.clone()))
        }
        Payload::Linux(run) => {
            let linux = Linux::find()?;
            let driver = options.driver.then(Driver::build).transpose()?;
            let initrd = linux.initrd(&Extras { driver: driver.as_ref(), next: None })?;
            (linux.kernel, run.args(options.smp, !options.verbose), Some(initrd))
        }
        Payload::Guest(guest) => {
            (images.host.flat.clone(), guest.args(), Some(guest_archive(options, images)?))
        }
        Payload::File(image) => (image.to_path_buf(), String::new(), options.initrd.clone()),
    };
    kernel::check(&image)?;
    Ok((Host { image, args }, initrd))
}

/// Adds words to a command line.
fn add_words(line: &mut String, words: &str) {
    if !line.is_empty() && !words.is_empty() {
        line.push(' ');
    }
    line.push_str(words);
}

fn machine(
    options: &Boot,
    payload: Payload<'_>,
    images: &Images,
    ownership: Option<&Ownership>,
) -> Result<Machine> {
    let (mut host, initrd) = host(options, payload, images)?;
    add_words(&mut host.args, &options.append);
    if let Some(ownership) = ownership {
        add_words(&mut host.args, &ownership.args());
    }
    let mut hypervisor_args = format!("log={}", options.log);
    add_words(&mut hypervisor_args, &options.hypervisor_append);
    Ok(Machine {
        cpu: options.cpu.clone(),
        semihosting: ownership.is_some(),
        smp: options.smp,
        mem: options.mem,
        hypervisor_args,
        host: Some(host),
        initrd,
        reboot: options.reboot,
        gdb: options.gdb,
        ..Machine::new(&images.hypervisor.flat)
    })
}

/// Success, or everything that helps to find out why not.
fn judge(scenario: &str, outcome: &Outcome, report: &Report, images: &Images) -> Result<()> {
    let verdict = report.verdict(scenario).map_err(|failure| anyhow!("{failure} ({})", outcome.end));
    let verdict = verdict.and_then(|()| {
        ensure!(outcome.orderly(), "the scenario passed, but the machine did not end well: {}", outcome.end);
        Ok(())
    });
    if verdict.is_err() {
        eprint!("{}", outcome.errors);
        if !backtrace(&outcome.console).is_empty() {
            let from = outcome.console.find("rampart: PANIC").unwrap_or(0);
            let symbols = Symbols::read(&images.hypervisor.elf)?;
            eprint!("{}", symbols.annotate(outcome.console.get(from..).unwrap_or_default()));
        }
    }
    verdict
}

fn explain_debugger(images: &Images) -> Result<()> {
    let flat = std::fs::read(&images.hypervisor.flat).context("cannot read the image")?;
    let at = flat::ImageHeader::read(&flat)?.qemu_load_address();
    eprintln!("QEMU waits for a debugger. In another terminal:");
    eprintln!(
        "  gdb-multiarch -ex 'add-symbol-file {} -o {at:#x}' -ex 'target remote :1234'",
        images.hypervisor.elf.display()
    );
    Ok(())
}

fn build(options: &BuildOptions) -> Result<()> {
    let features: Vec<&str> = options.features.iter().map(String::as_str).collect();
    let images = Build { debug: options.debug, features: &features }.run()?;
    for image in [images.hypervisor, images.host, images.guest] {
        println!("{}\n{}", image.elf.display(), image.flat.display());
    }
    Ok(())
}

fn run_campaign(options: CampaignOptions) -> Result<()> {
    let CampaignOptions { minutes, seed, cpu, audited, json } = options;
    let now = || Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let seed = seed.map_or_else(now, Ok::<_, anyhow::Error>)?;
    campaign(&campaign::Options { minutes, seed, cpu, audited, json })
}

fn symbolise(options: SymboliseOptions) -> Result<()> {
    let elf = options.elf.unwrap_or_else(|| Build::default().images().hypervisor.elf);
    let mut log = Vec::new();
    std::io::stdin().lock().read_to_end(&mut log).context("cannot read standard input")?;
    print!("{}", Symbols::read(&elf)?.annotate(&String::from_utf8_lossy(&log)));
    Ok(())
}
