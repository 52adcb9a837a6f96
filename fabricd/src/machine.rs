//! The machine as it is now, for /kos/nodes/<node>/{cpu,memory,disks}.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use fabricd::Node;
use rustix::fs::{major, minor, statvfs};

/// What /proc says, or in its place why not.
fn proc(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("error {path}: {e}\n"))
}

/// The value of `name` in lines of `name: value`.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let value = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name);
    value.map_or("unknown", |(_, value)| value.trim())
}

/// A value in `kB`, in bytes.
fn bytes(text: &str, name: &str) -> String {
    let number = field(text, name).strip_suffix("kB").and_then(|kib| kib.trim().parse::<u64>().ok());
    number.map_or_else(|| "unknown".to_owned(), |kib| (kib * 1024).to_string())
}

pub(crate) fn cpu() -> String {
    let (info, load) = match (proc("/proc/cpuinfo"), proc("/proc/loadavg")) {
        (Ok(info), Ok(load)) => (info, load),
        (Err(e), _) | (_, Err(e)) => return e,
    };
    // Cores that this process may use: a container or taskset may give it fewer than there are.
    let usable = std::thread::available_parallelism().map_or(0, usize::from);
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    format!("cores {cores}\ncores_usable {usable}\nmodel {}\nload {load}\n", field(&info, "model name"))
}

pub(crate) fn memory(node: &Node) -> String {
    let (info, own) = match (proc("/proc/meminfo"), proc("/proc/self/status")) {
        (Ok(info), Ok(own)) => (info, own),
        (Err(e), _) | (_, Err(e)) => return e,
    };
    let (used, total) = match node.ram_usage() {
        Ok(usage) => usage,
        Err(e) => return format!("error {e}\n"),
    };
    format!(
        "bytes_total {}\nbytes_available {}\ntier_bytes_total {total}\ntier_bytes_used {used}\n\
         daemon_bytes {}\ndaemon_bytes_peak {}\n",
        bytes(&info, "MemTotal"),
        bytes(&info, "MemAvailable"),
        bytes(&own, "VmRSS"),
        bytes(&own, "VmHWM"),
    )
}

/// The device a directory is on, as mount(8) shows it.
fn device(dir: &Path) -> io::Result<String> {
    let dev = fs::metadata(dir)?.dev();
    let number = format!("{}:{}", major(dev), minor(dev));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    // Fields: id, parent, major:minor, root, directory, options, optional ones, `-`, type, source.
    let source = mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == number).then(|| filesystem.split(' ').nth(1).map(str::to_owned))?
    });
    Ok(source.unwrap_or(number))
}

/// A paragraph for each state directory.
pub(crate) fn disks(node: &Node) -> String {
    let mut text = String::new();
    for (number, place) in node.places().into_iter().enumerate() {
        let _ = writeln!(text, "place {number}\ndir {}", place.dir.display());
        match device(&place.dir).and_then(|device| Ok((device, statvfs(&place.dir)?))) {
            Ok((device, space)) => {
                let (total, free) = (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize);
                let _ = writeln!(text, "device {device}\nbytes_total {total}\nbytes_free {free}");
            }
            Err(e) => {
                let _ = writeln!(text, "device unknown: {e}");
            }
        }
        let _ = writeln!(text, "bytes_shards {}", place.bytes_shards);
        let _ = match place.failed {
            None => writeln!(text, "failed no\n"),
            Some(e) => writeln!(text, "failed {e}\n"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotalX:  1 kB\nMemTotal:  2 kB\nName\t: three: four\n";
        assert_eq!(bytes(text, "MemTotal"), "2048");
        assert_eq!(field(text, "Name"), "three: four");
        assert_eq!((bytes(text, "Name").as_str(), field(text, "None")), ("unknown", "unknown"));
    }

    #[test]
    fn the_device_is_that_of_the_mount() {
        assert_eq!(device(Path::new("/proc")).expect("proc"), "proc");
        assert!(device(Path::new("/none")).is_err());
    }
}
