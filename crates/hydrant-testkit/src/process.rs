//! A child process that cannot outlive the test, with its output in a file.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

pub use libc::{SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM};

/// How long what a killed process had started may take to end.
const END_LIMIT: Duration = Duration::from_secs(2);
/// Lines of output shown when a test fails while the process is alive.
const SHOWN_LINES: usize = 40;

/// A program with its arguments, which can be started, signalled, killed and started again.
/// Standard output and error are appended to one log file. Settings of AWS, OpenTelemetry, proxies
/// and hydrant are not inherited. Dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    directory: PathBuf,
    log: PathBuf,
    /// Where standard output goes when it does not go into the log.
    output: Option<PathBuf>,
    child: Option<Child>,
}

/// How a program ended, and what it wrote.
#[derive(Clone, Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself, if the program succeeded.
    ///
    /// # Panics
    /// With what the program wrote, if it failed.
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{}: {}{}", self.status, self.text(), self.stderr);
        self
    }
}

impl Process {
    /// A process that will run `program` in `directory` and log to `<directory>/<name>.log`.
    pub fn new(name: &str, program: impl Into<PathBuf>, directory: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            directory: directory.to_owned(),
            log: directory.join(format!("{name}.log")),
            output: None,
            child: None,
        }
    }

    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        for arg in args {
            self.arg(arg);
        }
        self
    }

    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.envs.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it; it must not be running.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} is running already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).expect("open the log");
        let output = match &self.output {
            None => log.try_clone().expect("duplicate the log's descriptor"),
            Some(file) => File::create(file).expect("the directory is writable"),
        };
        let mut command = Command::new(&self.program);
        for name in foreign_settings() {
            command.env_remove(name);
        }
        command.args(&self.args).envs(self.envs.iter().map(|(k, v)| (k, v)));
        command.current_dir(&self.directory).process_group(0);
        command.stdin(Stdio::null()).stdout(output).stderr(log);
        let child = spawn_bound(command);
        self.child = Some(child.unwrap_or_else(|error| {
            panic!("start {}: {error}", self.program.display());
        }));
    }

    /// Runs it to its end, with standard output apart from standard error.
    ///
    /// # Panics
    /// When it has not ended after `limit`.
    pub async fn run(mut self, limit: Duration) -> Finished {
        let output = self.directory.join(format!("{}.out", self.name));
        self.output = Some(output.clone());
        self.spawn();
        let status = self.wait(limit).await;
        let stdout = fs::read(output).expect("the output was just written");
        Finished { status, stdout, stderr: self.log() }
    }

    /// The process id.
    ///
    /// # Panics
    /// When it was not started, or was killed or waited for.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", self.name)).id()
    }

    /// Whether it was started and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sends a signal, such as [`SIGTERM`] or [`SIGSTOP`]. After the latter it has stopped: on a
    /// busy machine a process goes on for a while otherwise, and may still answer.
    pub fn signal(&self, signal: i32) {
        let pid = self.pid();
        send(i32::try_from(pid).expect("process ids are positive i32"), signal);
        let deadline = Instant::now() + END_LIMIT;
        while signal == SIGSTOP && !has_stopped(pid) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it with SIGKILL and waits until it is gone. Does nothing when it is not running.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only when the process has already ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{} is not running", self.name));
        let status = crate::until(&what, limit, async || {
            child.try_wait().expect("a child can be waited for")
        })
        .await;
        self.child = None;
        status
    }

    /// Asks it to end with SIGTERM and waits for that.
    pub async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(SIGTERM);
        self.wait(limit).await
    }

    /// Everything it wrote, over all its starts.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until its output contains `text`.
    pub async fn logged(&self, text: &str, limit: Duration) {
        let what = format!("{text:?} in the log of {}", self.name);
        crate::until(&what, limit, async || self.log().contains(text).then_some(())).await;
    }

    /// Fails at once, with the output, when the process has ended by itself.
    pub fn assert_running(&mut self) {
        if !self.is_running() {
            panic!("{} ended by itself:\n{}", self.name, self.log_tail());
        }
    }

    /// The largest resident set it ever had, in bytes (`VmHWM` of /proc/<pid>/status).
    pub fn peak_memory(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    /// The resident set it has now, in bytes (`VmRSS` of /proc/<pid>/status).
    pub fn memory(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the status of a running process is readable");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let value = line.and_then(|rest| rest.split_whitespace().next());
        value.and_then(|kib| kib.parse().ok()).expect("the kernel writes the field in KiB")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- last lines of {}:\n{}", self.name, self.log_tail());
        }
        let started = self.child.as_ref().map_or_else(Vec::new, |child| descendants(child.id()));
        if let Some(child) = &self.child {
            // The group holds what the process itself started, such as the nats-server of
            // `hydrant up`. The id is still ours, because the child was not waited for.
            send(-i32::try_from(child.id()).expect("process ids are positive i32"), SIGKILL);
        }
        self.kill9();
        // What it had started in groups of its own ends with it, but a moment later; until then it
        // may write into directories that are being removed.
        let deadline = Instant::now() + END_LIMIT;
        while started.iter().any(|pid| parent(*pid).is_some()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Running processes that `root` started, or that those started.
fn descendants(root: u32) -> Vec<u32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
    let all: Vec<_> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let (mut found, mut looked_at) = (vec![root], 0);
    while let Some(&above) = found.get(looked_at) {
        found.extend(all.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        looked_at += 1;
    }
    found.split_off(1)
}

/// Whether no thread of the process runs.
fn has_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    stats.all(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim().starts_with('T')))
}

/// The parent of a process; `None` once it has ended, waited for or not.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    fields.next().filter(|state| *state != "Z")?;
    fields.next()?.parse().ok()
}

/// Variables of whoever runs the tests that would change what a server or hydrant does.
fn foreign_settings() -> impl Iterator<Item = OsString> {
    const FAMILIES: [&str; 7] =
        ["AWS_", "HYDRANT_", "OTEL_", "REGISTRY_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let names = env::vars_os().map(|(name, _)| name);
    names.filter(|name| {
        let name = name.to_string_lossy().to_uppercase();
        FAMILIES.iter().any(|family| name.starts_with(family))
    })
}

/// Sends `signal` to a process, or to a process group when `pid` is negative.
#[allow(unsafe_code)]
fn send(pid: i32, signal: i32) {
    // SAFETY: kill takes two integers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) };
}

/// Starts `command` so that the kernel kills it when this process ends, however it ends.
///
/// The kernel ties the child to the thread that started it, so one thread that never ends starts
/// them all.
fn spawn_bound(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (command, answer) in inbox {
                // The other side waits below.
                let _ = answer.send(bind_to_parent(command).spawn());
            }
        });
        orders
    });
    let (answer, started) = mpsc::channel();
    spawner.send((command, answer)).expect("the spawner never ends");
    started.recv().expect("the spawner answers every order")
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn bind_to_parent(mut command: Command) -> Command {
    let parent = std::process::id();
    let bind = move || {
        // SAFETY: prctl and getppid are async-signal-safe and touch no memory of ours.
        let (bound, parent_now) =
            unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, SIGKILL), libc::getppid()) };
        // The parent may have died before prctl; then nobody would ever end this child.
        let orphaned = u32::try_from(parent_now) != Ok(parent);
        if bound != 0 || orphaned { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    };
    // SAFETY: the closure neither allocates nor locks, as the time between fork and exec demands.
    unsafe { command.pre_exec(bind) };
    command
}

#[cfg(not(target_os = "linux"))]
fn bind_to_parent(command: Command) -> Command {
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_kept_over_restarts_and_signals_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::new("sh", "/bin/sh", dir.path());
        process
            .args(["-c", "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.01; done"]);
        process.spawn();
        process.logged("hello", Duration::from_secs(10)).await;
        assert!(process.peak_memory() > 0);
        let status = process.terminate(Duration::from_secs(10)).await;
        assert_eq!(status.code(), Some(3));
        assert_eq!(process.log(), "hello\nbye\n");
        process.spawn();
        assert!(process.is_running());
        process.kill9();
        assert!(!process.is_running());
    }
}
