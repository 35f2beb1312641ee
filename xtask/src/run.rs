//! Runs a command under a time limit and keeps what its console says.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// A guest that says more than this runs wild; it is stopped.
const MOST_OUTPUT: usize = 4 << 20;
/// How long a machine that said its last word may take to end by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit status.
    Exited(i32),
    /// By a signal that did not come from here.
    Killed,
    /// It said a last word (see [`Limits::last_words`]) and then did not end by itself.
    LastWord,
    /// The time was over.
    TimedOut,
    /// It said too much.
    TooMuchOutput,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exit status {status}"),
            Self::Killed => write!(f, "killed by a signal"),
            Self::LastWord => write!(f, "stopped without powering off"),
            Self::TimedOut => write!(f, "the time limit was reached"),
            Self::TooMuchOutput => write!(f, "more than {} MiB of output", MOST_OUTPUT >> 20),
        }
    }
}

/// When to stop waiting.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest run.
    pub wall: Duration,
    /// A line that contains one of these is the last of interest: the machine then has a second to end.
    pub last_words: Vec<String>,
}

impl Limits {
    /// So many seconds; a panic of the hypervisor is a last word.
    #[must_use]
    pub fn seconds(seconds: u64) -> Self {
        Self { wall: Duration::from_secs(seconds), last_words: vec!["rampart: end of panic".to_owned()] }
    }
}

/// What a run left.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Standard output, line by line, without carriage returns.
    pub console: String,
    /// What QEMU itself complained about.
    pub errors: String,
    /// How it ended.
    pub end: End,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Whether the machine ended by itself and QEMU was content.
    #[must_use]
    pub fn orderly(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// A child that does not outlive its run, whatever happens in between.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

enum Said {
    Line(String),
    Error(String),
}

/// Runs `command`; `on_line` sees every line of its standard output as it comes.
///
/// # Errors
/// The command cannot be started or waited for. How it ends is no error here, see [`Outcome::end`].
pub fn run(mut command: Command, limits: &Limits, mut on_line: impl FnMut(&str)) -> Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child =
        Owned(command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?);
    let (sender, lines) = sync_channel(1024);
    let stdout = child.0.stdout.take().context("no standard output")?;
    let stderr = child.0.stderr.take().context("no standard error")?;
    let errors_sender = sender.clone();
    thread::spawn(move || read_lines(stdout, &sender, Said::Line));
    thread::spawn(move || read_lines(stderr, &errors_sender, Said::Error));

    let mut outcome =
        Outcome { console: String::new(), errors: String::new(), end: End::TimedOut, took: Duration::ZERO };
    let mut deadline = started.checked_add(limits.wall).context("time limit too long")?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match lines.recv_timeout(left) {
            Ok(Said::Line(line)) => {
                on_line(&line);
                if outcome.end == End::TimedOut && limits.last_words.iter().any(|word| line.contains(word)) {
                    outcome.end = End::LastWord;
                    deadline = deadline.min(Instant::now().checked_add(GRACE).unwrap_or(deadline));
                }
                outcome.console.push_str(&line);
                outcome.console.push('\n');
                if outcome.console.len() > MOST_OUTPUT {
                    outcome.end = End::TooMuchOutput;
                    break;
                }
            }
            Ok(Said::Error(line)) => {
                outcome.errors.push_str(&line);
                outcome.errors.push('\n');
                if outcome.errors.len() > MOST_OUTPUT {
                    outcome.end = End::TooMuchOutput;
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => {
                if let Some(status) = wait_until(&mut child.0, deadline)? {
                    outcome.end = status.code().map_or(End::Killed, End::Exited);
                }
                break;
            }
        }
    }
    drop(child);
    outcome.took = started.elapsed();
    Ok(outcome)
}

/// Waits for a child that closed its outputs, hence is about to end.
fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<std::process::ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sends every line, the last one even if it is not complete.
fn read_lines(source: impl Read, sender: &SyncSender<Said>, wrap: impl Fn(String) -> Said) {
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A guest can write without end and without a newline.
        let read = source.by_ref().take(1 << 16).read_until(b'\n', &mut line);
        if !matches!(read, Ok(count) if count > 0) {
            return;
        }
        let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
        if sender.send(wrap(text)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limits: &Limits) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, limits, |_| {}).unwrap()
    }

    #[test]
    fn output_and_exit_status_are_kept() {
        let outcome = shell("printf 'one\\r\\ntwo'; echo oops >&2; exit 3", &Limits::seconds(20));
        assert_eq!(outcome.console, "one\ntwo\n");
        assert_eq!(outcome.errors, "oops\n");
        assert_eq!(outcome.end, End::Exited(3));
    }

    #[test]
    fn a_run_ends_at_its_time_limit_and_keeps_what_was_said() {
        let limits = Limits { wall: Duration::from_millis(300), last_words: vec![] };
        let outcome = shell("echo begun; exec sleep 60", &limits);
        assert_eq!((outcome.console.as_str(), outcome.end), ("begun\n", End::TimedOut));
        assert!(outcome.took < Duration::from_secs(20));
    }

    #[test]
    fn after_a_last_word_only_a_grace_remains() {
        let outcome = shell("echo 'rampart: end of panic'; exec sleep 60", &Limits::seconds(50));
        assert_eq!(outcome.end, End::LastWord);
        assert!(outcome.took < Duration::from_secs(20));
        let orderly = shell("echo 'rampart: end of panic'", &Limits::seconds(50));
        assert_eq!(orderly.end, End::Exited(0));
    }

    #[test]
    fn endless_output_is_stopped() {
        assert_eq!(shell("exec cat /dev/zero", &Limits::seconds(50)).end, End::TooMuchOutput);
        assert_eq!(shell("exec yes", &Limits::seconds(50)).end, End::TooMuchOutput);
    }

    #[test]
    fn lines_are_seen_as_they_come() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo a; echo b"]);
        let mut seen = Vec::new();
        run(command, &Limits::seconds(20), |line| seen.push(line.to_owned())).unwrap();
        assert_eq!(seen, ["a", "b"]);
    }
}
