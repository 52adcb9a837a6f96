//! The processes of one session: what a job left behind, whichever group it moved to.

use std::fs;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Rounds in which a session that forks is chased.
const ROUNDS: usize = 100;

/// Ask all of it to end; what is stopped must run to hear it.
pub(crate) fn ask(leader: Pid) {
    signal(leader, Signal::TERM);
    signal(leader, Signal::CONT);
}

/// Send a signal to every process of the session that `leader` makes; the leader must not be reaped yet.
fn signal(leader: Pid, signal: Signal) {
    // What is gone already needs no signal, and a leader that has just begun has no session yet.
    let _ = kill_process_group(leader, signal).or_else(|_| kill_process(leader, signal));
    // The group has heard it once; a program may count.
    for (pid, _) in members(leader).into_iter().filter(|&(_, group)| group != Some(leader)) {
        let _ = kill_process(pid, signal);
    }
}

/// Kill all of it until nothing is left but the leader's own exit status.
pub(crate) fn kill(leader: Pid) {
    for _ in 0..ROUNDS {
        signal(leader, Signal::KILL);
        if members(leader).iter().all(|&(pid, _)| pid == leader) {
            break;
        }
        std::thread::yield_now();
    }
}

/// Living processes of the session, each with its group.
fn members(leader: Pid) -> Vec<(Pid, Option<Pid>)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw).filter_map(|pid| Some((pid, group_in(pid, leader)?))).collect()
}

/// The group of a living process of the session.
fn group_in(pid: Pid, leader: Pid) -> Option<Option<Pid>> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may hold anything; behind it: state, parent, group, session.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let (state, _parent, group, session) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_member = session.parse() == Ok(leader.as_raw_nonzero().get()) && state != "Z" && state != "X";
    is_member.then(|| group.parse().ok().and_then(Pid::from_raw))
}
