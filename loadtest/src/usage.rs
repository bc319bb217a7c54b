//! What processes take: CPU, memory and open files, read from `/proc`.

use crate::metric::{Metric, Values};
use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Clock ticks per second in `/proc/<pid>/stat` (`USER_HZ`, 100 on every Linux there is).
const TICKS: f64 = 100.0;
pub const MIB: f64 = 1024.0 * 1024.0;

/// A process whose use is measured.
#[derive(Clone, Debug)]
pub struct Watched {
    pub name: String,
    /// Of all clones: whoever starts the process again says so to those who watch it.
    pid: Arc<AtomicU32>,
    extent: Extent,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It is what is measured.
    Measured,
    /// It works for what is measured, such as the bus: its CPU counts, its memory is its own.
    Aside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// With what it started itself, such as nginx's workers or the nats-server of `hydrant up`.
    WithChildren,
    Alone,
}

/// What a process took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Of itself and its children.
    pub cpu_s: f64,
    /// Resident bytes of itself and of children that run the same program.
    pub memory: u64,
    /// The same at its highest.
    pub peak: u64,
    pub descriptors: u64,
}

impl Watched {
    pub fn new(name: &str, pid: u32) -> Self {
        let pid = Arc::new(AtomicU32::new(pid));
        Self { name: name.to_owned(), pid, extent: Extent::WithChildren, role: Role::Measured }
    }

    /// The load generator itself, without the servers it started.
    pub fn ourselves() -> Self {
        let pid = std::process::id();
        Self { extent: Extent::Alone, ..Self::new("load generator", pid) }
    }

    /// It was started again.
    pub fn is_now(&self, pid: u32) {
        self.pid.store(pid, Relaxed);
    }

    pub fn is_measured(&self) -> bool {
        self.role == Role::Measured
    }

    /// Space of files that have no name any more, or never had one, and are open in the process.
    pub fn deleted_bytes(&self) -> u64 {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid.load(Relaxed)));
        let open = open.into_iter().flatten().flatten().map(|entry| entry.path());
        // A file counts once, in however many places it is open.
        let files: HashMap<_, _> = open.filter_map(|open| deleted(&open)).collect();
        files.values().sum()
    }

    /// The same process as one that works for what is measured.
    pub fn aside(self) -> Self {
        Self { role: Role::Aside, ..self }
    }

    /// Nothing when it has ended.
    pub fn usage(&self) -> Usage {
        self.among(&Processes::read())
    }

    /// The same from a reading of all processes.
    pub fn among(&self, Processes(table): &Processes) -> Usage {
        let pid = self.pid.load(Relaxed);
        let Some(main) = table.get(&pid) else {
            return Usage::default();
        };
        let family = match self.extent {
            Extent::WithChildren => family(table, pid),
            Extent::Alone => vec![pid],
        };
        let mut usage = Usage::default();
        for pid in family {
            let stat = &table[&pid];
            usage.cpu_s += stat.cpu_s;
            if stat.program == main.program {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                usage.memory += kib(&status, "VmRSS:") * 1024;
                usage.peak += kib(&status, "VmHWM:") * 1024;
                let open = fs::read_dir(format!("/proc/{pid}/fd"));
                usage.descriptors += open.map_or(0, Iterator::count) as u64;
            }
        }
        usage
    }
}

/// Device, number and space of the file behind an entry of `/proc/<pid>/fd`, if it lies on a disk and
/// has no name.
fn deleted(open: &Path) -> Option<((u64, u64), u64)> {
    let file = fs::metadata(open).ok().filter(|file| file.is_file() && file.nlink() == 0)?;
    let is_memory = fs::read_link(open).ok()?.to_string_lossy().starts_with("/memfd:");
    (!is_memory).then(|| ((file.dev(), file.ino()), file.blocks() * 512))
}

struct Stat {
    program: String,
    parent: u32,
    cpu_s: f64,
}

/// All processes of the machine at one moment.
pub struct Processes(HashMap<u32, Stat>);

impl Processes {
    pub fn read() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self(pids.filter_map(|pid| Some((pid, stat(pid)?))).collect())
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (program) state ppid …`, times at 14 and 15; the program's name may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (before, after) = text.rsplit_once(')')?;
    let program = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    let cpu_s = (ticks(11)? + ticks(12)?) / TICKS;
    Some(Stat { program, parent: fields.get(1)?.parse().ok()?, cpu_s })
}

/// A process and all that descend from it.
fn family(table: &HashMap<u32, Stat>, root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let mut looked_at = 0;
    while let Some(&parent) = family.get(looked_at) {
        family.extend(table.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
        looked_at += 1;
    }
    family
}

fn kib(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let value = line.and_then(|rest| rest.split_whitespace().next());
    value.and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// CPU seconds of children that have ended and were waited for, such as skopeo's.
pub fn ended_children_cpu_s() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let fields = after.split_whitespace().skip(13).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Busy and total CPU seconds of the machine since its start.
fn machine() -> (f64, f64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
    let total: f64 = ticks.iter().sum();
    // Idle, and waiting for the disk.
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    ((total - idle) / TICKS, total / TICKS)
}

/// What the processes of a contestant take from here on.
#[derive(Debug)]
pub struct Meter {
    watched: Vec<Watched>,
    before: f64,
    client: f64,
    machine: (f64, f64),
    started: Instant,
}

impl Meter {
    pub fn start(watched: &[Watched]) -> Self {
        Self {
            watched: watched.to_vec(),
            before: cpu_s(watched),
            client: Watched::ourselves().usage().cpu_s,
            machine: machine(),
            started: Instant::now(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// How busy the machine was until now, and the load generator on it.
    pub fn read_machine(&self, values: &mut Values) {
        let elapsed = self.elapsed().as_secs_f64().max(1e-3);
        let client = Watched::ourselves().usage().cpu_s - self.client;
        values.insert(Metric::ClientCpu, client / elapsed);
        let (busy, total) = machine();
        values.insert(Metric::Busy, (busy - self.machine.0) / (total - self.machine.1).max(1e-3));
    }

    /// CPU and peak memory into `values`; CPU per GB where bytes were served.
    pub fn read(&self, served: u64, values: &mut Values) {
        if self.watched.is_empty() {
            return;
        }
        let cpu = cpu_s(&self.watched) - self.before;
        values.insert(Metric::Cpu, cpu);
        if served > 0 {
            values.insert(Metric::CpuPerGb, cpu / (served as f64 / 1e9));
        }
        let measured = self.watched.iter().filter(|watched| watched.role == Role::Measured);
        let peak = measured.map(|watched| watched.usage().peak).max().unwrap_or(0);
        values.insert(Metric::PeakMemory, peak as f64 / MIB);
    }
}

fn cpu_s(watched: &[Watched]) -> f64 {
    let processes = Processes::read();
    watched.iter().map(|watched| watched.among(&processes).cpu_s).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_whatever_the_program_is_called() {
        let line = "7 (a) b) c) S 3 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 1 1 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.program.as_str(), stat.parent, stat.cpu_s), ("a) b) c", 3, 2.0));
    }

    #[test]
    fn open_files_without_a_name_take_space() {
        let own = Watched::ourselves();
        let before = own.deleted_bytes();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &vec![1; 4 << 20]).unwrap();
        file.sync_all().unwrap();
        let again = file.try_clone().unwrap();
        let with = own.deleted_bytes();
        assert!(with - before >= 4 << 20 && with - before < 8 << 20, "{before} {with}");
        drop((file, again));
    }

    #[test]
    fn who_watches_a_process_goes_on_with_the_one_that_replaced_it() {
        let watched = Watched::new("x", 0);
        let clone = watched.clone();
        assert_eq!(clone.usage(), Usage::default());
        watched.is_now(std::process::id());
        assert!(clone.usage().memory > 0);
    }

    #[test]
    fn this_process_takes_memory_and_files() {
        let usage = Watched::ourselves().usage();
        assert!(usage.memory > 0 && usage.peak >= usage.memory && usage.descriptors > 2);
    }
}
