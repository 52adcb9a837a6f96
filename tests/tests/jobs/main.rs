//! Jobs as their users see them: files dropped into the jobs' directory, and what becomes of them.

mod dropping;
mod life;
mod refusals;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use kos_tests::Daemon;

/// Seconds that a job of these tests may take on a busy machine.
const SECONDS_MAX: &str = "60";

/// The jobs' directory of a daemon.
struct Jobs {
    dir: PathBuf,
}

impl Jobs {
    fn of(daemon: &Daemon) -> Self {
        // Other users come through the temporary directory.
        let root = daemon.mount().parent().expect("root").to_path_buf();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("chmod");
        Self { dir: daemon.mount().join("jobs") }
    }

    fn by_name(&self, name: &str) -> PathBuf {
        self.dir.join("by-name").join(name)
    }

    /// What the job's `wait` reads, when it ended.
    fn wait(&self, name: &str) -> String {
        let path = self.by_name(name).join("wait");
        let read = Command::new("timeout").arg(SECONDS_MAX).arg("cat").arg(&path).output().expect("cat");
        assert!(read.status.success(), "{}: {read:?}", path.display());
        String::from_utf8(read.stdout).expect("text")
    }

    fn read(&self, name: &str, file: &str) -> String {
        let path = self.by_name(name).join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// A value of the job's status, as it is written there.
    fn status(&self, name: &str, key: &str) -> String {
        value(&self.read(name, "status"), key)
    }

    fn why_rejected(&self, name: &str) -> String {
        let path = self.dir.join("rejected").join(format!("{name}.error"));
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Names in the jobs' directory beside the two that are always there.
    fn listed(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).expect("lists");
        let names = entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text"));
        let mut names: Vec<_> = names.filter(|name| name != "by-name" && name != "rejected").collect();
        names.sort();
        names
    }
}

fn value(status: &str, key: &str) -> String {
    let found = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    found.unwrap_or_else(|| panic!("no {key} in {status}")).to_owned()
}

fn sh(script: &str, dir: &std::path::Path) -> Output {
    Command::new("bash").arg("-c").arg(script).current_dir(dir).output().expect("bash")
}

/// Run a shell line as a user who is nobody else here, in two further groups.
fn sh_as(uid: u32, script: &str, dir: &std::path::Path) -> Output {
    let id = uid.to_string();
    Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--groups", "5001,5002", "bash", "-c", script])
        .current_dir(dir)
        .output()
        .expect("setpriv")
}

/// Bytes of a process's command line: whether one that holds `word` lives.
fn runs(word: &str) -> bool {
    let own = std::process::id().to_string();
    fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        entry.file_name() != *own && String::from_utf8_lossy(&line).contains(word)
    })
}
