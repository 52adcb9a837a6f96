//! What the daemon shows of itself: the status file and the control tree.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use fabricd::{Hub, MountStatus, Node, NodeStatus, Status};
use kos_fuse::ControlFile;
use kos_types::{Fabric, Result, limits};

use super::{ctl, machine};

/// What a healthy node says.
const OK: &str = "ok\n";
/// With less free than a large stripe, writes may find no room.
const FULL_BYTES: u64 = limits::STRIPE_BYTES_MAX as u64;

/// The daemon as its users see it.
pub(crate) struct View {
    pub(crate) node: Arc<Node>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) state: Vec<PathBuf>,
    pub(crate) mount: String,
    pub(crate) source: String,
}

/// The machine's name, for the node's directory.
pub(crate) fn host() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A name that is no file name would hide the node.
    if name.is_empty() || name.contains('/') { "node".to_owned() } else { name }
}

impl View {
    pub(crate) fn status(&self) -> Status {
        let pid = std::process::id();
        let redundancy = self.node.redundancy();
        Status {
            health: self.health(),
            mounts: self.mounts(pid),
            mount_source: self.source.clone(),
            nodes: vec![NodeStatus { id: 1, addr: String::new(), pid, state: "up" }],
            nodes_up: 1,
            leader: 1,
            leader_pid: pid,
            under_replicated_stripes: redundancy.under_replicated,
            under_spread_stripes: redundancy.under_spread,
        }
    }

    /// The daemon's own first.
    fn mounts(&self, pid: u32) -> Vec<MountStatus> {
        let status = |dir, source, pid| MountStatus { dir, source, pid, state: "mounted" };
        let own = status(self.mount.clone(), self.source.clone(), pid);
        let others = self.hub.others().into_iter().map(|who| status(who.dir, who.source, who.pid));
        std::iter::once(own).chain(others).collect()
    }

    fn health(&self) -> &'static str {
        if self.health_text() == OK { "ok" } else { "degraded" }
    }

    pub(crate) fn health_text(&self) -> String {
        let (silent, redundancy) = (self.node.places_silent(), self.node.redundancy());
        let failed = self.node.places_failed().saturating_sub(silent);
        let mut why = Vec::new();
        if self.node.log_failed() {
            why.push("the metadata's log could not be synced: no fsync succeeds before a restart".to_owned());
        }
        if self.node.is_silent() {
            let what = "the metadata's disk does not answer: changes and fsync fail until it does; look at the disk (dmesg)";
            why.push(what.to_owned());
        }
        if failed > 0 {
            why.push(format!("{failed} state directories take no writes; see the log"));
        }
        if silent > 0 {
            why.push(format!("{silent} state directories do not answer; see the log"));
        }
        if !redundancy.is_full() {
            why.push(format!("{redundancy}; they are rebuilt in the background"));
        }
        match self.node.usage() {
            Ok(usage) if usage.bytes_free >= FULL_BYTES => {}
            Ok(_) => why.push("the state directories are full: remove files or make room there".to_owned()),
            Err(e) => why.push(e.to_string()),
        }
        if why.is_empty() { OK.to_owned() } else { format!("degraded: {}\n", why.join("; ")) }
    }

    fn config(&self) -> String {
        let mut text = format!("mount = {:?}\nsource = {:?}\n", self.mount, self.source);
        for dir in &self.state {
            let _ = writeln!(text, "state = {dir:?}");
        }
        text
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.node.counters().list() {
            let _ = writeln!(text, "# TYPE {name} counter\n{name} {value}");
        }
        let redundancy = self.node.redundancy();
        for (name, value) in [
            ("kos_places_failed", self.node.places_failed() as u64),
            ("kos_places_silent", self.node.places_silent() as u64),
            ("kos_stripes_under_replicated", redundancy.under_replicated),
            ("kos_stripes_under_spread", redundancy.under_spread),
            ("kos_stripes_lost", redundancy.lost),
            ("kos_copies_bytes", self.node.copies_bytes()),
        ] {
            let _ = writeln!(text, "# TYPE {name} gauge\n{name} {value}");
        }
        text
    }

    fn usage(&self) -> Result<String> {
        let usage = self.node.usage()?;
        let used = usage.bytes_total - usage.bytes_free;
        let (ram_used, ram_total) = self.node.ram_usage()?;
        let mut text = format!(
            "bytes_total {}\nbytes_used {used}\nbytes_free {}\ninodes_used {}\n\
             ram_bytes_total {ram_total}\nram_bytes_used {ram_used}\n",
            usage.bytes_total, usage.bytes_free, usage.inodes_used
        );
        for account in self.node.accounts()? {
            let (name, has) = (account.name, account.usage);
            let _ = write!(text, "{name} bytes {} inodes {}", has.bytes, has.inodes);
            for (limit, max) in [("bytes_max", has.bytes_max), ("inodes_max", has.inodes_max)] {
                if max < u64::MAX {
                    let _ = write!(text, " {limit} {max}");
                }
            }
            text.push('\n');
        }
        Ok(text)
    }

    fn node_status(&self) -> String {
        format!("id 1\nstate up\npid {}\nhealth {}\n", std::process::id(), self.health())
    }

    /// The files below the mount's root.
    pub(crate) fn control(self: &Arc<Self>) -> Vec<ControlFile> {
        let file = |path: String, make: fn(&Self) -> String| {
            let view = Arc::clone(self);
            let read = Box::new(move || make(&view).into_bytes());
            ControlFile { path, read, live: false, write: None }
        };
        let own = |name: &str| format!("nodes/{}/{name}", host());
        let events = Arc::clone(self.node.events());
        let events = Box::new(move || events.text());
        let view = Arc::clone(self);
        let ctl = Box::new(move |bytes: &[u8], sync: &dyn Fn() -> Result<()>| {
            // What other mounts have buffered is written too.
            ctl::run(&view.node, bytes, &|| view.hub.flush_all().and_then(|()| sync()))
        });
        vec![
            file("sys/health".into(), Self::health_text),
            file("sys/version".into(), |_| format!("kosfs {}\n", env!("CARGO_PKG_VERSION"))),
            file("sys/config".into(), Self::config),
            file("sys/metrics".into(), Self::metrics),
            file("sys/usage".into(), |view| view.usage().unwrap_or_else(|e| format!("error {e}\n"))),
            ControlFile { path: "sys/events".into(), read: events, live: true, write: None },
            file(own("status"), Self::node_status),
            file(own("cpu"), |_| machine::cpu()),
            file(own("memory"), |view| machine::memory(&view.node)),
            file(own("disks"), |view| machine::disks(&view.node)),
            ControlFile {
                path: own("ctl"),
                read: Box::new(|| ctl::HELP.as_bytes().to_vec()),
                live: false,
                write: Some(ctl),
            },
        ]
    }
}
