//! Files that are made without a name, through the daemon's ends.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use kos_tests::power::Cut;
use kos_tests::unnamed::{link, unnamed};
use kos_tests::{Rng, seed};

use crate::Machine;

const BYTES: usize = 3 << 20;

/// One with its bytes on stable storage.
fn synced(dir: &Path, bytes: &[u8]) -> File {
    let mut file = unnamed(dir).expect("O_TMPFILE");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("write");
    file
}

/// Named ones are there to the byte; of the others nothing is left, no record and no block.
#[test]
fn what_was_named_survives_kills_and_cuts_and_what_was_not_leaves_nothing() {
    let mut rng = Rng::new(seed());
    let mut machine = Machine::unstarted(0);
    machine.daemon.make_unnamed();
    machine.daemon.spawn();
    let empty = machine.audit();
    machine.daemon.spawn();
    let (mem, bytes) = (machine.daemon.mem(), rng.bytes(BYTES));
    for round in 0..2 {
        let nameless = [synced(&mem, &bytes), synced(&mem, &bytes[1..])];
        let killed = synced(&mem, &bytes[2..]);
        link(&killed, &mem.join(format!("killed-{round}"))).expect("link");
        // Its bytes are still buffered; there may be a file without them.
        let mut late = unnamed(&mem).expect("O_TMPFILE");
        late.write_all(&bytes).expect("write");
        link(&late, &mem.join(format!("late-{round}"))).expect("link");
        machine.daemon.kill();
        drop((nameless, killed, late));
        machine.daemon.spawn();
        let killed = fs::read(mem.join(format!("killed-{round}"))).expect("it has its name");
        assert!(killed == bytes[2..], "{round}: {} bytes", killed.len());
        let late = fs::read(mem.join(format!("late-{round}"))).expect("names are in the log at once");
        assert!(late.is_empty() || late == bytes, "{round}: {} bytes", late.len());

        let nameless = synced(&mem, &bytes);
        let cut = synced(&mem, &bytes[3..]);
        link(&cut, &mem.join(format!("cut-{round}"))).expect("link");
        File::open(&mem).and_then(|dir| dir.sync_all()).expect("fsync");
        let off = machine.power_off();
        drop((nameless, cut));
        let how = Cut::choose(&mut rng);
        machine.power_on(&off, how, &mut rng).expect("the node is back");
        let cut = fs::read(mem.join(format!("cut-{round}"))).expect("it has its name");
        assert!(cut == bytes[3..], "{round}: {} bytes", cut.len());
    }
    assert_eq!(fs::read_dir(&mem).expect("list").count(), 6);
    let full = machine.audit();
    assert!(!full.records.contains_key(&'O'), "{full:?}");
    machine.daemon.spawn();
    for entry in fs::read_dir(&mem).expect("list") {
        fs::remove_file(entry.expect("entry").path()).expect("remove");
    }
    machine.daemon.stop();
    machine.daemon.spawn();
    let after = machine.audit();
    assert_eq!((after.bytes, &after.records), (0, &empty.records));
}
