//! Every way of dropping a file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use kos_tests::Daemon;
use kos_tests::unnamed::{link, unnamed};

use crate::{Jobs, SECONDS_MAX, sh, sh_as};

const SCRIPT: &str = "#!/bin/sh\necho done > $KOS_RESULT/out\n";

/// Drop a script by a shell line that finds it as `$1` and the jobs' directory as `$2`, and wait for its result.
fn drop_by(jobs: &Jobs, how: &str, name: &str) {
    let source = tempfile::Builder::new().prefix("kos-job").tempdir().expect("temporary directory");
    let script = source.path().join(name);
    fs::write(&script, SCRIPT).expect("script");
    let dropped = Command::new("timeout")
        .args([SECONDS_MAX, "bash", "-ec", how, "bash"])
        .arg(&script)
        .arg(&jobs.dir)
        .output()
        .expect("bash");
    assert!(dropped.status.success(), "{how}: {dropped:?}");
    assert_eq!(jobs.wait(name), "0\n", "{how}: {}", jobs.read(name, "status"));
    assert_eq!(jobs.read(name, "result/out"), "done\n", "{how}");
    assert_eq!(jobs.read(name, "spec"), SCRIPT, "{how}");
    assert!(!jobs.dir.join(name).exists(), "{how}: the name stays");
}

#[test]
fn files_are_dropped_as_programs_do_it() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    for (name, how) in [
        ("cp", "cp $1 $2"),
        ("cp-preserving", "cp -a $1 $2"),
        ("mv", "mv $1 $2"),
        ("redirected", "cat $1 > $2/redirected"),
        ("two-writers", "(head -n1 $1; tail -n+2 $1) > $2/two-writers"),
        ("appended", "head -n1 $1 > $2/.appended; tail -n+2 $1 >> $2/.appended; mv $2/.appended $2/appended"),
        ("tee", "tee $2/tee < $1 > $1.copy"),
        ("dd", "dd if=$1 of=$2/dd bs=7 conv=fsync status=none"),
        ("rsync", "rsync -a $1 $2/"),
        ("vi", "cd $2; vi -Nu NONE -es -c \"read $1\" -c wq vi </dev/null"),
        ("touched", "touch $2/touched; cat $1 > $2/touched"),
        ("moved-inside", "cp $1 $2/../mem/moved-inside; mv $2/../mem/moved-inside $2/"),
        ("linked", "cp $1 $2/../mem/linked; ln $2/../mem/linked $2/linked"),
        ("part", "cp $1 $2/x.part; mv $2/x.part $2/part"),
    ] {
        drop_by(&jobs, how, name);
    }
    assert!(jobs.listed().iter().all(|name| name.parse::<u64>().is_ok()), "{:?}", jobs.listed());
    daemon.stop();
    assert!(!daemon.log().contains("kos-fuse:"), "{}", daemon.log());
}

/// As programs do that show a file only when it is whole: it has no name before it is a job, and none after.
#[test]
fn a_file_without_a_name_is_dropped_by_its_link() {
    let mut daemon = Daemon::that_makes_unnamed();
    let jobs = Jobs::of(&daemon);
    for (name, dir) in [("elsewhere", daemon.mem()), ("there", jobs.dir.clone())] {
        let mut file = unnamed(&dir).expect("O_TMPFILE");
        file.write_all(b"words").expect("write");
        assert_eq!(jobs.listed().len(), usize::from(name == "there"));
        let refused = link(&file, &jobs.dir.join(name)).expect_err("no script");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        assert!(jobs.why_rejected(name).starts_with("line 1"));
        file.set_len(0).and_then(|()| file.write_all_at(SCRIPT.as_bytes(), 0)).expect("write");
        link(&file, &jobs.dir.join(name)).expect("link");
        assert_eq!(jobs.wait(name), "0\n", "{}", jobs.read(name, "status"));
        assert_eq!(jobs.read(name, "spec"), SCRIPT);
        assert!(!jobs.dir.join(name).exists(), "the name stays");
        assert_eq!(file.metadata().expect("stat").nlink(), 0);
    }
    // One that editors leave is a file there, as it is when it is renamed in.
    let ignored = unnamed(&jobs.dir).expect("O_TMPFILE");
    ignored.write_all_at(SCRIPT.as_bytes(), 0).expect("write");
    link(&ignored, &jobs.dir.join(".ignored")).expect("link");
    assert_eq!(fs::read_to_string(jobs.dir.join(".ignored")).expect("read"), SCRIPT);
    fs::rename(jobs.dir.join(".ignored"), jobs.dir.join("renamed")).expect("rename");
    assert_eq!(jobs.wait("renamed"), "0\n");
    for dir in ["by-name", "rejected"] {
        let made = unnamed(&jobs.dir.join(dir)).expect_err("nobody makes files there");
        assert_eq!(made.raw_os_error(), Some(libc::EPERM));
    }
    drop(ignored);
    daemon.stop();
    assert!(!daemon.log().contains("kos-fuse:"), "{}", daemon.log());
}

/// The kernel may still know a name that has just become a job: the next file of that name is another one.
#[test]
fn a_name_is_used_again_at_once() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let mem = daemon.mem();
    for (n, how) in ["mv first ../jobs/x", "ln first ../jobs/x", "cp first ../jobs/x"].iter().enumerate() {
        let again = format!("{how} && cp second ../jobs/x && cat second > ../jobs/x");
        for name in ["first", "second"] {
            fs::write(mem.join(name), format!("#!/bin/sh\necho {name}\n")).expect("write");
        }
        let dropped = sh(&again, &mem);
        assert!(dropped.status.success(), "{how}: {dropped:?}");
        assert_eq!((jobs.wait("x"), jobs.status("x", "id")), ("0\n".into(), (3 * n + 3).to_string()));
        for (id, wanted) in (3 * n + 1..).zip(["first\n", "second\n", "second\n"]) {
            let spec = fs::read_to_string(jobs.dir.join(id.to_string()).join("spec")).expect("spec");
            assert!(spec.ends_with(wanted), "{how}, job {id}: {spec}");
        }
        drop(fs::remove_file(mem.join("first")));
    }
    daemon.stop();
}

#[test]
fn ignored_names_are_only_files() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    for name in [".hidden", "backup~", "x.tmp", "x.part"] {
        fs::write(jobs.dir.join(name), SCRIPT).expect("write");
        assert_eq!(fs::read_to_string(jobs.dir.join(name)).expect("read"), SCRIPT);
    }
    assert_eq!(jobs.listed(), [".hidden", "backup~", "x.part", "x.tmp"]);
    daemon.stop();
}

/// The job is there when close returns, begins only after the last writer closed, and the last verdict counts.
#[test]
fn the_last_close_starts_it_and_the_last_verdict_counts() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let file = File::create(jobs.dir.join("slow")).expect("create");
    assert!(jobs.by_name("slow").symlink_metadata().is_err(), "nothing is written yet");
    let close = |file: &File| drop(file.try_clone().expect("dup"));
    close(&file);
    assert!(jobs.by_name("slow").symlink_metadata().is_err(), "a close after no write does nothing");
    (&file).write_all(b"#!/bin/sh\necho one\n").expect("write");
    close(&file);
    assert_eq!(jobs.status("slow", "state"), "\"new\"");
    assert!(jobs.dir.join("slow").exists(), "it is still being written");
    file.set_len(0).expect("truncate");
    (&file).write_all(b"#KOS").expect("write");
    close(&file);
    assert!(jobs.by_name("slow").symlink_metadata().is_err(), "the last verdict: refused");
    assert!(jobs.why_rejected("slow").contains("line 1"));
    file.set_len(0).expect("truncate");
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).expect("seek");
    (&file).write_all(b"#!/bin/sh\necho two\n").expect("write");
    drop(file);
    assert_eq!(jobs.wait("slow"), "0\n");
    assert_eq!(jobs.read("slow", "stdout"), "two\n");
    assert!(!jobs.dir.join("rejected/slow.error").exists(), "it was accepted in the end");
    daemon.stop();
}

#[test]
fn a_table_is_a_job_too() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    fs::write(daemon.mem().join("data"), vec![7; 100_000]).expect("write");
    let spec = format!(
        "name = \"count\"\ncommand = [\"wc\", \"-c\"]\nargs = [{:?}]\nenv = {{ LANG = \"C\" }}\n",
        daemon.mem().join("data")
    );
    fs::write(jobs.dir.join("job.toml"), spec).expect("drop");
    assert_eq!(jobs.wait("job.toml"), "0\n");
    assert!(jobs.read("job.toml", "stdout").starts_with("100000 "));
    assert_eq!(jobs.status("job.toml", "name"), "\"count\"");
    daemon.stop();
}

#[test]
fn it_runs_as_its_submitter_with_nothing_inherited() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let script = "printf '#!/bin/sh\\nid -u; id -g; id -G; pwd; env; ulimit -c; cut -d\" \" -f6 /proc/$$/stat; echo $$' > who && ls -ln by-name/who/";
    let listed = sh_as(4321, script, &jobs.dir);
    assert!(listed.status.success(), "{listed:?}");
    assert_eq!(jobs.wait("who"), "0\n");
    let id = jobs.status("who", "id");
    let own = jobs.dir.join(&id);
    let text = jobs.read("who", "stdout");
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(lines[..4], ["4321", "4321", "4321 5001 5002", own.join("work").to_str().expect("text")]);
    let mut env: Vec<_> = lines[4..].iter().filter(|line| line.contains('=')).copied().collect();
    env.sort_unstable();
    let wanted = [
        format!("KOS_JOB_ID={id}"),
        format!("KOS_MOUNT={}", daemon.mount().display()),
        format!("KOS_RESULT={}", own.join("result").display()),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        format!("PWD={}", own.join("work").display()),
    ];
    assert_eq!(env, wanted);
    let [.., core, session, pid] = lines[..] else { panic!("{text}") };
    assert_eq!((core, session), ("0", pid), "no core files, and a session of its own");
    fs::write(jobs.dir.join("fds"), "command = [\"ls\", \"/proc/self/fd\"]").expect("drop");
    assert_eq!((jobs.wait("fds"), jobs.read("fds", "stdout")), ("0\n".into(), "0\n1\n2\n3\n".into()));
    fs::write(jobs.dir.join("signals"), "command = \"grep -E 'Sig(Ign|Blk)' /proc/self/status\"")
        .expect("drop");
    assert_eq!(jobs.wait("signals"), "0\n");
    let signals = jobs.read("signals", "stdout");
    for line in signals.lines() {
        let (_, mask) = line.split_once('\t').expect("a mask");
        // 32 and 33 are the C library's own, and it lets nobody change them.
        let mask = u64::from_str_radix(mask, 16).expect("hexadecimal") & !(3 << 31);
        assert_eq!(mask, 0, "{signals}");
    }
    // What a job may not be seen by: who may not read its file.
    let secret = sh_as(4321, "umask 077; printf '#!/bin/sh\\n' > secret; cat by-name/secret/wait", &jobs.dir);
    assert!(secret.status.success(), "{secret:?}");
    assert!(!sh_as(4322, "cat by-name/secret/status", &jobs.dir).status.success());
    assert!(!sh_as(4322, "echo kill > by-name/who/ctl", &jobs.dir).status.success());
    assert!(!sh_as(4322, "rm -rf by-name/who/", &jobs.dir).status.success());
    assert!(sh("ls", &own).status.success());
    daemon.stop();
}
