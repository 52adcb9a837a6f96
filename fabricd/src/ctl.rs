//! Commands written to /kos/nodes/<node>/ctl, one in each line.

use fabricd::Node;
use kos_types::{Error, Kind, Result};

/// What reading the file answers.
pub(crate) const HELP: &str = "\
sync     make everything written so far stable; the write returns when it is
collect  free the bytes of what was deleted or overwritten now
compact  begin to join small extents and to apply changed policies now
scrub    begin to read and check all shards now; sys/events tells when it is done
";

/// Run the lines of one write, up to the first that fails. `sync` makes the whole mount stable.
pub(crate) fn run(node: &Node, bytes: &[u8], sync: &dyn Fn() -> Result<()>) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let done = match line {
            "sync" => sync(),
            "collect" => node.collect(),
            "compact" => {
                node.compact();
                Ok(())
            }
            "scrub" => {
                node.scrub();
                Ok(())
            }
            "drain" => Err(Error::new(
                Kind::Unsupported,
                "drain needs the cluster: one node has nowhere to move its data",
            )),
            _ => Err(Error::new(Kind::Invalid, "no such command; reading the file lists them")),
        };
        match &done {
            Ok(()) => node.events().add("ctl", line),
            // Only here can whoever wrote it read the reason.
            Err(e) => node.events().add("refused", &format!("ctl: {line:?}: {e}")),
        }
        done?;
    }
    Ok(())
}
