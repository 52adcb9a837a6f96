//! What a file may hold after a cut: what was last acked, or anything it became since.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A file's bytes or those of an attribute, or none when there is none.
pub(crate) type State = Option<Vec<u8>>;

/// Longer ones are not set.
pub(crate) const ATTRIBUTE_BYTES_MAX: usize = 4096;

/// One file or an attribute of one, seen by the one thread that changes it.
#[derive(Debug, Clone)]
pub(crate) struct Track {
    pub(crate) path: PathBuf,
    /// The attribute.
    pub(crate) attribute: Option<&'static str>,
    /// The acked state first, then each later one in order.
    states: Vec<State>,
    pub(crate) acks: u64,
}

impl Track {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, attribute: None, states: vec![None], acks: 0 }
    }

    /// An extended attribute of the file.
    pub(crate) fn of_attribute(path: PathBuf, name: &'static str) -> Self {
        Self { attribute: Some(name), ..Self::new(path) }
    }

    /// What programs see.
    pub(crate) fn now(&self) -> &State {
        self.states.last().expect("one at least")
    }

    /// About to become this.
    pub(crate) fn becomes(&mut self, state: State) {
        self.states.push(state);
    }

    /// What it is now is promised.
    pub(crate) fn acked(&mut self) {
        self.states.drain(..self.states.len() - 1);
        self.acks += 1;
    }

    /// That there is a file, or none, is promised; its bytes are not.
    pub(crate) fn name_acked(&mut self) {
        let born = self.states.iter().rposition(Option::is_none).map_or(0, |none| none + 1);
        self.states.drain(..born.min(self.states.len() - 1));
        self.acks += 1;
    }

    /// Changes that nothing has acked.
    pub(crate) fn unacked(&self) -> usize {
        self.states.len() - 1
    }

    /// Look at the file after a cut; what it is now is what it has to stay.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.see().map_err(|e| format!("{}: {e}", self.path.display()))?;
        let found = self.states.pop().expect("just seen");
        if self.states.contains(&found) {
            self.states = vec![found];
            return Ok(());
        }
        let tell = |state: &State| {
            let Some(bytes) = state else { return "none".to_owned() };
            let same = self.states.iter().flatten().find(|s| s.len() == bytes.len());
            let at = same.and_then(|s| s.iter().zip(bytes).position(|(a, b)| a != b));
            format!("{} bytes beginning {:?}, differs at {at:?}", bytes.len(), bytes.get(..8))
        };
        let states: Vec<String> = self.states.iter().map(tell).collect();
        Err(format!("{}: is {}, may be {states:?}", self.path.display(), tell(&found)))
    }

    /// Whatever it is now is its latest state.
    pub(crate) fn see(&mut self) -> io::Result<()> {
        let read = match self.attribute {
            None => fs::read(&self.path),
            Some(name) => {
                let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
                let len = rustix::fs::getxattr(&self.path, name, &mut value[..]);
                len.map(|len| value[..len].to_vec()).map_err(Into::into)
            }
        };
        let found = match read {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => None,
            Err(e) => return Err(e),
        };
        self.states.push(found);
        Ok(())
    }
}
