//! What clients do.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kos_tests::Rng;
use memmap2::MmapMut;
use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};
use rustix::io::Errno;

/// What all clients read.
pub(super) const SHARED_BYTES: u64 = 64 << 20;
/// Where large writes begin anew.
const WRITTEN_BYTES: u64 = 16 << 20;
const SMALL: u64 = 4 << 10;
const LARGE: u64 = 1 << 20;

/// What a client works on.
pub(super) struct Client {
    /// The shared file.
    pub(super) shared: PathBuf,
    /// A directory of its own, which goes with it.
    pub(super) own: PathBuf,
    pub(super) number: u64,
    /// Operations.
    pub(super) amount: u64,
}

/// Does an operation, given its number.
pub(super) type Operation = Box<dyn FnMut(u64)>;

/// One operation, and how often all clients together do it.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) amount: u64,
    /// Bytes of one, where they are what counts.
    pub(super) bytes: Option<u64>,
    /// Also the median of one client's.
    pub(super) is_latency: bool,
    pub(super) begin: fn(&Client) -> Operation,
}

pub(super) const ROWS: [Row; 8] = [
    Row { name: "getattr", amount: 4000, bytes: None, is_latency: false, begin: getattr },
    Row { name: "lookup, absent", amount: 4000, bytes: None, is_latency: false, begin: lookup },
    Row { name: "4 KiB random read", amount: 4000, bytes: None, is_latency: true, begin: read_small },
    Row { name: "4 KiB write", amount: 4000, bytes: None, is_latency: false, begin: write_small },
    Row { name: "create", amount: 800, bytes: None, is_latency: false, begin: create },
    Row { name: "unlink", amount: 800, bytes: None, is_latency: false, begin: unlink_one },
    Row { name: "1 MiB read", amount: 300, bytes: Some(LARGE), is_latency: false, begin: read_large },
    Row { name: "1 MiB write", amount: 300, bytes: Some(LARGE), is_latency: false, begin: write_large },
];

fn getattr(client: &Client) -> Operation {
    let file = File::open(&client.shared).expect("open");
    // What the kernel knows already would do without this.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    Box::new(move |_| _ = statx(&file, "", flags, StatxFlags::BASIC_STATS).expect("statx"))
}

fn lookup(client: &Client) -> Operation {
    let dir = File::open(&client.own).expect("open");
    // A name is asked for once: that it is absent is known then.
    let process = std::process::id();
    Box::new(move |i| {
        let name = format!("absent-{process}-{i}");
        let found = statx(&dir, name, AtFlags::empty(), StatxFlags::BASIC_STATS);
        assert_eq!(found.err(), Some(Errno::NOENT), "lookup");
    })
}

fn direct(options: &mut fs::OpenOptions, path: &Path) -> File {
    options.custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path).expect("open")
}

/// Whole pages, as O_DIRECT wants them.
fn buffer(bytes: u64) -> MmapMut {
    let mut buffer = MmapMut::map_anon(bytes as usize).expect("memory");
    buffer.copy_from_slice(&Rng::new(3).bytes(bytes as usize));
    buffer
}

fn read_small(client: &Client) -> Operation {
    let (file, mut data) = (direct(File::options().read(true), &client.shared), buffer(SMALL));
    let mut rng = Rng::new(client.number + 1);
    Box::new(move |_| file.read_exact_at(&mut data, rng.below(SHARED_BYTES / SMALL) * SMALL).expect("read"))
}

fn read_large(client: &Client) -> Operation {
    let (file, mut data) = (direct(File::options().read(true), &client.shared), buffer(LARGE));
    let first = client.number * client.amount * LARGE;
    Box::new(move |i| file.read_exact_at(&mut data, (first + i * LARGE) % SHARED_BYTES).expect("read"))
}

fn write_small(client: &Client) -> Operation {
    let (mut file, data) = (File::create(client.own.join("written")).expect("create"), buffer(SMALL));
    Box::new(move |_| file.write_all(&data).expect("write"))
}

fn write_large(client: &Client) -> Operation {
    let path = client.own.join("written");
    let file = direct(File::options().write(true).create(true).truncate(true), &path);
    let data = buffer(LARGE);
    Box::new(move |i| file.write_all_at(&data, i * LARGE % WRITTEN_BYTES).expect("write"))
}

fn create(client: &Client) -> Operation {
    let own = client.own.clone();
    Box::new(move |i| drop(File::create_new(own.join(i.to_string())).expect("create")))
}

fn unlink_one(client: &Client) -> Operation {
    (0..client.amount).for_each(create(client));
    let own = client.own.clone();
    Box::new(move |i| fs::remove_file(own.join(i.to_string())).expect("unlink"))
}
