//! What a client of STATE/kos.sock finds: the sessions of the node, and the control files.

use std::sync::Arc;

use fabricd::{Hub, Node, Session, Who};
use kos_fuse::ControlFile;
use kos_rpc::{Claim, ControlInfo, Host, Peer};
use kos_types::{Error, Fabric, Kind, Result};

pub(crate) struct Door {
    pub(crate) hub: Arc<Hub>,
    pub(crate) node: Arc<Node>,
    pub(crate) control: Vec<ControlFile>,
}

impl Host for Door {
    type Session = Session;

    fn join(&self, peer: &Peer, claim: Option<Claim>) -> Result<Arc<Self::Session>> {
        let who = Who { pid: peer.pid, dir: peer.dir.clone(), source: peer.source.clone() };
        self.hub.join(who, claim, (&peer.lent, &peer.locks))
    }

    fn control_files(&self) -> Vec<ControlInfo> {
        let info = |file: &ControlFile| ControlInfo {
            path: file.path.clone(),
            live: file.live,
            writable: file.write.is_some(),
        };
        self.control.iter().map(info).collect()
    }

    fn control(&self, path: &str) -> Result<Vec<u8>> {
        Ok((self.file(path)?.read)())
    }

    fn write_control(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let refused = || Error::new(Kind::NotPermitted, "this control file takes no writes");
        let write = self.file(path)?.write.as_ref().ok_or_else(refused)?;
        write(bytes, &|| self.node.sync())
    }
}

impl Door {
    fn file(&self, path: &str) -> Result<&ControlFile> {
        let found = self.control.iter().find(|file| file.path == path);
        found.ok_or_else(|| Error::new(Kind::NotFound, "control file"))
    }
}
