//! What becomes of a job: output, waiting, its end by itself, by others, and by the node's.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kos_tests::{Daemon, wait_for};

use crate::{Jobs, runs, sh, value};

/// A number that no other process has in its command line.
fn unusual(n: u32) -> String {
    format!("{}.{n}", 100_000 + std::process::id())
}

fn drop_script(jobs: &Jobs, name: &str, body: &str) {
    fs::write(jobs.dir.join(name), format!("#!/bin/bash\n{body}\n")).expect("dropped");
}

#[test]
fn output_grows_while_it_runs_and_the_exit_status_is_kept() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    drop_script(
        &jobs,
        "grow",
        "echo err >&2; echo one; until [ -e go ]; do sleep 0.02; done; echo two; exit 3",
    );
    wait_for("the first line", || jobs.read("grow", "stdout") == "one\n");
    assert_eq!((jobs.read("grow", "stderr"), jobs.status("grow", "exit")), ("err\n".into(), "\"\"".into()));
    assert_eq!(jobs.status("grow", "state"), "\"running\"");
    fs::write(jobs.by_name("grow").join("work/go"), "").expect("go");
    assert_eq!(jobs.wait("grow"), "3\n");
    assert_eq!(jobs.read("grow", "stdout"), "one\ntwo\n");
    let status = jobs.read("grow", "status");
    for (key, wanted) in [("state", "\"failed\""), ("exit", "3"), ("attempt", "1"), ("uid", "0")] {
        assert_eq!(value(&status, key), wanted, "{status}");
    }
    for key in ["submitted", "started", "ended"] {
        assert!(value(&status, key).starts_with("20"), "{status}");
    }
    assert!(!value(&status, "node").is_empty());
    daemon.stop();
}

#[test]
fn kill_ends_the_whole_job() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let sleep = unusual(1);
    // One child in the job's group, one in a group of its own, and all deaf to SIGTERM.
    let body = format!("trap '' TERM\nsleep {sleep} & set -m; sleep {sleep} & touch begun; wait");
    drop_script(&jobs, "deaf", &body);
    drop_script(&jobs, "polite", &format!("trap 'echo bye; exit 0' TERM; touch begun; sleep {sleep} & wait"));
    for name in ["deaf", "polite"] {
        wait_for("begin", || jobs.by_name(name).join("work/begun").exists());
        let done = sh("echo kill > ctl", &jobs.by_name(name));
        assert!(done.status.success(), "{done:?}");
    }
    assert_eq!((jobs.wait("polite"), jobs.read("polite", "stdout")), ("0\n".into(), "bye\n".into()));
    assert_eq!(jobs.wait("deaf"), "137\n");
    for name in ["deaf", "polite"] {
        assert_eq!(jobs.status(name, "state"), "\"cancelled\"");
    }
    assert!(!runs(&sleep), "children are left");
    daemon.stop();
}

#[test]
fn removing_it_cancels_it() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let sleep = unusual(2);
    drop_script(&jobs, "gone", &format!("touch begun; sleep {sleep} & wait"));
    wait_for("begin", || jobs.by_name("gone").join("work/begun").exists());
    let wait = Command::new("timeout")
        .args(["60", "cat"])
        .arg(jobs.by_name("gone").join("wait"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let removed = sh("rm -r 1", &jobs.dir);
    assert!(removed.status.success(), "{removed:?}");
    assert!(!jobs.dir.join("1").exists() && jobs.by_name("gone").symlink_metadata().is_err());
    wait_for("its processes' end", || !runs(&sleep));
    let mut wait = wait.expect("cat");
    wait_for("the waiter's end", || wait.try_wait().expect("cat").is_some());
    drop_script(&jobs, "gone", "true");
    assert_eq!((jobs.wait("gone"), jobs.status("gone", "id")), ("0\n".into(), "2".into()));
    daemon.stop();
}

#[test]
fn what_it_leaves_in_the_background_ends_with_it() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let sleep = unusual(3);
    drop_script(&jobs, "background", &format!("set -m; sleep {sleep} & exit 0"));
    assert_eq!(jobs.wait("background"), "0\n");
    assert!(!runs(&sleep));
    daemon.stop();
}

#[test]
fn its_time_ends_it() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let began = Instant::now();
    drop_script(&jobs, "long", "#KOS --time=1\nsleep 300");
    assert_eq!(jobs.wait("long"), "143\n");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(jobs.status("long", "state"), "\"failed\"");
    assert_eq!(jobs.status("long", "reason"), "\"its time was over\"");
    daemon.stop();
}

#[test]
fn what_cannot_be_started_says_so() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    fs::write(jobs.dir.join("none"), "command = [\"no-such-program\"]\n").expect("drop");
    assert_eq!(jobs.wait("none"), "127\n");
    assert!(jobs.status("none", "reason").contains("cannot start no-such-program"));
    fs::write(jobs.dir.join("interpreter"), "#!/no/such/shell\n").expect("drop");
    assert_eq!(jobs.wait("interpreter"), "127\n");
    fs::write(
        jobs.dir.join("memory"),
        "#!/bin/bash\n#KOS --mem=64M\nx=$(head -c 200M /dev/zero | tr '\\0' x)\n",
    )
    .expect("drop");
    assert_ne!(jobs.wait("memory"), "0\n", "{}", jobs.read("memory", "stderr"));
    daemon.stop();
}

/// Its owner may put anything where the output goes, and stops nobody else by it.
#[test]
fn output_goes_to_a_plain_file_only() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let file = fs::File::create(jobs.dir.join("fifo")).expect("create");
    std::io::Write::write_all(&mut &file, b"#!/bin/sh\necho hello\n").expect("write");
    drop(file.try_clone().expect("dup"));
    let swapped = sh("rm stdout && mkfifo stdout", &jobs.by_name("fifo"));
    assert!(swapped.status.success(), "{swapped:?}");
    drop(file);
    assert_eq!(jobs.wait("fifo"), "126\n");
    drop_script(&jobs, "next", "true");
    assert_eq!(jobs.wait("next"), "0\n");
    daemon.stop();
}

/// A reader of `wait` ends by a signal, and many of them stop nobody else.
#[test]
fn waiting_holds_nothing_up() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    drop_script(&jobs, "slow", "until [ -e go ]; do sleep 0.02; done; exit 7");
    let cat = || {
        let mut cat = Command::new("cat");
        cat.arg(jobs.by_name("slow").join("wait")).stdout(Stdio::piped()).spawn().expect("cat")
    };
    let mut waiters: Vec<_> = (0..40).map(|_| cat()).collect();
    // More than the session has threads, and everything else still goes on.
    fs::write(daemon.mem().join("x"), "x").expect("write");
    let mut killed = waiters.pop().expect("one");
    std::thread::sleep(Duration::from_millis(300));
    // Not SIGINT: what a shell starts in the background ignores that, and so would `cat`.
    rustix::process::kill_process(rustix::process::Pid::from_child(&killed), rustix::process::Signal::TERM)
        .expect("SIGTERM");
    wait_for("the interrupted one", || killed.try_wait().expect("cat").is_some());
    fs::write(jobs.by_name("slow").join("work/go"), "").expect("go");
    for waiter in waiters {
        let output = waiter.wait_with_output().expect("cat");
        assert_eq!(output.stdout, b"7\n");
    }
    daemon.stop();
}

#[test]
fn jobs_survive_the_nodes_end() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let sleep = unusual(4);
    drop_script(&jobs, "done", "echo kept > $KOS_RESULT/out");
    assert_eq!(jobs.wait("done"), "0\n");
    drop_script(&jobs, "lost", &format!("echo begun; sleep {sleep} & wait"));
    // Names are in the log at once, where output may go with a killed node.
    let again =
        format!("#KOS --restart=yes\n[ -e go ] && exit 5; touch run-$(ls | wc -l); sleep {sleep} & wait");
    drop_script(&jobs, "again", &again);
    let attempt_runs =
        |n: u32| wait_for("attempt", || jobs.by_name("again").join(format!("work/run-{}", n - 1)).exists());
    // It is 0 until it is begun.
    wait_for("the first attempt", || jobs.status("again", "attempt") == "1");
    for end in [Daemon::kill, Daemon::stop] {
        wait_for("output", || jobs.read("lost", "stdout") == "begun\n");
        let attempt: u32 = jobs.status("again", "attempt").parse().expect("a number");
        attempt_runs(attempt);
        end(&mut daemon);
        wait_for("its processes' end", || !runs(&sleep));
        daemon.spawn();
        assert_eq!(jobs.read("done", "result/out"), "kept\n");
        assert_eq!(jobs.status("done", "state"), "\"done\"");
        assert_eq!((jobs.wait("lost"), jobs.status("lost", "state")), ("137\n".into(), "\"lost\"".into()));
        wait_for("the next attempt", || jobs.status("again", "attempt") == (attempt + 1).to_string());
        fs::remove_dir_all(jobs.dir.join(jobs.status("lost", "id"))).expect("rm -r");
        drop_script(&jobs, "lost", &format!("echo begun; sleep {sleep} & wait"));
    }
    attempt_runs(3);
    let go = jobs.by_name("again").join("work/go");
    fs::write(go, "").expect("go");
    daemon.kill();
    daemon.spawn();
    assert_eq!((jobs.wait("again"), jobs.status("again", "attempt")), ("5\n".into(), "4".into()));
    daemon.stop();
    assert!(!runs(&sleep));
}

#[test]
fn a_file_half_written_at_the_nodes_end_does_not_run() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let mut open = fs::File::create(jobs.dir.join("half")).expect("create");
    std::io::Write::write_all(&mut open, b"#!/bin/sh\necho ran\n").expect("write");
    drop(open.try_clone().expect("dup"));
    assert_eq!(jobs.status("half", "state"), "\"new\"");
    daemon.kill();
    drop(open);
    daemon.spawn();
    assert_eq!(jobs.wait("half"), "137\n");
    assert_eq!(
        (jobs.status("half", "state"), jobs.read("half", "stdout")),
        ("\"lost\"".into(), String::new())
    );
    assert!(jobs.why_rejected("half").contains("drop it again"));
    assert_eq!(jobs.listed(), ["1"]);
    daemon.stop();
}

#[test]
fn fifty_jobs_in_a_row() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    for n in 0..50 {
        drop_script(&jobs, "same", &format!("echo {n}"));
        assert_eq!((jobs.wait("same"), jobs.read("same", "stdout")), ("0\n".into(), format!("{n}\n")));
    }
    assert_eq!(jobs.listed().len(), 50);
    // Together, more than run at once.
    for n in 0..30 {
        drop_script(&jobs, &format!("job-{n}"), &format!("echo {n}"));
    }
    for n in 0..30 {
        assert_eq!(jobs.wait(&format!("job-{n}")), "0\n");
    }
    let removed = sh("rm -r [0-9]*", &jobs.dir);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!((jobs.listed().len(), fs::read_dir(jobs.dir.join("by-name")).expect("lists").count()), (0, 0));
    daemon.stop();
    assert!(!daemon.log().contains("kos-fuse:"), "{}", daemon.log());
}
