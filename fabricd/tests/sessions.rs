//! Logged sessions from their beginning to their end: nothing of them stays in the tables.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabricd::{Hub, KEPT, Node, Options, Session, Who};
use kos_rpc::{Claim, Client, ControlInfo, Host, Numbered, Peer, Server};
use kos_types::{Access, Cred, Error, Fabric, FileKind, Kind, Op, ROOT, Reply, Result, XattrMode};

fn node(state: &Path) -> Arc<Node> {
    Arc::new(
        Node::open(&Options { state: vec![state.to_owned()], ram_bytes: 0, resumes: false }).expect("node"),
    )
}

fn who() -> Who {
    Who { pid: 1, dir: "/mnt".into(), source: "kos.sock".into() }
}

fn mkdir(name: &str) -> Op {
    Op::Create {
        parent: ROOT,
        name: name.as_bytes().to_vec(),
        kind: FileKind::Dir,
        mode: 0o755,
        umask: 0,
        cred: Cred { uid: 0, gid: 0 },
        rdev: 0,
        target: Vec::new(),
    }
}

fn join(hub: &Arc<Hub>, claim: Option<Claim>) -> Arc<Session> {
    hub.join(who(), claim, (&[], &[])).expect("joins")
}

#[test]
fn a_session_is_kept_for_its_client_and_then_forgotten() {
    let state = tempfile::tempdir().expect("temporary directory");
    let first = node(state.path());
    let hub = Hub::new(Arc::clone(&first)).expect("hub");
    let session = join(&hub, None);
    let claim = session.claim();
    let made = session.propose_numbered(1, 0, mkdir("a")).expect("made");
    let Reply::Attr(_) = made else { panic!("{made:?}") };
    hub.expire(Instant::now() + 2 * KEPT).expect("expire");
    assert_eq!(
        first.sessions().expect("sessions"),
        [(claim.session, claim.epoch, false)],
        "its client is there"
    );
    drop(session);
    hub.expire(Instant::now()).expect("expire");
    let session = join(&hub, Some(claim));
    assert_eq!(session.claim(), claim);
    assert_eq!(session.propose_numbered(1, 0, mkdir("a")), Ok(made.clone()), "done once");
    drop((session, hub));

    // Through a restart, too.
    Arc::into_inner(first).expect("the only one").close().expect("close");
    let second = node(state.path());
    let hub = Hub::new(Arc::clone(&second)).expect("hub");
    hub.expire(Instant::now()).expect("expire");
    let session = join(&hub, Some(claim));
    assert_eq!(session.propose_numbered(1, 0, mkdir("a")), Ok(made), "done once");
    drop(session);
    hub.expire(Instant::now() + KEPT).expect("expire");
    assert_eq!(second.sessions().expect("sessions"), []);
    let session = join(&hub, Some(claim));
    assert_ne!(session.claim(), claim, "another one for who comes back later");
    let again = session.propose_numbered(1, 0, mkdir("a")).expect_err("there already");
    assert_eq!(again.kind(), Kind::Exists);
    session.leave();
    drop(session);
    assert_eq!(second.sessions().expect("sessions"), [], "at once");
    drop(hub);
    Arc::into_inner(second).expect("the only one").close().expect("close");
    assert_eq!(records(state.path()), 0);
}

/// An earlier daemon lent copies of sealed files, which mounts go on reading.
#[test]
fn nothing_is_unsealed_before_the_mounts_have_said_what_they_read() {
    let state = tempfile::tempdir().expect("temporary directory");
    let first = node(state.path());
    let hub = Hub::new(Arc::clone(&first)).expect("hub");
    let session = join(&hub, None);
    let (claim, kept) = (session.claim(), session.kept());
    assert!(!kept, "nothing is known of what it had before");
    let Op::Create { parent, mode, umask, cred, rdev, .. } = mkdir("") else { panic!("mkdir") };
    let (kind, target) = (FileKind::File, Vec::new());
    let made =
        session.propose(Op::Create { parent, name: b"file".into(), kind, mode, umask, cred, rdev, target });
    let Ok(Reply::Attr(file)) = made else { panic!("{made:?}") };
    let (ino, name) = (file.ino, b"user.kos.seal".to_vec());
    let seal = Op::SetXattr { ino, name: name.clone(), value: b"1".into(), mode: XattrMode::Any };
    session.propose(seal).expect("sealed");
    drop((session, hub));
    Arc::into_inner(first).expect("the only one").close().expect("close");

    let second = node(state.path());
    let hub = Hub::new(Arc::clone(&second)).expect("hub");
    let local = hub.embed();
    let unseal = || local.propose(Op::RemoveXattr { ino, name: name.clone() }).map(drop);
    let busy = |why: &str| assert_eq!(unseal().expect_err(why).kind(), Kind::InUse, "{why}");
    busy("it is not back");
    let session = hub.join(who(), Some(claim), (&[ino], &[])).expect("joins");
    assert!(session.kept());
    busy("it reads one");
    assert!(!join(&hub, Some(claim)).kept(), "once");
    session.return_copy(ino);
    unseal().expect("unsealed");
    drop((session, local, hub));
    Arc::into_inner(second).expect("the only one").close().expect("close");
}

/// A mount that is killed does not ask to have dropped what it had open without a name, or was about to open.
#[test]
fn what_a_lost_mount_had_without_a_name_goes_unless_it_comes_back() {
    let state = tempfile::tempdir().expect("temporary directory");
    let node = node(state.path());
    let hub = Hub::new(Arc::clone(&node)).expect("hub");
    let make = |session: &Session, seq| {
        let cred = Cred { uid: 0, gid: 0 };
        let op = Op::CreateUnnamed { parent: ROOT, mode: 0o600, umask: 0, cred };
        match session.propose_numbered(seq, 0, op) {
            Ok(Reply::Attr(attr)) => attr.ino,
            other => panic!("{other:?}"),
        }
    };
    let session = join(&hub, None);
    let claim = session.claim();
    let [open, made, named, shared] = [1, 2, 3, 4].map(|seq| make(&session, seq));
    let local = hub.embed();
    for ino in [open, named, shared] {
        session.open(ino, Access::Write).expect("open");
    }
    local.open(shared, Access::Read).expect("open");
    session.propose(Op::Link { ino: named, parent: ROOT, name: b"named".into() }).expect("link");
    let there = || [open, made, named, shared].map(|ino| node.attr(ino).is_ok());
    let after = |time| hub.expire(Instant::now() + time).expect("expire");
    drop(session);
    after(Duration::ZERO);
    assert_eq!(there(), [true; 4], "it may come back at once");
    let session = join(&hub, Some(claim));
    session.open(open, Access::Write).expect("open");
    after(Duration::from_secs(600));
    assert_eq!(there(), [true; 4], "it is there");
    // Whoever asks again is answered again, and has it.
    assert_eq!(make(&session, 2), made);
    drop(session);
    after(Duration::from_secs(600));
    assert_eq!(there(), [false, false, true, true]);
    local.close(shared, Access::Read);
    assert_eq!(there(), [false, false, true, true], "nobody has asked for what it did not have open again");
    // What goes with its session goes at once.
    let session = join(&hub, Some(claim));
    let last = make(&session, 5);
    session.leave();
    drop(session);
    assert!(node.attr(last).is_err());
    drop((local, hub));
    Arc::into_inner(node).expect("the only one").close().expect("close");
}

/// Sessions and their answers in the tables of a node that is closed.
fn records(state: &Path) -> usize {
    let db = rocksdb::DB::open_for_read_only(&rocksdb::Options::default(), state.join("meta"), false)
        .expect("metadata");
    let keys = db.iterator(rocksdb::IteratorMode::Start).map(|pair| pair.expect("metadata").0);
    keys.filter(|key| b"CK".contains(&key[0])).count()
}

#[test]
fn more_than_are_kept_end_early() {
    let state = tempfile::tempdir().expect("temporary directory");
    let node = node(state.path());
    let hub = Hub::new(Arc::clone(&node)).expect("hub");
    let claims: Vec<_> = (0..260).map(|_| join(&hub, None).claim()).collect();
    hub.expire(Instant::now()).expect("expire");
    let left: Vec<_> = node.sessions().expect("sessions").into_iter().map(|(id, ..)| id).collect();
    assert_eq!(left, claims[4..].iter().map(|claim| claim.session).collect::<Vec<_>>());
}

struct Door(Arc<Hub>);

impl Host for Door {
    type Session = Session;

    fn join(&self, _peer: &Peer, claim: Option<Claim>) -> Result<Arc<Session>> {
        self.0.join(who(), claim, (&[], &[]))
    }

    fn control_files(&self) -> Vec<ControlInfo> {
        Vec::new()
    }

    fn control(&self, _path: &str) -> Result<Vec<u8>> {
        Err(Error::new(Kind::NotFound, "control file"))
    }

    fn write_control(&self, _path: &str, _bytes: &[u8]) -> Result<()> {
        Err(Error::new(Kind::NotFound, "control file"))
    }
}

#[test]
fn a_client_that_was_away_for_too_long_gets_another_session() {
    let state = tempfile::tempdir().expect("temporary directory");
    let socket = state.path().join("kos.sock");
    let node = node(state.path());
    let hub = Hub::new(Arc::clone(&node)).expect("hub");
    let serve = || kos_rpc::serve(&socket, Door(Arc::clone(&hub))).expect("serve");
    let server = serve();
    let options = kos_rpc::Options {
        socket: socket.clone(),
        dir: String::new(),
        source: String::new(),
        patience: Duration::from_secs(60),
    };
    let client = Client::connect(options, Duration::from_secs(60)).expect("connects");
    client.propose(mkdir("a")).expect("made");
    Server::stop(server).expect("stop");
    let before = node.sessions().expect("sessions");
    hub.expire(Instant::now() + KEPT).expect("expire");
    assert_eq!((before.len(), node.sessions().expect("sessions").len()), (1, 0));
    let server = serve();
    client.propose(mkdir("b")).expect("made in another session");
    assert_ne!(node.sessions().expect("sessions"), before);
    client.leave().expect("leaves");
    Server::stop(server).expect("stop");
    assert_eq!(node.sessions().expect("sessions"), []);
}
