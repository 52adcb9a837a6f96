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
    for pid in members(leader) {
        let _ = kill_process(pid, signal);
    }
}

/// Kill all of it until nothing is left but the leader's own exit status.
pub(crate) fn kill(leader: Pid) {
    for _ in 0..ROUNDS {
        signal(leader, Signal::KILL);
        if members(leader).iter().all(|&pid| pid == leader) {
            break;
        }
        std::thread::yield_now();
    }
}

/// Living processes of the session.
fn members(leader: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw).filter(|&pid| is_member(pid, leader)).collect()
}

fn is_member(pid: Pid, leader: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else { return false };
    // The name in parentheses may hold anything; behind it: state, parent, group, session.
    let Some((_, fields)) = stat.rsplit_once(')') else { return false };
    let mut fields = fields.split_whitespace();
    let dead = fields.next().is_none_or(|state| state == "Z" || state == "X");
    !dead && fields.nth(2).and_then(|session| session.parse().ok()) == Some(leader.as_raw_nonzero().get())
}
