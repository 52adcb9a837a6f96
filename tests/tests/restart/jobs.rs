//! Files that are being dropped as jobs, and control files that are open.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;

use kos_tests::{Daemon, wait_for};

/// Directories of jobs, in order.
fn listed(jobs: &Path) -> Vec<String> {
    let names = fs::read_dir(jobs).expect("list").map(|entry| entry.expect("entry").file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().expect("text")).collect();
    names.retain(|name| name != "by-name" && name != "rejected");
    names.sort();
    names
}

fn wait(jobs: &Path, name: &str) -> String {
    fs::read_to_string(jobs.join("by-name").join(name).join("wait")).expect("wait")
}

fn output(jobs: &Path, name: &str) -> String {
    fs::read_to_string(jobs.join("by-name").join(name).join("stdout")).expect("stdout")
}

/// A log in the daemon's own tree that jobs add lines to.
fn log(daemon: &Daemon) -> PathBuf {
    daemon.mem().join("log")
}

#[test]
fn a_file_half_written_at_the_crash_is_submitted_once_by_its_close() {
    let mut daemon = Daemon::supervised(0);
    let jobs = daemon.mount().join("jobs");
    let mut half = File::create(jobs.join("half")).expect("create");
    half.write_all(b"#!/bin/sh\n").expect("write");
    daemon.crash();
    half.write_all(format!("echo ran >> {}\n", log(&daemon).display()).as_bytes()).expect("write");
    daemon.upgrade();
    half.write_all(b"echo done\n").expect("write");
    // The new processes of other tests close copies of it, and then it is a job so far; but it does not begin.
    assert!(jobs.join("half").exists());
    drop(half);
    wait_for("its begin", || !jobs.join("half").exists());
    assert_eq!((wait(&jobs, "half"), output(&jobs, "half")), ("0\n".into(), "done\n".into()));
    assert_eq!(listed(&jobs), ["1"]);
    daemon.crash();
    assert_eq!((wait(&jobs, "half"), listed(&jobs)), ("0\n".into(), vec!["1".to_owned()]));
    assert_eq!(fs::read_to_string(log(&daemon)).expect("log"), "ran\n");
    daemon.stop();
}

/// An empty file waits for its bytes, whoever serves.
#[test]
fn a_file_without_bytes_waits_for_them_across_a_crash() {
    let mut daemon = Daemon::supervised(0);
    let jobs = daemon.mount().join("jobs");
    for (name, is_open) in [("open", true), ("closed", false)] {
        let empty = File::create(jobs.join(name)).expect("create");
        let empty = is_open.then_some(empty);
        // The release of what was closed.
        wait_for("the stat", || jobs.join(name).exists());
        daemon.crash();
        assert!(jobs.join(name).exists(), "{name}: an empty file is no job yet");
        drop(empty);
        assert!(jobs.join(name).exists(), "{name}: nor when it is closed");
        fs::write(jobs.join(name), "#!/bin/sh\necho ran\n").expect("write");
        wait_for("its begin", || !jobs.join(name).exists());
        assert_eq!((wait(&jobs, name), output(&jobs, name)), ("0\n".into(), "ran\n".into()), "{name}");
    }
    assert_eq!(listed(&jobs), ["1", "2"]);
    daemon.stop();
}

/// A descriptor was closed, and another one is open: it is a job as far as it was written, and not two.
#[test]
fn what_was_accepted_before_the_crash_is_that_job_after_it() {
    let mut daemon = Daemon::supervised(0);
    let jobs = daemon.mount().join("jobs");
    let mut open = File::create(jobs.join("twice")).expect("create");
    open.write_all(b"#!/bin/sh\necho one\n").expect("write");
    drop(open.try_clone().expect("dup"));
    let status = jobs.join("by-name/twice/status");
    assert!(fs::read_to_string(&status).expect("status").contains("state = \"new\""));
    daemon.crash();
    let text = fs::read_to_string(&status).expect("status");
    assert!(text.contains("state = \"new\""), "{text}");
    open.write_all(b"echo two\n").expect("write");
    drop(open);
    wait_for("its begin", || !jobs.join("twice").exists());
    assert_eq!((wait(&jobs, "twice"), output(&jobs, "twice")), ("0\n".into(), "one\ntwo\n".into()));
    assert_eq!(listed(&jobs), ["1"]);
    daemon.stop();
}

/// Whenever the daemon is killed: a job whose close succeeded runs, and runs once.
#[test]
fn jobs_that_are_dropped_all_the_time_run_once_each() {
    const JOBS: usize = 40;
    let mut daemon = Daemon::supervised(0);
    let jobs = daemon.mount().join("jobs");
    let log = log(&daemon);
    thread::scope(|scope| {
        let (jobs, log) = (&jobs, &log);
        let dropper = scope.spawn(move || {
            for n in 0..JOBS {
                let text = format!("#!/bin/sh\n#KOS --restart=yes\necho {n} >> {}.{n}\n", log.display());
                let mut file = File::create(jobs.join(format!("job-{n}"))).expect("create");
                file.write_all(text.as_bytes()).unwrap_or_else(|e| panic!("job {n}: write: {e}"));
                let closed = close(file);
                assert_eq!(closed, 0, "job {n}: close");
            }
        });
        while !dropper.is_finished() {
            thread::sleep(std::time::Duration::from_millis(60));
            daemon.crash();
        }
        dropper.join().expect("dropper");
    });
    for n in 0..JOBS {
        let name = format!("job-{n}");
        let exit = wait(&jobs, &name);
        let status = fs::read_to_string(jobs.join("by-name").join(&name).join("status")).expect("status");
        assert_eq!(exit, "0\n", "{status}");
    }
    let listed = listed(&jobs);
    assert_eq!(listed.len(), JOBS, "each is one job: {listed:?}");
    daemon.stop();
}

#[expect(unsafe_code, reason = "std's close says nothing")]
fn close(file: File) -> i32 {
    use std::os::fd::IntoRawFd as _;
    // SAFETY: the descriptor is ours alone.
    unsafe { libc::close(file.into_raw_fd()) }
}

#[test]
fn control_files_that_are_open_are_read_on() {
    let mut daemon = Daemon::supervised(0);
    let jobs = daemon.mount().join("jobs");
    let text = "#!/bin/sh\necho ran\n";
    fs::write(jobs.join("job"), text).expect("drop");
    assert_eq!(wait(&jobs, "job"), "0\n");
    let of = |name: &str| File::open(jobs.join("by-name/job").join(name)).expect("open");
    let mut files = ["status", "spec", "wait"].map(of);
    let mut config = File::open(daemon.mount().join("sys/config")).expect("open");
    let mut metrics = File::open(daemon.mount().join("sys/metrics")).expect("open");
    let mut events = File::open(daemon.mount().join("sys/events")).expect("open");
    for round in 0..2 {
        if round == 0 {
            daemon.crash()
        } else {
            daemon.upgrade()
        }
        let mut read = |file: &mut File| {
            let mut text = String::new();
            file.rewind().expect("seek");
            file.read_to_string(&mut text).unwrap_or_else(|e| panic!("round {round}: {e}"));
            text
        };
        let [status, spec, wait] = files.each_mut().map(&mut read);
        assert!(status.contains("state = \"done\""), "{status}");
        assert_eq!((spec.as_str(), wait.as_str()), (text, "0\n"));
        assert!(!read(&mut config).is_empty());
        assert!(read(&mut metrics).contains("kos_bytes_read_total"));
        assert!(read(&mut events).contains("start"));
    }
    daemon.stop();
}
