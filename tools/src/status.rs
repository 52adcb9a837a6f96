//! `kos status`: what the daemon last wrote about itself, checked against whether it lives and its mount answers.

use crate::cli::{self, Exit, Failure, Outcome, say};
use crate::daemon::Daemon;
use crate::mounts::{self, FSTYPE};
use crate::probe::{self, Answer};
use crate::state::{Condition, State};
use serde_json::{Map, Value, json};
use std::io;
use std::time::Duration;

/// The daemon writes every second; one that is this late hangs.
const AGE_MAX: Duration = Duration::from_secs(10);
const PROBE_LIMIT: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &cli::Status) -> Outcome {
    let node = State::of_node(&args.place)?;
    let failed = |error: io::Error| Failure::at("read the status in", &node.path, &error);
    let daemon = match node.condition()? {
        Condition::Ours => Daemon::find(&node).map_err(failed)?,
        Condition::Missing | Condition::Empty => None,
    };
    let report = match &daemon {
        Some(daemon) => of_living(&node, daemon).map_err(failed)?,
        None => of_stopped(&node).map_err(failed)?,
    };
    let body = Value::Object(report.body);
    if args.json {
        say(format_args!("{body:#}"));
    } else {
        say(as_text(&body, &report.remarks));
    }
    Ok(exit_of(&body))
}

#[derive(Debug)]
struct Report {
    body: Map<String, Value>,
    remarks: Vec<String>,
}

fn exit_of(body: &Value) -> Exit {
    match body["health"].as_str() {
        Some("ok") => Exit::Done,
        Some("down") => Exit::NotRunning,
        _ => Exit::Degraded,
    }
}

/// Every field that is promised, with what is known without a daemon.
fn blank(health: &str) -> Map<String, Value> {
    let body = json!({
        "health": health,
        "mounts": [],
        "mount_source": null,
        "nodes": [],
        "nodes_up": 0,
        "leader": null,
        "leader_pid": null,
        "supervisor_pid": null,
        "under_replicated_stripes": null,
        "under_spread_stripes": null,
    });
    match body {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The daemon's own words over the blank; none if they are no JSON object.
fn merged(written: &[u8]) -> Option<Map<String, Value>> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(written) else { return None };
    let mut body = blank("degraded");
    body.extend(fields);
    Some(body)
}

fn of_living(node: &State, daemon: &Daemon) -> io::Result<Report> {
    let mut remarks = Vec::new();
    let path = node.status_file();
    let written = match std::fs::read(&path) {
        Ok(bytes) => merged(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let known = written.is_some();
    let mut body = written.unwrap_or_else(|| blank("degraded"));
    body.insert("supervisor_pid".to_owned(), daemon.supervisor.into());
    if !known || daemon.run.is_none() {
        remarks.push(format!(
            "fabricd (pid {}) is starting or stopping; see {}",
            daemon.pid,
            node.log_file().display()
        ));
    } else if std::fs::metadata(&path)?.modified()?.elapsed().is_ok_and(|age| age > AGE_MAX) {
        let (pid, limit) = (daemon.pid, AGE_MAX.as_secs());
        remarks.push(format!(
            "fabricd (pid {pid}) has not said how it is for more than {limit} s; it hangs or is stopped"
        ));
    }
    if let Some(run) = &daemon.run {
        let dir = mounts::resolve(&run.mount)?;
        let mounted = mounts::at(&dir)?.is_some_and(|mount| mount.is_kosfs());
        if !mounted || probe::statfs(&dir, PROBE_LIMIT)? != Answer::Fuse {
            let state = if mounted { "hung" } else { "unmounted" };
            remarks.push(format!("{} does not answer; try: kos down, then kos up", dir.display()));
            mark_mount(&mut body, &run.mount.to_string_lossy(), state);
        }
    }
    if !remarks.is_empty() {
        body.insert("health".to_owned(), "degraded".into());
        body.insert("remarks".to_owned(), remarks.clone().into());
    }
    Ok(Report { body, remarks })
}

fn mark_mount(body: &mut Map<String, Value>, dir: &str, state: &str) {
    let mounts = body.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten().filter(|mount| mount["dir"] == dir) {
        mount["state"] = state.into();
    }
}

fn of_stopped(node: &State) -> io::Result<Report> {
    let mut body = blank("down");
    let mut remarks = vec![format!("no daemon serves {}; start one: kos up", node.path.display())];
    if let Some(run) = node.run()? {
        let dir = mounts::resolve(&run.mount)?;
        let mount = mounts::at(&dir)?.filter(mounts::Mount::is_kosfs);
        if let Some(mount) = mount.filter(|_| probe::statfs(&dir, PROBE_LIMIT).is_ok_and(Answer::is_dead)) {
            let dead = json!({ "dir": dir.to_string_lossy(), "source": mount.source, "pid": null, "state": "stale" });
            body.insert("mounts".to_owned(), json!([dead]));
            remarks.push(format!(
                "the daemon died and left a dead {FSTYPE} mount; kos up and kos down remove it"
            ));
        }
    }
    body.insert("remarks".to_owned(), remarks.clone().into());
    Ok(Report { body, remarks })
}

fn as_text(body: &Value, remarks: &[String]) -> String {
    let mut lines = vec![format!("health   {}", word(&body["health"]))];
    for mount in body["mounts"].as_array().into_iter().flatten() {
        let [dir, source, pid, state] = ["dir", "source", "pid", "state"].map(|key| word(&mount[key]));
        lines.push(format!("mount    {dir}  {state}  (source {source}, pid {pid})"));
    }
    for node in body["nodes"].as_array().into_iter().flatten() {
        let [id, addr, pid, state] = ["id", "addr", "pid", "state"].map(|key| word(&node[key]));
        lines.push(format!("node     {id}  {state}  ({addr}, pid {pid})"));
    }
    if body["health"] != "down" {
        let [leader, pid, replicas, spread] =
            ["leader", "leader_pid", "under_replicated_stripes", "under_spread_stripes"]
                .map(|key| word(&body[key]));
        lines.push(format!("leader   {leader}  (pid {pid})"));
        lines.push(format!("stripes  {replicas} under-replicated, {spread} under-spread"));
    }
    lines.extend(remarks.iter().map(|remark| format!("note     {remark}")));
    lines.join("\n")
}

/// A value as a person reads it.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISED: [&str; 9] = [
        "health",
        "mounts",
        "mount_source",
        "nodes",
        "nodes_up",
        "leader",
        "leader_pid",
        "under_replicated_stripes",
        "under_spread_stripes",
    ];

    #[test]
    fn every_promised_field_is_there_whatever_was_written() {
        for written in [&br#"{"health":"ok","nodes_up":1}"#[..], b"{}"] {
            let Some(body) = merged(written) else { panic!("not read") };
            assert!(PROMISED.iter().all(|key| body.contains_key(*key)));
        }
        assert!(merged(b"{\"health\":").is_none());
        assert!(merged(b"[]").is_none());
    }

    #[test]
    fn the_daemons_words_win_and_more_fields_pass_through() {
        let Some(body) = merged(br#"{"health":"ok","nodes_up":1,"usage":{"bytes":7}}"#) else {
            panic!("not read")
        };
        assert_eq!(
            (&body["health"], &body["nodes_up"], &body["usage"]["bytes"]),
            (&json!("ok"), &json!(1), &json!(7))
        );
    }

    #[test]
    fn health_decides_the_exit_code() {
        let exit = |health: &str| exit_of(&json!({ "health": health }));
        assert_eq!(
            (exit("ok"), exit("degraded"), exit("down")),
            (Exit::Done, Exit::Degraded, Exit::NotRunning)
        );
        assert_eq!(exit_of(&json!({})), Exit::Degraded);
    }

    #[test]
    fn a_hung_mount_is_marked_by_its_directory() {
        let written = br#"{"mounts":[{"dir":"/kos","state":"up"},{"dir":"/two","state":"up"}]}"#;
        let Some(mut body) = merged(written) else { panic!("not read") };
        mark_mount(&mut body, "/kos", "hung");
        assert_eq!(
            (&body["mounts"][0]["state"], &body["mounts"][1]["state"]),
            (&json!("hung"), &json!("up"))
        );
    }

    #[test]
    fn text_names_mounts_nodes_and_remarks() {
        let body = json!({ "health": "ok", "mounts": [{ "dir": "/kos", "source": "kosfs", "pid": 7, "state": "up" }],
            "nodes": [{ "id": 1, "addr": "local", "pid": 7, "state": "up" }], "leader": 1, "leader_pid": 7,
            "under_replicated_stripes": 0, "under_spread_stripes": 0 });
        let text = as_text(&body, &["hello".to_owned()]);
        assert_eq!(
            text,
            "health   ok\nmount    /kos  up  (source kosfs, pid 7)\nnode     1  up  (local, pid 7)\n\
             leader   1  (pid 7)\nstripes  0 under-replicated, 0 under-spread\nnote     hello"
        );
    }
}
